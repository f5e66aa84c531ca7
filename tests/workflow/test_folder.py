"""The output folder knows itself: what is out of date in it is made again from wherever a run starts."""

import json
import os
import shutil
import socket
import time

import pandas as pd
import pytest
from support.tools import run_cli
from support.workflow import (
    edit,
    find_planned,
    make_shard,
    read_colors,
    read_results,
    run_snakemake,
    run_well,
    start_held_run,
)

CHANGES = {
    "args": ("config.yaml", "weights.bin}", "weights.bin, title: color}"),
    "source": ("beside.py", "1", "2"),
    "dtype": ("config.yaml", "threads: 1", "threads: 1\nembedding_dtype: float16"),
    "weights": ("weights.bin", "some", "other"),
}


def go_as_it_is(project):
    return project, []


def go_by_another_spelling(project):
    return project, ["--config", "output_dir=./data/../results/"]


def go_by_an_absolute_path(project):
    return project, ["--config", f"output_dir={project}/results"]


def go_by_a_link(project):
    (project / "link").symlink_to("results")
    return project, ["--config", "output_dir=link"]


def go_without_snakemakes_records(project):
    shutil.rmtree(project / ".snakemake")
    return project, []


def go_from_another_folder(project):
    other = project.with_name("other")
    other.mkdir()
    for name in ("data", "embedder.py", "beside.py", "weights.bin", "config.yaml"):
        (shutil.copytree if (project / name).is_dir() else shutil.copy2)(project / name, other / name)
    return other, ["--config", f"output_dir={project}/results"]


@pytest.mark.parametrize(
    ("go", "change"),
    [
        (go_by_another_spelling, "args"),
        (go_by_an_absolute_path, "source"),
        (go_by_a_link, "dtype"),
        (go_without_snakemakes_records, "weights"),
        (go_from_another_folder, "source"),
    ],
)
def test_what_changed_is_embedded_again_and_nothing_else_from_wherever_a_run_starts(project, go, change):
    working, options = go(project)
    assert "Nothing to be done" in run_well(working, "-n", *options)
    edit(working / CHANGES[change][0], *CHANGES[change][1:])
    planned = run_well(working, "-n", *options)
    assert planned.count("rule embed:") == 2
    assert "embeddings: 2 are made again: changed since: " in planned


def test_after_touch_a_change_is_still_known_and_a_change_taken_back_costs_nothing(project):
    edit(project / "config.yaml", "MeanColor", "Other")
    run_well(project, "--touch")
    assert find_planned(project) == {"a", "b"}
    assert "changed since: class" in run_well(project, "-n")
    edit(project / "config.yaml", "Other", "MeanColor")
    assert find_planned(project) == set()


def test_a_run_from_another_folder_embeds_anew_what_it_changes_and_the_first_folder_knows(project):
    other, options = go_from_another_folder(project)
    edit(other / "beside.py", "1", "2")
    make_shard(other / "data/c.tar", ["red"])
    run_well(other, *options)
    assert [read_colors(project / f"results/embeddings/{name}.parquet")[0] for name in "ac"] == [[2, 0, 0]] * 2
    assert find_planned(project) == {"a", "b"}
    edit(project / "beside.py", "1", "2")
    assert find_planned(project) == set()


def test_a_shard_replaced_by_an_older_one_is_embedded_again_and_a_touched_one_is_not(project):
    data = project / "data"
    make_shard(data / "c.tar", ["red"] * 3)
    os.utime(data / "c.tar", (1e9, 1e9))  # older than the results, and of one size with the other
    run_well(project)
    weights = project / "weights.bin"
    weights.write_bytes(os.urandom(2 << 20))
    run_well(project)
    before = {path: path.stat().st_ino for path in (project / "results/embeddings").iterdir()}
    (data / "a.tar").touch()
    weights.touch()
    shutil.copy(data / "b.tar", data / "b.copy")
    (data / "b.copy").replace(data / "b.tar")
    assert "2 shards were touched" in run_well(project, "-n")
    assert "Nothing to be done" in run_well(project)
    assert before == {path: path.stat().st_ino for path in (project / "results/embeddings").iterdir()}

    (data / "a.tar").replace(data / "swap")
    (data / "c.tar").replace(data / "a.tar")
    (data / "swap").replace(data / "c.tar")
    assert find_planned(project) == {"a", "c"}
    run_well(project)
    assert read_colors(project / "results/embeddings/a.parquet") == [[1, 0, 0]] * 3


def test_a_shard_from_the_future_is_refused_before_the_first_job_and_told_what_to_do(project):
    make_shard(project / "data/c.tar", ["red"])
    os.utime(project / "data/c.tar", (time.time() + 9999,) * 2)
    done = run_snakemake(project)
    assert done.returncode != 0
    assert "'data/c.tar': dated in the future" in done.stdout and "run `touch data/c.tar`" in done.stdout
    assert "rule embed" not in done.stdout.partition("dated in the future")[2]
    (project / "data/c.tar").touch()
    run_well(project)


