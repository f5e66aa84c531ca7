"""Real Snakemake runs: what is made, what reruns after which change, and what a failure or a kill leaves behind.

One run is made once and its folder copied, `.snakemake` included, for every test that starts from a finished run.
"""

import json
import os
import re
import shutil
import signal

import pyarrow.parquet as pq
import pytest
import yaml
from support.workflow import (
    CONFIG,
    edit,
    find_planned,
    make_shard,
    read_colors,
    run_snakemake,
    run_well,
    start_held_run,
)

# What a run makes


def test_a_run_makes_one_parquet_and_one_ledger_for_each_shard(finished):
    assert sorted(path.name for path in (finished / "results/embeddings").iterdir()) == ["a.parquet", "b.parquet"]
    assert read_colors(finished / "results/embeddings/a.parquet") == [[1, 0, 0], [0, 1, 0], [0, 0, 1]]
    table = pq.read_table(finished / "results/embeddings/a.parquet")
    assert table["key"].to_pylist() == ["0000", "0001", "0002"]
    assert table["color"].to_pylist() == ["red", "green", "blue"]
    failed = pq.read_table(finished / "results/ledger/b.parquet").to_pylist()
    assert [(row["key"], row["kind"]) for row in failed] == [("0003", "undecodable")]


def test_a_run_sums_up_what_was_embedded_and_what_failed(finished):
    summary = json.loads((finished / "results/summary.json").read_text())
    assert (summary["shards"], summary["samples"], summary["embedded"], summary["failed"]) == (2, 15, 14, 1)
    assert summary["failures"] == {"undecodable": 1}
    assert "0003" in summary["first_failed"]["undecodable"][0]
    assert "2 shards: 15 samples, 14 embedded, 1 failed" in (finished / "printed.txt").read_text()


def test_a_run_keeps_its_configuration_with_the_defaults_filled_in(finished):
    kept = yaml.safe_load((finished / "results/run_config.yaml").read_text())
    assert kept.items() >= yaml.safe_load(CONFIG).items()
    assert (kept["embedding_dtype"], kept["max_failed_fraction"], kept["id_col"]) == ("float32", 0.1, "__key__")


def test_a_run_leaves_a_log_and_a_benchmark_for_each_shard(finished):
    assert "12 samples, 11 embedded, 1 failed" in (finished / "results/logs/embed/b.log").read_text()
    assert (finished / "results/benchmarks/embed/a.tsv").read_text().startswith("s\t")


# What reruns


def test_nothing_is_to_be_done_after_a_run(project):
    assert "Nothing to be done" in run_well(project, "-n")


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("config.yaml", "MeanColor", "Other"),
        ("config.yaml", "weights.bin}", "weights.bin, title: color}"),
        ("config.yaml", "device: cpu", "device: cpu\nembedding_dtype: float16"),
        ("config.yaml", "device: cpu", "device: cpu\nid_col: color"),
        ("config.yaml", "device: cpu", "device: cpu\nimage_suffix: png"),
        ("config.yaml", "[color]", "{color: string, width: int64}"),
        ("weights.bin", "some", "other"),
        ("embedder.py", "* SCALE", "* SCALE * 2"),
        ("beside.py", "1", "2"),
    ],
    ids=[
        "class",
        "args",
        "dtype",
        "id_col",
        "image_suffix",
        "metadata_columns",
        "weights file",
        "source",
        "file beside the source",
    ],
)
def test_what_decides_the_vectors_reruns_every_shard(project, file, old, new):
    edit(project / file, old, new)
    assert find_planned(project) == {"a", "b"}


def test_what_does_not_decide_the_vectors_reruns_none(project):
    edit(project / "README.md", "my", "our")
    edit(
        project / "config.yaml",
        "device: cpu",
        "device: cpu\ngpu: 1 # a comment\nmem_mb: 500\nruntime: 5\nmax_failed_fraction: 0.5\njobs_per_gpu: 2",
    )
    edit(project / "config.yaml", "threads: 1", "threads: 2")
    edit(project / "config.yaml", "device: cpu", "device: auto")
    edit(project / "config.yaml", "weights.bin}", "weights.bin, batch_size: 3}")
    assert "Nothing to be done" in run_well(project, "-n", "--resources", "gpu=3")


def test_a_misspelled_argument_starts_no_job_and_removes_no_result(project):
    before = {path: path.read_bytes() for path in (project / "results/embeddings").glob("*.parquet")}
    assert len(before) == 2
    edit(project / "config.yaml", "weights.bin}", "weights.bin, tilte: color}")
    done = run_snakemake(project)
    assert done.returncode != 0
    assert "got an unexpected keyword argument 'tilte'" in done.stdout
    assert "no job was started, and the earlier results are kept" in done.stdout
    assert {path: path.read_bytes() for path in before} == before
    edit(project / "config.yaml", ", tilte: color}", "}")
    assert "Nothing to be done" in run_well(project)


