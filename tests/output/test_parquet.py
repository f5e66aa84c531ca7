import io
import json
import re

import duckdb
import numpy as np
import pandas
import polars
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from support.results import make_provenance, make_rows

from embedders.errors import ConfigError, ShardError
from embedders.output.columns import Columns
from embedders.output.failed import FailedSample
from embedders.output.footers import describe_file
from embedders.output.parquet import read_account, read_ledger, read_vectors
from embedders.output.writer import EmbeddingWriter, write_ledger

PROVENANCE = make_provenance(5, failed={"ä": 1})


def write_file(path, rows=5, dimension=4, dtype="float32", columns=None, batch=2):
    columns = columns or Columns()
    vectors = np.arange(rows * dimension, dtype=np.float32).reshape(rows, dimension) / 8
    with path.open("wb") as file:
        writer = EmbeddingWriter(file, "a", columns.schema, "image_embedding", dtype)
        for start in range(0, rows, batch):
            part = vectors[start : start + batch]
            metadata = [{"__key__": f"k{start + n}", "id": start + n, "caption": "c"} for n in range(len(part))]
            writer.write(make_rows(columns, metadata), part)
        writer.close(dimension, PROVENANCE)
    return vectors


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_vectors_are_a_fixed_size_list_that_is_never_null(tmp_path, dtype):
    vectors = write_file(tmp_path / "e.parquet", dtype=dtype)
    table = pq.read_table(tmp_path / "e.parquet")
    field = table.schema.field("image_embedding")
    arrow = pa.float16() if dtype == "float16" else pa.float32()
    assert field.type == pa.list_(pa.field("element", arrow, nullable=False), 4)
    assert not field.nullable
    assert not table.schema.field("key").nullable
    assert np.array_equal(np.stack(table["image_embedding"].to_numpy()), vectors.astype(dtype))
    assert table["key"].to_pylist() == ["k0", "k1", "k2", "k3", "k4"]


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_pandas_polars_and_duckdb_read_it(tmp_path, dtype):
    path = tmp_path / "e.parquet"
    vectors = write_file(path, dtype=dtype).astype(dtype)
    assert np.array_equal(np.stack(pandas.read_parquet(path)["image_embedding"]), vectors)
    frame = polars.read_parquet(path)
    inner = polars.Float16 if dtype == "float16" else polars.Float32
    assert frame.schema["image_embedding"] == polars.Array(inner, 4)
    assert np.array_equal(frame["image_embedding"].to_numpy(), vectors)
    rows = duckdb.sql(f"select key, image_embedding::float[4] from '{path}'").fetchall()
    assert [key for key, _ in rows] == ["k0", "k1", "k2", "k3", "k4"]
    assert np.array_equal(np.array([vector for _, vector in rows]), vectors)
    distance = "array_distance(image_embedding::float[4], [1, 1.125, 1.25, 1.375]::float[4])"
    assert duckdb.sql(f"select key from '{path}' order by {distance} limit 1").fetchall() == [("k2",)]


def test_a_shard_without_a_row_has_the_same_schema(tmp_path):
    columns = Columns("id", {"caption": "string", "size": "int64"})
    write_file(tmp_path / "full.parquet", columns=columns)
    write_file(tmp_path / "empty.parquet", rows=0, columns=columns)
    full, empty = (pq.read_schema(tmp_path / name) for name in ("full.parquet", "empty.parquet"))
    assert full.equals(empty)
    assert pq.read_metadata(tmp_path / "empty.parquet").num_rows == 0
    both = pq.read_table([tmp_path / "full.parquet", tmp_path / "empty.parquet"])
    assert both.num_rows == 5
    assert (
        polars.read_parquet(tmp_path / "empty.parquet").schema
        == polars.read_parquet(tmp_path / "full.parquet").schema
    )


def test_vectors_are_stored_plain_and_words_compressed(tmp_path):
    write_file(tmp_path / "e.parquet")
    group = pq.read_metadata(tmp_path / "e.parquet").row_group(0)
    stored = {group.column(n).path_in_schema: group.column(n) for n in range(group.num_columns)}
    vectors = stored["image_embedding.list.element"]
    assert (vectors.compression, vectors.is_stats_set) == ("UNCOMPRESSED", False)
    assert not any("DICTIONARY" in encoding for encoding in vectors.encodings)
    assert stored["key"].compression == "ZSTD"


def test_the_pages_are_indexed_so_that_a_reader_can_fetch_a_few_rows(tmp_path):
    write_file(tmp_path / "e.parquet")
    group = pq.read_metadata(tmp_path / "e.parquet").row_group(0)
    stored = {group.column(n).path_in_schema: group.column(n) for n in range(group.num_columns)}
    assert all(column.has_offset_index for column in stored.values())
    assert stored["key"].has_column_index


