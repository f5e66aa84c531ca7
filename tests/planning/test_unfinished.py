"""What a run says at its end of shards without results, and before a retry."""

import pytest

from embedders.planning.jobs import Jobs
from embedders.planning.unfinished import describe_failures, describe_old_totals, describe_retry


@pytest.fixture
def folder(tmp_path):
    """The folder of a run of which one of two shards has results."""
    for kind in ("embeddings", "ledger"):
        (tmp_path / kind).mkdir()
        (tmp_path / kind / "a.parquet").touch()
    return tmp_path


def test_totals_of_an_earlier_run_are_named_if_shards_have_no_vectors(folder):
    assert list(describe_old_totals(str(folder), "ab")) == []
    (folder / "summary.json").touch()
    assert list(describe_old_totals(str(folder), "a")) == []
    (line,) = describe_old_totals(str(folder), "ab")
    assert line == f"1 shard has no vectors now, but {folder}/summary.json is kept; it is of an earlier run"
    (folder / "report.html").touch()
    (line,) = describe_old_totals(str(folder), "abc")
    assert line.endswith(f"{folder}/summary.json and {folder}/report.html are kept; they are of an earlier run")


def test_a_retry_says_which_shards_it_leaves_out(folder):
    (line,) = describe_retry(str(folder), ["a", "b"], ["a"])
    assert line.startswith("retry: 1 of 2 shards have no results, such as 'b';")
    assert list(describe_retry(str(folder), ["a"], [])) == [
        "retry: no ledger names a failed sample; there is nothing to retry"
    ]
    assert list(describe_retry(str(folder), ["a"], ["a"])) == []


def test_an_error_that_many_shards_share_is_written_once(tmp_path):
    (tmp_path / "logs/embed").mkdir(parents=True)
    (tmp_path / "embeddings").mkdir()
    errors = {"a": "offline", "b": "offline", "c": "1 of 1 samples failed", "d": "offline", "e": "offline"}
    for shard, error in errors.items():
        (tmp_path / f"logs/embed/{shard}.log").write_text(f"error: {error}\n")
    (tmp_path / "embeddings/d.parquet").touch()
    (tmp_path / "logs/embed/e.log").unlink()  # its job never started
    jobs = Jobs(False, shards={shard: [shard] for shard in errors})
    lines = list(describe_failures(str(tmp_path), {shard: f"data/{shard}.tar" for shard in errors}, jobs, []))
    assert lines == [
        f"failed: data/a.tar: offline (log: {tmp_path}/logs/embed/a.log)",
        f"failed: data/b.tar: same as data/a.tar (log: {tmp_path}/logs/embed/b.log)",
        f"failed: data/c.tar: 1 of 1 samples failed (log: {tmp_path}/logs/embed/c.log)",
    ]
