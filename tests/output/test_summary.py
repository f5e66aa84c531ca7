import json
from dataclasses import replace

import pyarrow.parquet as pq
import pytest
from support.results import write_shard

from embedders.errors import ShardError
from embedders.output.provenance import EmbedderRecord
from embedders.output.summary import find_failed_shards, summarize_run, write_summary
from embedders.report.findings import judge_run


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
    assert lines[-2].startswith("time: 4.5 s waiting for images, 6.8 s in the model; the model is the limit")
    write_summary(summary, tmp_path / "summary.json")
    assert json.loads((tmp_path / "summary.json").read_text())["embedded"] == 7


def test_columns_that_are_null_throughout_shards_are_counted_and_said(tmp_path):
    write_shard(tmp_path, "a", 3, [], null_columns=["captoin", "b"])
    write_shard(tmp_path, "b", 3, [], null_columns=["captoin"])
    write_shard(tmp_path, "c", 3, [])
    summary = summarize_run(tmp_path, ["a", "b", "c"])
    assert summary.null_columns == {"captoin": 2, "b": 1}
    line = "null in every row: 'captoin' in 2 of 3 shards, 'b' in 1 of 3 shards; check the names in metadata_columns"
    assert f"  {line}" in summary.describe().splitlines()
    write_summary(summary, tmp_path / "summary.json")
    assert json.loads((tmp_path / "summary.json").read_text())["null_columns"] == {"captoin": 2, "b": 1}
    assert f"Columns {line}." in [finding.text for finding in judge_run(summary, 0)]


def test_a_footer_without_the_fields_of_later_versions_is_read(tmp_path):
    write_shard(tmp_path, "a", 3, [("x", "undecodable")], embedded=3)
    path = tmp_path / "embeddings/a.parquet"
    stored = json.loads(pq.read_metadata(path).metadata[b"tarquet"])
    for new in ("null_columns", "image_suffix", "remarks", "recipe", "retried_sha256"):
        del stored[new]
    del stored["embedder"]["notes"]
    assert set(stored) == {
        *("schema_version", "embedder", "classifiers", "max_batch_size", "embedding_dtype", "id_col", "shard"),
        *("ledger", "is_retry", "samples", "embedded", "failed"),
    }
    assert set(stored["embedder"]) == {
        *("class", "args", "model_name", "source_sha256", "weights_sha256", "preprocessing", "device", "versions"),
    }
    pq.write_table(pq.read_table(path).replace_schema_metadata({b"tarquet": json.dumps(stored)}), path)
    summary = summarize_run(tmp_path, ["a"])
    assert (summary.embedded, summary.failures, summary.null_columns) == (3, {"undecodable": 1}, {})


def test_a_sum_that_does_not_come_out_is_an_error(tmp_path):
    write_shard(tmp_path, "a", 3, [("x", "undecodable")], samples=5)
    with pytest.raises(ShardError, match="5 samples, but 3 rows and 1 failed"):
        summarize_run(tmp_path, ["a"])


def test_a_file_that_was_renamed_is_an_error(tmp_path):
    for shard in "ab":
        write_shard(tmp_path, shard, 3, [])
    (tmp_path / "embeddings/a.parquet").rename(tmp_path / "embeddings/b.parquet")
    write_shard(tmp_path, "a", 3, [])
    with pytest.raises(ShardError, match=r"b\.parquet': its rows are of the shard 'a'; expected 'b'; was the file"):
        summarize_run(tmp_path, ["a", "b"])


def test_vectors_of_another_type_are_an_error(tmp_path):
    write_shard(tmp_path, "a", 1, [])
    write_shard(tmp_path, "b", 1, [], dimension=3)
    with pytest.raises(ShardError, match=r"\[3\], but .*\[2\] in other shards"):
        summarize_run(tmp_path, ["a", "b"])


@pytest.mark.parametrize(
    ("key", "value"),
    [("class_path", "my.py:Other"), ("args", {"n": 2}), ("source_sha256", "other"), ("weights_sha256", "other")],
)
def test_shards_of_two_models_are_an_error_that_names_those_which_differ(tmp_path, key, value):
    model = EmbedderRecord("my.py:Mine", {"weights": "w.pt", "n": 1}, "mine", "1", "2", {}, "cpu", {})
    elsewhere = {"class_path": "/my/my.py:Mine", "args": {"weights": "/other/w.pt", "n": 1}}
    for name in "abd":
        write_shard(tmp_path, name, 1, [], embedder=model)
    write_shard(tmp_path, "e", 1, [], embedder=replace(model, **elsewhere))
    write_shard(tmp_path, "c", 1, [], embedder=replace(model, **{key: value}))
    assert summarize_run(tmp_path, ["a", "b", "d", "e"]).embedded == 4
    changed = key.removesuffix("_path")
    with pytest.raises(ShardError, match=rf"shards of 2 models: unlike most are 'c' \({changed}\)"):
        summarize_run(tmp_path, ["a", "b", "c", "d"])


def test_a_shard_that_left_nothing_is_an_error(tmp_path):
    write_shard(tmp_path, "a", 1, [])
    with pytest.raises(ShardError, match=r"none\.parquet"):
        summarize_run(tmp_path, ["a", "none"])


def test_shards_with_failed_samples_are_found(tmp_path):
    write_shard(tmp_path, "a", 1, [("x", "undecodable")])
    write_shard(tmp_path, "b", 1, [])
    assert find_failed_shards(str(tmp_path / "ledger"), ["a", "b", "not run yet"]) == ["a"]