def test_rows_are_flushed_in_groups(tmp_path, monkeypatch):
    monkeypatch.setattr("embedders.output.writer.BYTES_PER_GROUP", 6 * (4 * 4 + len("k0") + len("a")))
    vectors = write_file(tmp_path / "e.parquet", rows=20, batch=4)
    metadata = pq.read_metadata(tmp_path / "e.parquet")
    assert [metadata.row_group(n).num_rows for n in range(metadata.num_row_groups)] == [8, 8, 4]
    assert np.array_equal(read_vectors(str(tmp_path / "e.parquet"))[1], vectors)


def test_the_same_rows_give_the_same_bytes(tmp_path):
    for name in "ab":
        write_file(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_the_footer_says_how_the_file_was_made(tmp_path):
    write_file(tmp_path / "e.parquet")
    described = describe_file(str(tmp_path / "e.parquet"))
    assert (described.rows, described.shapes) == (5, {"image_embedding": (4,)})
    assert described.provenance == PROVENANCE
    assert described.as_json().items() >= PROVENANCE.as_json().items()


# Which values go beside the vectors.


def read_row(columns, **metadata):
    return make_rows(columns, [{"__key__": "k", **metadata}]).to_pylist()[0]


def find_wrong(columns, **metadata):
    """What is wrong with a sample between two good ones."""
    good = {"__key__": "good", "id": 1}
    rows, wrong = columns.read([good, {"__key__": "k", **metadata}, good])
    assert len(rows) == 3 and list(wrong) == [1]
    return wrong[1]


def test_by_default_the_key_is_the_only_column():
    assert read_row(Columns(), id=7, caption="c") == {"key": "k"}


def test_the_id_column_is_there_once_and_never_null():
    assert read_row(Columns("id"), id=7) == {"key": "k", "id": "7"}
    assert read_row(Columns("id", {"id": "int64"}), id=7) == {"key": "k", "id": 7}
    assert read_row(Columns("key"), key="of the json") == {"key": "of the json"}
    for id_col, nullable in (("__key__", []), ("id", ["key"]), ("key", [])):
        assert [field.name for field in Columns(id_col).schema if field.nullable] == nullable


@pytest.mark.parametrize("metadata", [{}, {"id": None}, {"other": 1}])
def test_a_sample_without_the_id_is_wrong_and_its_fields_are_named(metadata):
    fields = ", ".join(["__key__", *metadata])
    wrong = find_wrong(Columns("id"), **metadata)
    assert wrong == f"has no 'id' (id_col), or null there; its fields are: {fields}"


def test_listed_columns_are_strings_and_null_where_absent():
    columns = Columns("__key__", ["a", "b", "c", "d"])
    assert read_row(columns, a="x", b=1.5, c={"n": ["ä"]}) == {
        **{"key": "k", "a": "x", "b": "1.5"},
        **{"c": '{"n": ["\\u00e4"]}', "d": None},
    }


def test_mapped_columns_keep_their_types():
    columns = Columns("__key__", {"s": "string", "i": "int64", "f": "float64", "b": "bool"})
    row = read_row(columns, s="x", i=2**63 - 1, f=3, b=False)
    assert row == {"key": "k", "s": "x", "i": 2**63 - 1, "f": 3.0, "b": False}
    assert type(row["f"]) is float
    assert read_row(columns, i=512.0) == {
        "key": "k",
        "s": None,
        "i": 512,
        "f": None,
        "b": None,
    }
    assert read_row(columns) == {"key": "k", "s": None, "i": None, "f": None, "b": None}
    assert read_row(columns, i=np.int64(3), f=np.float32(0.5), b=np.bool_(True), s=np.int8(1)) == {
        **{"key": "k", "i": 3, "f": 0.5, "b": True, "s": "1"}
    }


def test_bytes_and_tensors_of_a_users_own_loader_are_their_text_and_numbers():
    columns = Columns("id", {"s": "string", "i": "int64", "deep": "string"})
    row = read_row(
        columns, id="ä".encode(), s=torch.tensor([1, 2]), i=torch.tensor(3), deep={"a": [b"x", np.ones(1)]}
    )
    assert row == {"key": "k", "id": "ä", "s": "[1, 2]", "i": 3, "deep": '{"a": ["x", [1.0]]}'}
    assert find_wrong(columns, id=1, s=b"\xff") == "s is b'\\xff'; expected string"


def test_a_text_that_is_not_a_number_is_missing():
    assert read_row(Columns("__key__", ["s"]), s=float("nan")) == {"key": "k", "s": None}
    assert "has no 'id' (id_col), or null there" in find_wrong(Columns("id"), id=float("inf"))


@pytest.mark.parametrize(
    ("type_name", "values"),
    [
        ("int64", [1.5, "1", True, 2**63, [1], 2.0**53, np.nan, np.inf]),
        ("float64", ["1", True, 10**400]),
        ("bool", [1, "true"]),
    ],
)
def test_a_value_of_another_type_is_wrong_and_named_with_its_column(type_name, values):
    for value in values:
        wrong = find_wrong(Columns("__key__", {"x": type_name}), x=value)
        assert re.fullmatch(rf"x is .{{1,60}}; expected {type_name}", wrong)


def test_metadata_that_json_cannot_hold_is_wrong():
    endless = []
    endless.append(endless)
    for columns in (Columns("__key__", ["x"]), Columns("__key__", "all")):
        assert "expected string" in find_wrong(columns, x=endless)


def test_all_metadata_is_one_column_of_json():
    row = read_row(Columns("id", "all"), id=1, deep={"a": [None]}, name="ä\ud800")
    assert list(row) == ["key", "id", "metadata"]
    assert json.loads(row["metadata"]) == {"id": 1, "deep": {"a": [None]}, "name": "ä\ud800"}


def test_half_a_surrogate_pair_can_be_stored(tmp_path):
    columns = Columns("id", ["caption"])
    row = read_row(columns, id="\udfff", caption="half \ud83d of a pair")
    assert row == {"key": "k", "id": "?", "caption": "half ? of a pair"}
    with (tmp_path / "e.parquet").open("wb") as file:
        writer = EmbeddingWriter(file, "a", columns.schema, "v", "float32")
        writer.write(make_rows(columns, [{"__key__": "k"} | row]), np.zeros((1, 2), np.float32))
        writer.close(2, PROVENANCE)


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ("some", "expected a list of fields"),
        (5, "expected a list of fields"),
        (None, "expected a list of fields"),
        ([1], "expected a list of fields"),
        (["key"], "set id_col: key"),
        ({"a": "int"}, "has the type 'int'; expected string, int64, float64, bool"),
        ({"a": None}, "has the type None"),
    ],
)
def test_columns_that_cannot_be_are_refused(columns, reason):
    with pytest.raises(ConfigError, match=reason):
        Columns("__key__", columns)


