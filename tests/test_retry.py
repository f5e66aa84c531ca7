"""`snakemake retry` by real runs: it embeds what failed, and touches nothing else."""

import shutil

import pyarrow.parquet as pq
import pytest
from test_workflow import CONFIG, EMBEDDER, edit, make_shard, read_colors, run_well
from tools import run_cli

# With `mend`, what was undecodable becomes grey.
MENDED = """
class Mended(MeanColor):
    def decode(self, encoded):
        try:
            return super().decode(encoded)
        except Exception:
            return torch.full((3, 224, 224), 0.5)
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    make_shard(folder / "data/a.tar")
    make_shard(folder / "data/b.tar", ["blue"] * 12, damaged=[3])
    make_shard(folder / "data/c.tar", ["red"] * 20, damaged=[0, 19])
    (folder / "embedder.py").write_text(EMBEDDER + MENDED)
    (folder / "beside.py").write_text("SCALE = 1\n")
    (folder / "weights.bin").write_bytes(b"some weights")
    (folder / "config.yaml").write_text(CONFIG)
    run_well(folder)
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
    assert read_retried(project) == {"b": [["0003"], []], "c": [["0000", "0019"], []]}
    assert read_colors(project / "results/retried/embeddings/b.parquet") == [[0.5, 0.5, 0.5]]
    assert list_files(project) == before
    assert "Nothing to be done" in run_well(project, "-n", "retry")
    outputs = sorted((project / "results/retried/embeddings").iterdir())
    verified = run_cli("verify", *(path.relative_to(project) for path in outputs), "--device", "cpu", cwd=project)
    assert verified.stdout.count("sound: ") == 2, verified.stdout + verified.stderr


def test_the_first_run_and_its_retry_together_hold_every_sample_once(project):
    edit(project / "config.yaml", "embedder.py:MeanColor", "embedder.py:Mended")
    run_well(project, "retry")
    schemas, keys = set(), []
    for folder in ("embeddings", "retried/embeddings"):
        table = pq.read_table(project / "results" / folder / "c.parquet")
        schemas.add(str(table.schema))
        keys += table["key"].to_pylist()
    assert len(schemas) == 1
    assert sorted(keys) == [f"{number:04}" for number in range(20)]


def test_what_fails_again_is_named_again(project):
    before = list_files(project)
    run_well(project, "retry")  # the same embedder
    assert read_retried(project) == {"b": [[], ["0003"]], "c": [[], ["0000", "0019"]]}
    assert pq.read_table(project / "results/retried/ledger/b.parquet")["kind"].to_pylist() == ["undecodable"]
    assert list_files(project) == before


def test_a_fix_of_the_source_retries_the_retry(project):
    run_well(project, "retry")
    edit(
        project / "embedder.py",
        "    def embed(self",
        "    decode = lambda *_: torch.zeros(3, 8, 8)\n\n    def embed(self",
    )
    run_well(project, "retry")
    assert read_retried(project) == {"b": [["0003"], []], "c": [["0000", "0019"], []]}


def test_where_nothing_failed_there_is_nothing_to_do(project):
    make_shard(project / "data/b.tar", ["blue"] * 12)
    make_shard(project / "data/c.tar", ["red"] * 20)
    run_well(project)
    assert "Nothing to be done" in run_well(project, "retry")
    assert not (project / "results/retried").exists()


def test_a_ledger_that_changed_is_retried_anew_and_alone(project):
    edit(project / "config.yaml", "embedder.py:MeanColor", "embedder.py:Mended")
    run_well(project, "retry")
    untouched = (project / "results/retried/embeddings/c.parquet").stat().st_mtime_ns
    edit(project / "config.yaml", "embedder.py:Mended", "embedder.py:MeanColor")
    make_shard(project / "data/b.tar", ["blue"] * 12, damaged=[5])
    run_well(project)
    edit(project / "config.yaml", "embedder.py:MeanColor", "embedder.py:Mended")
    run_well(project, "retry")
    assert read_retried(project) == {"b": [["0005"], []], "c": [["0000", "0019"], []]}
    assert (project / "results/retried/embeddings/c.parquet").stat().st_mtime_ns == untouched


def test_before_the_first_run_there_is_nothing_to_retry(project):
    shutil.rmtree(project / "results")
    assert "Nothing to be done" in run_well(project, "retry")
