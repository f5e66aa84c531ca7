import json

import pytest
from support.results import write_shard

from embedders.errors import ShardError
from embedders.output.summary import find_failed_shards, summarize_run, write_summary


def test_totals_a_histogram_and_the_first_names(tmp_path):
    write_shard(tmp_path, "a", 3, [("x", "undecodable"), ("y", "bad_name")])
    write_shard(tmp_path, "deep/b", 0, [(str(n), "undecodable") for n in range(9)])
    write_shard(tmp_path, "c", 4, [])
    summary = summarize_run(tmp_path, ["a", "deep/b", "c"])
    assert (summary.shards, summary.samples, summary.embedded, summary.failed) == (3, 18, 7, 11)
    assert list(summary.failures.items()) == [("undecodable", 10), ("bad_name", 1)]
    assert len(summary.first_failed["undecodable"]) == 5
    assert summary.first_failed["undecodable"][0] == f"{tmp_path}/ledger/a.parquet: 'x': x is bad"
    lines = summary.describe().splitlines()
    assert lines[0] == "3 shards: 18 samples, 7 embedded, 11 failed"
    assert summary.seconds == {"waiting_for_images": 4.5, "model": 6.75}
    assert lines[-1].startswith("time: 4.5 s waiting for images, 6.8 s in the model; the model is the limit")
    write_summary(summary, tmp_path / "summary.json")
    assert json.loads((tmp_path / "summary.json").read_text())["embedded"] == 7


def test_a_sum_that_does_not_come_out_is_an_error(tmp_path):
    write_shard(tmp_path, "a", 3, [("x", "undecodable")], samples=5)
    with pytest.raises(ShardError, match="5 samples, but 3 rows and 1 failed"):
        summarize_run(tmp_path, ["a"])


def test_vectors_of_another_type_are_an_error(tmp_path):
    write_shard(tmp_path, "a", 1, [])
    write_shard(tmp_path, "b", 1, [], dimension=3)
    with pytest.raises(ShardError, match=r"\[3\], but .*\[2\] in other shards"):
        summarize_run(tmp_path, ["a", "b"])


@pytest.mark.parametrize("key", ["class", "args", "source_sha256", "weights_sha256"])
def test_shards_of_two_models_are_an_error_that_names_those_which_differ(tmp_path, key):
    model = {"class": "my.py:Mine", "args": {"weights": "w.pt", "n": 1}, "source_sha256": "1", "weights_sha256": "2"}
    for name in "abd":
        write_shard(tmp_path, name, 1, [], embedder=model)
    elsewhere = {"class": "/my/my.py:Mine", "args": {"weights": "/other/w.pt", "n": 1}}
    write_shard(tmp_path, "e", 1, [], embedder=model | elsewhere)
    write_shard(tmp_path, "c", 1, [], embedder=model | {key: {"n": 2} if key == "args" else "other"})
    assert summarize_run(tmp_path, ["a", "b", "d", "e"]).embedded == 4
    with pytest.raises(ShardError, match=rf"shards of 2 models: other than most are 'c' \({key}\)"):
        summarize_run(tmp_path, ["a", "b", "c", "d"])


def test_a_shard_that_left_nothing_is_an_error(tmp_path):
    write_shard(tmp_path, "a", 1, [])
    with pytest.raises(ShardError, match=r"none\.parquet"):
        summarize_run(tmp_path, ["a", "none"])


def test_shards_with_failed_samples_are_found(tmp_path):
    write_shard(tmp_path, "a", 1, [("x", "undecodable")])
    write_shard(tmp_path, "b", 1, [])
    assert find_failed_shards(str(tmp_path / "ledger"), ["a", "b", "not run yet"]) == ["a"]