def test_a_new_shard_and_a_changed_one_run_alone(project):
    make_shard(project / "data/c.tar", ["green"])
    make_shard(project / "data/a.tar", ["blue", "red"])
    assert find_planned(project) == {"a", "c"}


def test_a_shard_touched_but_not_changed_does_not_rerun(project):
    (project / "data/a.tar").touch()
    assert "Nothing to be done" in run_well(project, "-n")


# What is refused


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("threads: 1", "threads: 1\ngpus: 0", "config: unknown key 'gpus'; did you mean 'gpu'?"),
        ("data/*.tar", "data/z.tar", "shards: there is no file 'data/z.tar'"),
        ("data/*.tar", "elsewhere/*.tar", "shards: 'elsewhere/*.tar' matches no file"),
        ("embedder.py:", "model.py:", "embedder class 'model.py:MeanColor': there is no file 'model.py'"),
    ],
)
def test_a_wrong_configuration_is_refused_in_one_line(project, old, new, line):
    edit(project / "config.yaml", old, new)
    done = run_snakemake(project)
    assert done.returncode != 0
    assert line in done.stdout
    assert "Traceback" not in done.stdout


def test_a_config_file_on_the_command_line_takes_the_place_of_config_yaml(project):
    (project / "other.yaml").write_text(CONFIG.replace("{weights: weights.bin}", "{batch_size: 1}"))
    run_well(project, "-n", "--configfile", "other.yaml", "--config", "output_dir=elsewhere")
    (project / "other.yaml").write_text("shards: data/*.tar\n")
    assert "key 'embedder' is missing" in run_snakemake(project, "-n", "--configfile", "other.yaml").stdout


# What a failure or a kill leaves behind


def test_a_shard_that_fails_stops_no_other_and_alone_runs_again(project):
    make_shard(project / "data/b.tar", ["red"] * 4, damaged=[0, 1])
    make_shard(project / "data/c.tar", ["green"])
    done = run_snakemake(project)
    assert done.returncode != 0
    assert "error: data/b.tar: 2 of 4 samples failed" in done.stdout
    (line,) = re.findall(r"^failed: .*", done.stdout, re.MULTILINE)
    assert line.startswith("failed: data/b.tar: 2 of 4 samples failed")
    assert line.endswith(" (log: results/logs/embed/b.log)")
    assert read_colors(project / "results/embeddings/c.parquet") == [[0, 1, 0]]
    assert not (project / "results/embeddings/b.parquet").exists()
    assert not (project / "results/ledger/b.parquet").exists()

    make_shard(project / "data/b.tar", ["red"] * 4)
    assert find_planned(project) == {"b"}


def list_outputs_of_c(project):
    return sorted(path.name for folder in ("embeddings", "ledger") for path in project.glob(f"results/{folder}/c.*"))


def assert_complete(project):
    (project / "hold").unlink()
    run_well(project)
    assert list_outputs_of_c(project) == ["c.parquet", "c.parquet"]
    assert not list(project.glob("results/**/*.partial"))
    assert json.loads((project / "results/summary.json").read_text())["shards"] == 3


def test_a_job_killed_half_way_leaves_no_parquet_and_the_next_run_completes(project):
    snakemake, job = start_held_run(project)
    os.kill(job, signal.SIGKILL)
    assert snakemake.wait(300) != 0
    assert list_outputs_of_c(project) == []
    assert_complete(project)


def test_a_machine_that_dies_half_way_leaves_no_parquet_and_once_unlocked_the_next_run_completes(project):
    snakemake, job = start_held_run(project)
    snakemake.kill()
    snakemake.wait(300)
    os.kill(job, signal.SIGKILL)
    assert list_outputs_of_c(project) == []
    # Snakemake cannot tell a dead run's lock from a living one's, so it asks.
    assert "--unlock" in run_snakemake(project).stdout
    run_well(project, "--unlock")
    assert_complete(project)


# Names


def test_shards_of_any_name_and_folder_are_embedded_side_by_side(project):
    shutil.rmtree(project / "results")
    quoted = """it's "two" $HOME; words"""
    make_shard(project / "x/same.tar", ["red"])
    make_shard(project / "y/same.tar", ["green"])
    make_shard(project / f"my images/{quoted}.tar.gz", ["blue"])
    patterns = ["{x,y}/*.tar", "my images/*.tar.gz"]
    edit(project / "config.yaml", '"data/*.tar"', json.dumps(patterns))
    run_well(project)
    found = {
        str(path.relative_to(project / "results/embeddings")): read_colors(path)
        for path in (project / "results/embeddings").rglob("*.parquet")
    }
    assert found == {
        "x/same.parquet": [[1, 0, 0]],
        "y/same.parquet": [[0, 1, 0]],
        f"{quoted}.parquet": [[0, 0, 1]],
    }
