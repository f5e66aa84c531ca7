"""One finished run, made once and copied, `.snakemake` included, for every test that starts from a finished run."""

import shutil

import pytest
from support.workflow import CONFIG, EMBEDDER, make_shard, run_well


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    make_shard(folder / "data/a.tar")
    make_shard(folder / "data/b.tar", ["blue"] * 12, damaged=[3])
    (folder / "embedder.py").write_text(EMBEDDER)
    (folder / "beside.py").write_text("SCALE = 1\n")
    (folder / "weights.bin").write_bytes(b"some weights")
    (folder / "README.md").write_text("About my images.\n")
    (folder / "config.yaml").write_text(CONFIG)
    (folder / "printed.txt").write_text(run_well(folder))
    return folder


@pytest.fixture
def project(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "project")
