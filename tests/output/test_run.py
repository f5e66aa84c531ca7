"""A finished run is opened as one set of rows if all its shards come from one model, wherever its files were."""

import pytest
from support.results import make_run

from embedders.errors import ConfigError, ShardError
from embedders.output.run import open_run

MODEL = {"class_path": "my.py:Mine", "args": {"weights": "w.pt", "n": 1}, "model_name": "w.pt"}
MOVED = {"class_path": "/my/my.py:Mine", "args": {"weights": "/other/w.pt", "n": 1}, "model_name": "/other/w.pt"}


def add_shard(folder, shard, **made):
    """Add a shard to the run, and say that it has these two."""
    make_run(folder, {shard: 3}, **made)
    (folder / "run_shards.json").write_text('{"a": "a.tar", "b": "b.tar"}')


def test_a_model_whose_files_were_moved_is_the_same_model(tmp_path):
    add_shard(tmp_path, "a", **MODEL)
    add_shard(tmp_path, "b", **MOVED)
    run = open_run(tmp_path)
    assert (run.rows, run.starts, run.total) == ({"a": 3, "b": 3}, {"a": 0, "b": 3}, 6)


def test_a_model_with_batches_of_another_size_is_the_same_model(tmp_path):
    add_shard(tmp_path, "a", **MODEL | {"args": {"n": 1, "batch_size": 2, "num_threads_per_worker": 3}})
    add_shard(tmp_path, "b", **MODEL | {"args": {"n": 1, "batch_size": 4}})
    assert open_run(tmp_path).total == 6


@pytest.mark.parametrize(
    ("other", "what"),
    [
        ({"class_path": "my.py:Other"}, "class is 'my.py:Other', but 'my.py:Mine' in"),
        ({"args": {"weights": "w.pt", "n": 2}}, "args is {'weights': 'w.pt', 'n': 2}, but"),
        ({"source_sha256": "1"}, "source_sha256 is '1', but '0"),
        ({"preprocessing": {"background": "black"}}, "preprocessing is {'background': 'black'}, but"),
    ],
)
def test_shards_of_two_models_are_refused(tmp_path, other, what):
    add_shard(tmp_path, "a", **MODEL)
    add_shard(tmp_path, "b", **MODEL | other)
    with pytest.raises(ShardError, match=rf"b\.parquet': its {what}.*; expected the vectors of one model"):
        open_run(tmp_path)


@pytest.mark.parametrize("columns", [({}, {"n": "int64"}), ({"n": "int64"}, {}), ({"n": "int64"}, {"n": "string"})])
def test_shards_with_other_columns_are_refused(tmp_path, columns):
    for shard, its in zip("ab", columns, strict=True):
        add_shard(tmp_path, shard, columns=its, fields=lambda shard, n: {"n": n})
    with pytest.raises(ShardError, match=r"b\.parquet': its list of columns is {.*, with the same columns;"):
        open_run(tmp_path)


def test_the_order_of_the_columns_may_differ(tmp_path):
    for shard, names in zip("ab", ("mn", "nm"), strict=True):
        add_shard(tmp_path, shard, columns=dict.fromkeys(names, "int64"), fields=lambda shard, n: {"n": n, "m": n})
    assert open_run(tmp_path).total == 6


def test_a_run_that_is_not_finished_is_refused(tmp_path):
    add_shard(tmp_path, "a", **MODEL)
    with pytest.raises(ConfigError, match="1 of its 2 shards have no vectors, such as 'b'; expected a finished run"):
        open_run(tmp_path)
    with pytest.raises(ConfigError, match=r"it has no readable run_shards\.json"):
        open_run(tmp_path / "none")
