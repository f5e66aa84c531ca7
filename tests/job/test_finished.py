"""Finished outputs under a second name: taken by what decides their content, and by nothing else."""

import os
from pathlib import Path

import pytest
from support.tools import MEAN_COLOR

from embedders.job import finished
from embedders.job.finished import FinishedShards
from embedders.job.shard_job import ShardJob


@pytest.fixture
def job(tmp_path):
    (tmp_path / "a.tar").write_bytes(b"shard")
    job = ShardJob(str(tmp_path / "a.tar"), str(tmp_path / "out/a.parquet"), str(tmp_path / "ledger/a.parquet"))
    for output in job.outputs:
        Path(output).parent.mkdir()
        Path(output).write_text(output)
    return job


def open_store(tmp_path, class_path=MEAN_COLOR, args=None, **options):
    return FinishedShards(tmp_path / "store", class_path, args or {}, **{"id_col": "__key__"} | options)


def lose_outputs(job):
    for output in job.outputs:
        os.unlink(output)


def test_what_was_kept_is_taken_without_a_copy(tmp_path, job):
    inodes = [os.stat(output).st_ino for output in job.outputs]
    open_store(tmp_path).keep(job)
    lose_outputs(job)
    assert open_store(tmp_path).take(job)
    assert [os.stat(output).st_ino for output in job.outputs] == inodes
    assert [Path(output).read_text() for output in job.outputs] == job.outputs


@pytest.mark.parametrize("change", ["class", "args", "option", "content", "source", "nothing"])
def test_nothing_is_taken_that_was_made_otherwise(tmp_path, job, change):
    source = tmp_path / "my.py"
    source.write_text("class A: ...\nclass B: ...\n")
    open_store(tmp_path, f"{source}:A").keep(job)
    lose_outputs(job)
    if change == "content":
        Path(job.tar_path).write_bytes(b"another shard")
    if change == "source":
        source.write_text("class A: 'changed'\nclass B: ...\n")
    store = {
        "class": lambda: open_store(tmp_path, f"{source}:B"),
        "args": lambda: open_store(tmp_path, f"{source}:A", {"size": 2}),
        "option": lambda: open_store(tmp_path, f"{source}:A", id_col="id"),
    }.get(change, lambda: open_store(tmp_path, f"{source}:A"))()
    assert store.take(job, any_version=True) == (change == "nothing")
    assert all(os.path.exists(output) == (change == "nothing") for output in job.outputs)


def test_another_version_is_taken_only_where_any_will_do(tmp_path, job, monkeypatch):
    open_store(tmp_path).keep(job)
    lose_outputs(job)
    monkeypatch.setattr(finished, "_find_version", lambda package: "0.0")
    assert not open_store(tmp_path).take(job)
    assert open_store(tmp_path).take(job, any_version=True)
    assert [Path(output).read_text() for output in job.outputs] == job.outputs


def test_half_a_pair_is_not_taken_and_a_new_pair_replaces_the_old_one(tmp_path, job):
    store = open_store(tmp_path)
    store.keep(job)
    lose_outputs(job)
    kept = sorted((tmp_path / "store").iterdir())
    kept[1].unlink()
    assert not store.take(job)
    for output in job.outputs:
        Path(output).write_text("new")
    Path(job.tar_path).write_bytes(b"another shard")
    store.keep(job)
    assert len(list((tmp_path / "store").iterdir())) == 2


def test_a_file_system_without_hard_links_gets_a_copy(tmp_path, job, monkeypatch):
    def refuse(*_):
        raise OSError("no hard links here")

    monkeypatch.setattr(os, "link", refuse)
    open_store(tmp_path).keep(job)
    lose_outputs(job)
    assert open_store(tmp_path).take(job)
    assert [Path(output).read_text() for output in job.outputs] == job.outputs
