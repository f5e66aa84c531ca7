"""`snakemake retry` by real runs: it embeds what failed, and touches nothing else."""

import shutil

import pyarrow.parquet as pq
import pytest
from support.tools import run_cli
from support.workflow import CONFIG, EMBEDDER, edit, make_shard, read_colors, run_well

# One makes grey of what is undecodable, one fails all.
MENDED = """
class Mended(MeanColor):
    def decode(self, encoded):
        try:
            return super().decode(encoded)
        except Exception:
            return torch.full((3, 224, 224), 0.5)

class Blind(MeanColor):
    def preprocess(self, image):
        if image.width == 32:
            raise ValueError("sees nothing")
        return super().preprocess(image)
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    make_shard(folder / "data/a.tar")
    make_shard(folder / "data/b.tar", ["red"] * 20, damaged=[0, 19])
    (folder / "embedder.py").write_text(EMBEDDER + MENDED)
    (folder / "beside.py").write_text("SCALE = 1\n")
    (folder / "weights.bin").write_bytes(b"some weights")
    (folder / "config.yaml").write_text(CONFIG)
    run_well(folder, "--cores", "2")
    return folder


@pytest.fixture
def project(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "project")


def list_files(project):
    """Content and time of change of all that the first run made."""
    folders = [project / "results" / name for name in ("embeddings", "ledger")]
    files = [path for folder in folders for path in folder.rglob("*")] + [project / "results/summary.json"]
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def read_retried(project):
    """Keys embedded and keys failed, by shard."""
    folder = project / "results/retried"
    return {
        path.stem: [pq.read_table(folder / kind / path.name)["key"].to_pylist() for kind in ("embeddings", "ledger")]
        for path in sorted((folder / "embeddings").iterdir())
    }


def test_another_class_embeds_what_failed_and_touches_nothing_else(project):
    before = list_files(project)
    edit(project / "config.yaml", "embedder.py:MeanColor", "embedder.py:Mended")
    plan = run_well(project, "-n", "retry")
    assert "rule embed_failed:" in plan and "rule embed:" not in plan
    run_well(project, "retry")
    assert read_retried(project) == {"b": [["0000", "0019"], []]}
    assert read_colors(project / "results/retried/embeddings/b.parquet") == [[0.5, 0.5, 0.5]] * 2
    assert list_files(project) == before
    assert "embed_failed" not in run_well(project, "-n", "retry")  # it is done

    tables = [pq.read_table(project / f"results/{folder}embeddings/b.parquet") for folder in ("", "retried/")]
    assert tables[0].schema.equals(tables[1].schema)
    assert sorted(key for table in tables for key in table["key"].to_pylist()) == [f"{n:04}" for n in range(20)]
    verified = run_cli("verify", "results/retried/embeddings/b.parquet", "--device", "cpu", cwd=project)
    assert verified.stdout.startswith("sound: "), verified.stdout + verified.stderr


def test_what_fails_again_is_named_again_until_a_fix_of_the_source(project):
    before = list_files(project)
    run_well(project, "retry")  # the same embedder
    assert read_retried(project) == {"b": [[], ["0000", "0019"]]}
    assert pq.read_table(project / "results/retried/ledger/b.parquet")["kind"].to_pylist() == ["undecodable"] * 2
    fix = "    decode = lambda *_: torch.zeros(3, 8, 8)\n\n    def embed(self"
    edit(project / "embedder.py", "    def embed(self", fix)
    run_well(project, "retry")
    assert read_retried(project) == {"b": [["0000", "0019"], []]}
    assert list_files(project) == before


def test_a_ledger_that_changed_is_retried_anew(project):
    edit(project / "config.yaml", "data/*.tar", "data/b.tar")
    edit(project / "config.yaml", "embedder.py:MeanColor", "embedder.py:Mended")
    run_well(project, "retry")
    edit(project / "config.yaml", "embedder.py:Mended", "embedder.py:Blind")
    run_well(project, "--config", "max_failed_fraction=1")
    edit(project / "config.yaml", "embedder.py:Blind", "embedder.py:Mended")
    run_well(project, "retry")  # the shard and the class are those of the first retry, the ledger is not
    assert read_retried(project) == {"b": [[f"{number:04}" for number in range(20)], []]}


@pytest.mark.parametrize("way", ["no sample failed", "no run yet"])
def test_where_nothing_failed_nothing_is_done(project, way):
    if way == "no run yet":
        shutil.rmtree(project / "results")
    edit(project / "config.yaml", "data/*.tar", "data/a.tar")
    assert "rule embed" not in run_well(project, "retry")
    assert not (project / "results/retried").exists()
