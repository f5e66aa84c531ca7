import numpy as np
import pytest
from support.results import make_provenance, make_rows, write_shard

from embedders.errors import ShardError
from embedders.output.columns import Columns
from embedders.output.writer import EmbeddingWriter
from embedders.report import subset
from embedders.report.subset import sample_vectors


def write_groups(path, groups, first=0):
    """Write row groups of these sizes; a vector is the number of its row."""
    with path.open("wb") as file:
        writer = EmbeddingWriter(file, "a", Columns().schema, "v", "float32")
        for rows in groups:
            numbers = np.arange(first, first + rows, dtype=np.float32)
            writer.write(make_rows(Columns(), [{"__key__": f"{number:.0f}"} for number in numbers]), numbers[:, None])
            writer._flush()
            first += rows
        writer.close(1, make_provenance(rows))


def test_a_small_run_is_taken_whole(tmp_path):
    write_groups(tmp_path / "a.parquet", [3, 4])
    write_groups(tmp_path / "b.parquet", [2], first=100)
    sample = sample_vectors(tmp_path, {"a": 7, "b": 2, "empty": 0}, 1)
    assert sample.is_whole
    assert [(name.shard, name.key) for name in sample.names[-3:]] == [("a", "6"), ("b", "100"), ("b", "101")]
    assert [f"{number:.0f}" for number in sample.vectors[:, 0]] == [name.key for name in sample.names]


def test_of_a_large_run_a_part_is_taken_and_only_some_groups_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(subset, "MAX_ROWS", 50)
    monkeypatch.setattr(subset, "MAX_GROUPS", 5)
    monkeypatch.setattr(subset, "MAX_SHARDS", 3)
    for number in range(9):
        write_groups(tmp_path / f"{number}.parquet", [20] * 4, first=number * 80)
    rows = {str(number): 80 for number in range(9)}
    sample = sample_vectors(tmp_path, rows, 1)
    assert (len(sample), sample.is_whole) == (50, False)
    assert len({name.shard for name in sample.names}) <= 3
    assert len({(name.shard, int(name.key) // 20) for name in sample.names}) == 5
    assert [name.key for name in sample.names] == [f"{number:.0f}" for number in sample.vectors[:, 0]]
    assert sample_vectors(tmp_path, rows, 1).names == sample.names
    assert sample_vectors(tmp_path, rows, 1, seed=1).names != sample.names


def test_what_small_groups_leave_goes_to_the_others(tmp_path, monkeypatch):
    monkeypatch.setattr(subset, "MAX_ROWS", 30)
    write_groups(tmp_path / "a.parquet", [2, 1, 100])
    sample = sample_vectors(tmp_path, {"a": 103}, 1)
    assert len(sample) == 30
    assert {"0", "1", "2"} <= {name.key for name in sample.names}


def test_a_run_without_a_vector_gives_an_empty_sample(tmp_path):
    sample = sample_vectors(tmp_path, {"a": 0}, 5)
    assert (sample.vectors.shape, sample.is_whole) == ((0, 5), True)


def test_a_file_that_is_cut_is_an_error(tmp_path):
    write_shard(tmp_path, "a", 5, [])
    whole = (tmp_path / "embeddings/a.parquet").read_bytes()
    (tmp_path / "embeddings/a.parquet").write_bytes(whole[:-9])
    with pytest.raises(ShardError, match=r"a\.parquet.*make it again"):
        sample_vectors(tmp_path / "embeddings", {"a": 5}, 2)