def test_an_id_that_is_called_as_the_column_of_all_metadata_is_refused():
    with pytest.raises(ConfigError, match="'metadata' is the column of metadata_columns: all; expected another"):
        Columns("metadata", "all")
    assert read_row(Columns("metadata", ["a"]), metadata="m", a=1) == {"key": "k", "metadata": "m", "a": "1"}


def test_a_vector_column_named_like_another_and_an_unknown_type_are_refused():
    with pytest.raises(ConfigError, match="'caption' would be there twice"):
        EmbeddingWriter(io.BytesIO(), "a", Columns("id", ["caption"]).schema, "caption", "float32")
    with pytest.raises(ConfigError, match="'float64'; expected float32 or float16"):
        EmbeddingWriter(io.BytesIO(), "a", Columns().schema, "v", "float64")


# The ledger's file.


def test_a_ledger_reads_back_as_it_was_written_an_empty_one_too(tmp_path):
    failed = [FailedSample("a", "undecodable", "bad", "a.jpg", 512), FailedSample("b", "not_loaded", "x")]
    for rows in (failed, []):
        with (tmp_path / "l.parquet").open("wb") as file:
            write_ledger(file, rows, PROVENANCE, {"model": 1.5})
        assert read_account(str(tmp_path / "l.parquet")) == (rows, {"model": 1.5}, None)
        assert pq.read_schema(tmp_path / "l.parquet").names == ["shard", "key", "kind", "message", "member", "offset"]


def test_files_that_are_missing_cut_or_not_ours_are_named(tmp_path):
    write_file(tmp_path / "e.parquet")
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "e.parquet").read_bytes()[:-20])
    (tmp_path / "text.parquet").write_bytes(b"no parquet")
    pq.write_table(pa.table({"a": [1]}), tmp_path / "other.parquet")
    for name in ("none.parquet", "cut.parquet", "text.parquet", "other.parquet"):
        for read in (describe_file, read_vectors, read_ledger):
            with pytest.raises(ShardError, match=f"{name}': {'no such file' if 'none' in name else ''}"):
                read(str(tmp_path / name))
