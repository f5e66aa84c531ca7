"""Results whose record is lost: what their footers say is believed, and nothing is made again without a reason."""

import os
import shutil
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
from support.tools import ROOT
from support.workflow import (
    edit,
    find_planned,
    make_shard,
    read_colors,
    run_snakemake,
    run_well,
    snakemake_environment,
)

from embedders.output.hashes import Hashes
from embedders.output.record import Record
from embedders.planning.folder import compare_folder

BRIGHTNESS = f"scores:\n  - class: {ROOT}/examples/brightness.py:Brightness\n"


@pytest.fixture(scope="module")
def scored(finished, tmp_path_factory):
    """A finished run with scores and a shard that was retried."""
    folder = shutil.copytree(finished, tmp_path_factory.mktemp("scored") / "project")
    with (folder / "config.yaml").open("a") as file:
        file.write(f"max_failed_fraction: 1\n{BRIGHTNESS}")
    make_shard(folder / "data/c.tar", ["red", "blue"], damaged=[0])
    run_well(folder)
    run_well(folder, "retry")
    return folder


@pytest.fixture
def project(scored, tmp_path):
    return shutil.copytree(scored, tmp_path / "project")


def list_files(folder):
    """Each file of the results by its path, with what changes if it is made again."""
    return {
        str(path.relative_to(folder)): (path.stat().st_ino, path.stat().st_mtime_ns)
        for kind in ("embeddings", "ledger", "scores", "retried")
        for path in (folder / kind).rglob("*.parquet")
    }


def test_a_run_whose_record_is_removed_makes_nothing_again(project):
    results, before = project / "results", list_files(project / "results")
    assert len(before) == 3 + 3 + 3 + 4
    shutil.rmtree(results / "record")
    printed = run_well(project, "-n")
    assert "8 outputs had no record; adopted from their footers" in printed  # 3 of vectors, 3 of scores, 2 retried
    assert "Nothing to be done" in printed and "belong to no shard" not in printed
    printed = run_well(project)
    assert "Nothing to be done" in printed and "no record" not in printed
    assert list_files(results) == before
    assert "Nothing to be done" in run_well(project, "retry")

    shutil.rmtree(results / "record")
    make_shard(project / "data/d.tar", ["red"])
    printed = run_well(project)
    assert "8 outputs had no record" in printed and printed.count("rule embed:") == 1
    assert {path: made for path, made in list_files(results).items() if path in before} == before


def test_another_model_embeds_everything_again_also_without_a_record(project):
    shutil.rmtree(project / "results/record")
    edit(project / "config.yaml", "MeanColor", "Other")
    printed = run_well(project, "-n")
    assert "embeddings: 3 are made again: changed since: class" in printed
    assert "3 outputs had no record; adopted" in printed  # the scores
    assert printed.count("rule embed:") == 3
    edit(project / "config.yaml", "Other", "MeanColor")
    assert "Nothing to be done" in run_well(project, "-n")  # the entries are kept whatever the run asks for
    edit(project / "beside.py", "1", "2")
    shutil.rmtree(project / "results/record")
    run_well(project)
    assert read_colors(project / "results/embeddings/c.parquet") == [[0, 0, 2]]
    assert "Nothing to be done" in run_well(project, "-n")