# What belongs to no shard of the run


def test_what_belongs_to_no_shard_is_named_everywhere_and_moved_away_on_request_only(project):
    make_shard(project / "data/c.tar", ["red"], damaged=[0])
    edit(project / "config.yaml", "report: false", "report: true\nmax_failed_fraction: 1")
    run_well(project)
    run_well(project, "retry")  # of b; c has no image that could be saved
    assert "strays" not in run_well(project, "-n")
    assert json.loads((project / "results/summary.json").read_text())["strays"] == {}

    (project / "data/c.tar").unlink()
    (project / "data/a.tar").rename(project / "data/d.tar")
    (project / "results/scores/old").mkdir(parents=True)
    shutil.copy(project / "results/ledger/b.parquet", project / "results/scores/old/b.parquet")
    make_shard(project / "data/b.tar", ["blue"] * 2)  # whole now: what was retried is no part of it
    shutil.rmtree(project / ".snakemake")
    printed = run_well(project)
    strays = {
        *("embeddings/a.parquet", "embeddings/c.parquet", "ledger/a.parquet", "ledger/c.parquet"),
        *(f"retried/{kind}/{name}.parquet" for kind in ("embeddings", "ledger") for name in "bc"),
        "scores/old/b.parquet",
    }
    named = [line for line in printed.splitlines() if " to no shard of this run" in line]
    assert [int(line.split()[0]) for line in named] == [7, 2]  # at the start, and those of b at the end
    summary = json.loads((project / "results/summary.json").read_text())
    assert set(summary["strays"]) == strays
    assert "9 files belong to no shard of this run" in (project / "results/report.html").read_text()
    assert len(pd.read_parquet(project / "results/embeddings")) > summary["embedded"]

    shown = run_cli("prune", project / "results")
    assert all(f"{path}: " in shown.stdout for path in strays)
    assert all((project / "results" / path).is_file() for path in strays)
    printed = run_well(project, "-F")
    assert printed.count(" to no shard of this run") == 1
    run_cli("prune", project / "results", "--move")
    assert not any((project / "results" / path).exists() for path in strays)
    (pruned,) = (project / "results/pruned").iterdir()
    assert {str(path.relative_to(pruned)) for path in pruned.rglob("*.parquet")} == strays
    assert "no shard of this run" not in run_well(project)
    assert len(pd.read_parquet(project / "results/embeddings")) == summary["embedded"] == 5
    assert json.loads((project / "results/summary.json").read_text())["strays"] == {}


def test_after_shards_were_moved_the_folder_names_their_new_places_and_nothing_is_embedded(project):
    before = read_results(project)
    (project / "data").rename(project / "elsewhere")
    edit(project / "config.yaml", "data/*.tar", "elsewhere/*.tar")
    assert find_planned(project) == set()
    run_well(project)
    assert json.loads((project / "results/run_shards.json").read_text())["a"] == "elsewhere/a.tar"
    changed = {path for path, content in read_results(project).items() if before[path] != content}
    assert changed == {"results/run_shards.json"}
    assert "Nothing to be done" in run_well(project, "--config", f"shards={project}/elsewhere/*.tar")
    verified = run_cli("verify", "results", cwd=project)
    assert verified.stdout.count("sound: ") == 2, verified.stdout + verified.stderr


@pytest.mark.parametrize("name", ["run_shards.json", "run_config.yaml", "summary.json", "record/hashes.json"])
def test_a_damaged_file_of_the_run_is_written_again_and_nothing_is_embedded(project, name):
    path = project / "results" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("{")
    if name == "summary.json":
        assert run_cli("report", "results", cwd=project).returncode == 0
    elif name.startswith("run_"):
        line = run_cli("prune", "results", cwd=project).stderr
        assert "cannot be read; expected what a run writes" in line and line.count("\n") == 1
    assert "rule embed:" not in run_well(project)
    assert path.read_text() != "{" or name == "record/hashes.json"
    assert "Nothing to be done" in run_well(project)


# One run at a time


def test_a_second_run_in_one_folder_is_refused_and_a_dead_one_gives_way(project):
    snakemake, job = start_held_run(project)
    other, options = go_from_another_folder(project)
    make_shard(other / "data/z.tar", ["red"])
    refused = run_snakemake(other, *options)
    assert refused.returncode != 0
    (line,) = [line for line in refused.stdout.splitlines() if "another run is using this folder" in line]
    assert f"process {snakemake.pid}, host {socket.gethostname()}" in line
    assert f"folder {project}" in line
    assert f"remove '{project}/results/record/run.json'" in line
    assert not (project / "results/embeddings/z.parquet").exists()
    run_well(other, "-n", *options)
    run_well(other, "--unlock", *options)

    snakemake.kill()
    os.kill(job, 9)
    snakemake.wait(300)
    run_well(other, *options)
    assert (project / "results/embeddings/z.parquet").exists()
    assert not (project / "results/record/run.json").exists()