def test_a_folder_that_was_copied_without_its_record_and_hidden_files_is_continued(project, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    for name in ("data", "embedder.py", "beside.py", "weights.bin", "config.yaml"):
        (shutil.copytree if (project / name).is_dir() else shutil.copy)(project / name, other / name)
    ignore = shutil.ignore_patterns(".*", "record", "summary.json")
    shutil.copytree(project / "results", other / "results", ignore=ignore)
    for path in (other / "data").iterdir():
        os.utime(path)  # the times of a copy, which no footer knows
    make_shard(other / "data/d.tar", ["green"])
    before = list_files(other / "results")
    printed = run_well(other)
    assert "8 outputs had no record; adopted from their footers" in printed
    assert "5 shards were touched" in printed
    assert {path: made for path, made in list_files(other / "results").items() if path in before} == before
    assert (other / "results/embeddings/d.parquet").exists()


def test_a_shard_that_changed_meanwhile_is_embedded_again_however_it_is_dated(project):
    shard = project / "data/a.tar"
    before, seconds = shard.read_bytes(), shard.stat().st_mtime_ns
    make_shard(shard, ["blue", "green", "red"])
    assert shard.stat().st_size == len(before)
    os.utime(shard, ns=(seconds + 1, seconds + 1))
    shutil.rmtree(project / "results/record")
    printed = run_well(project, "-n")
    assert "embeddings: 1 is made again: the content of the tar changed" in printed
    assert find_planned(project) == {"a"}
    shard.write_bytes(before)
    assert find_planned(project) == set()  # by its content, because no footer knows this time


def cut(path):
    os.truncate(path, path.stat().st_size - 20)


def cut_vectors(results):
    cut(results / "embeddings/a.parquet")


def cut_ledger(results):
    cut(results / "ledger/a.parquet")


def take_the_ledger_of_another(results):
    shutil.copy(results / "ledger/b.parquet", results / "ledger/a.parquet")


def take_the_files_of_another(results):
    for kind in ("embeddings", "ledger"):
        shutil.copy(results / kind / "b.parquet", results / kind / "a.parquet")


def forget_the_recipe(results):
    for kind in ("embeddings", "ledger"):
        path = results / f"{kind}/a.parquet"
        stored = pq.read_metadata(path).metadata[b"tarquet"].replace(b'"recipe": {', b'"recipe": null, "was": {')
        pq.write_table(pq.read_table(path).replace_schema_metadata({b"tarquet": stored}), path)


INCOMPLETE = "no record, and the file or its ledger is missing, incomplete or of another version"
BROKEN = [
    (cut_vectors, INCOMPLETE),
    (cut_ledger, INCOMPLETE),
    (take_the_ledger_of_another, INCOMPLETE),
    (take_the_files_of_another, "no record, and the footer names another shard"),
    (forget_the_recipe, "no record, and the footer does not say how"),
]


@pytest.mark.parametrize(("break_it", "why"), BROKEN)
def test_what_cannot_be_adopted_is_out_of_date_and_the_reason_is_said(project, break_it, why, monkeypatch):
    monkeypatch.chdir(project)
    record, said = Record("results"), []
    recipes = {"embeddings": record.recipes[record.origins["embeddings/a"].recipe]}
    shards = {name: f"data/{name}.tar" for name in "abc"}
    assert not compare_folder("results", shards, recipes, Hashes("results/record/hashes.json"), said.append).stale
    shutil.rmtree("results/record")
    break_it(project / "results")
    found = compare_folder("results", shards, recipes, Hashes("results/record/hashes.json"), said.append)
    assert found.stale == {"embeddings/a": why}
    assert said == ["4 outputs had no record; adopted from their footers"]
    assert set(Record("results").origins) == {
        f"{place}embeddings/{name}" for place in ("", "retried/") for name in "bc"
    }


def test_results_of_a_version_with_other_columns_are_out_of_date_and_the_reason_is_said(project, monkeypatch):
    monkeypatch.chdir(project)
    record = Record("results")
    recipe = record.recipes[record.origins["embeddings/a"].recipe]
    recipes = {"embeddings": recipe | {"schema_version": recipe["schema_version"] + 1}}
    found = compare_folder("results", {"a": "data/a.tar"}, recipes, Hashes("results/record/hashes.json"), print)
    assert found.stale["embeddings/a"] == "made by a version of tarquet whose files have other columns"


def test_a_truncated_output_without_a_record_is_embedded_again(project):
    shutil.rmtree(project / "results/record")
    cut_vectors(project / "results")
    printed = run_well(project)
    assert f"embeddings: 1 is made again: {INCOMPLETE}" in printed
    assert printed.count("rule embed:") == 1
    assert read_colors(project / "results/embeddings/a.parquet") == [[1, 0, 0], [0, 1, 0], [0, 0, 1]]
    assert "Nothing to be done" in run_well(project)


def test_scores_of_other_vectors_are_not_adopted(project):
    path = project / "results/embeddings/a.parquet"
    table = pq.read_table(path)
    seconds = path.stat().st_mtime_ns
    content = path.read_bytes()
    vector = np.asarray(table["image_embedding"][0].as_py(), np.float32).tobytes()
    assert vector in content
    path.write_bytes(content.replace(vector, vector[::-1]))
    os.utime(path, ns=(seconds, seconds))
    shutil.rmtree(project / "results/record")
    printed = run_well(project, "-n")
    assert (
        "scores/brightness: 1 is made again: no record, and the vectors are not those that were scored" in printed
        or ("scores: 1 is made again: no record, and the vectors are not those that were scored" in printed)
    )
    assert printed.count("rule score:") == 1 and "rule embed:" not in printed


def test_a_plan_needs_no_pyarrow_unless_the_record_has_gaps(project):
    hidden = project / "hidden"
    (hidden / "pyarrow").mkdir(parents=True)
    (hidden / "pyarrow/__init__.py").write_text(
        "raise ModuleNotFoundError('No module named pyarrow', name='pyarrow')"
    )
    environment = snakemake_environment()
    environment["PYTHONPATH"] = f"{hidden}{os.pathsep}{environment['PYTHONPATH']}"
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), "-n"]
    options = {
        "cwd": project,
        "env": environment,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.STDOUT,
        "text": True,
    }
    assert "Nothing to be done" in subprocess.run(command, **options).stdout
    shutil.rmtree(project / "results/record")
    printed = subprocess.run(command, **options).stdout
    assert (
        "embeddings: 3 are made again: no record, and Snakemake's Python has no pyarrow to read the footers"
        in printed
    )
    assert "Nothing to be done" in run_snakemake(project, "-n").stdout
