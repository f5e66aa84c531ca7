"""Columns of vectors: several vectors per image, and int8 with a scale for each, written and read by four readers."""

from math import prod

import duckdb
import numpy as np
import pandas
import polars
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.results import make_provenance, make_rows

from embedders.errors import ConfigError
from embedders.output.columns import Columns
from embedders.output.footers import describe_file
from embedders.output.parquet import read_groups, read_vectors
from embedders.output.vectors import LIMITS, VectorColumn, choose_column, find_columns, quantize, round_vectors
from embedders.output.writer import EmbeddingWriter

CHANCE = np.random.default_rng(0)


def write(path, vectors, dtype="float32", shapes=None, batch=3):
    """Write vectors of shape (rows, numbers) or (rows, parts, numbers), in batches."""
    shapes = shapes or {"v": vectors.shape[1:]}
    flat = vectors.reshape(len(vectors), sum(map(prod, shapes.values())))
    with path.open("wb") as file, EmbeddingWriter(file, "s", Columns().schema, "v", dtype) as writer:
        for start in range(0, len(vectors), batch):
            part = flat[start : start + batch]
            keys = [{"__key__": f"k{start + number}"} for number in range(len(part))]
            writer.write(make_rows(Columns(), keys), part, shapes)
        writer.close(shapes, make_provenance(len(vectors), embedding_dtype=dtype))


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_the_shape_of_several_vectors_comes_back_in_four_readers(tmp_path, dtype):
    path = tmp_path / "e.parquet"
    vectors = CHANCE.standard_normal((7, 3, 4)).astype(np.float32)
    write(path, vectors, dtype)
    stored = quantize(vectors)[0] if dtype == "int8" else vectors.astype(dtype)
    table = pq.read_table(path)
    inner = pa.list_(pa.field("element", getattr(pa, dtype)(), nullable=False), 4)
    assert table.schema.field("v").type == pa.list_(pa.field("element", inner, nullable=False), 3)
    assert not table.schema.field("v").nullable
    numbers = table["v"].combine_chunks().flatten().flatten().to_numpy(zero_copy_only=False)
    assert np.array_equal(numbers.reshape(7, 3, 4), stored)
    frame = polars.read_parquet(path)
    kind = {"float32": polars.Float32, "float16": polars.Float16, "int8": polars.Int8}[dtype]
    assert frame.schema["v"] == polars.Array(kind, (3, 4))
    assert np.array_equal(frame["v"].to_numpy(), stored)
    rows = duckdb.sql(f"select v, v[2] from '{path}'").fetchall()
    assert np.array_equal(np.array([row[0] for row in rows]), stored)
    assert np.array_equal(np.array([row[1] for row in rows]), stored[:, 1])
    parts = [np.stack(list(row)) for row in pandas.read_parquet(path)["v"]]
    assert np.array_equal(np.stack(parts), stored)
    if dtype == "int8":
        assert table.schema.field("v_scale").type == pa.list_(pa.field("element", pa.float32(), nullable=False), 3)
        assert np.array_equal(frame["v_scale"].to_numpy(), quantize(vectors)[1])


def test_numbers_take_their_own_size_however_deep_they_lie(tmp_path):
    vectors = CHANCE.standard_normal((500, 3, 40)).astype(np.float32)
    for dtype, size in [("float32", 4), ("float16", 2), ("int8", 1)]:
        write(tmp_path / "e.parquet", vectors, dtype, batch=500)
        group = pq.read_metadata(tmp_path / "e.parquet").row_group(0)
        stored = {group.column(n).path_in_schema: group.column(n) for n in range(group.num_columns)}
        column = stored["v.list.element.list.element"]
        assert (column.compression, column.is_stats_set) == ("UNCOMPRESSED", False)
        # A plain int8 of Parquet has 4 bytes, and with a dictionary 1.
        assert any("DICTIONARY" in encoding for encoding in column.encodings) == (dtype == "int8")
        assert column.total_compressed_size <= 1.2 * size * vectors.size
    assert stored["v_scale.list.element"].compression == "UNCOMPRESSED"


def test_a_batch_of_large_rows_fills_several_row_groups(tmp_path, monkeypatch):
    monkeypatch.setattr("embedders.output.writer.BYTES_PER_GROUP", 3 * 4 * 3 * 4)
    vectors = CHANCE.standard_normal((20, 3, 4)).astype(np.float32)
    write(tmp_path / "e.parquet", vectors, batch=16)
    metadata = pq.read_metadata(tmp_path / "e.parquet")
    assert [metadata.row_group(n).num_rows for n in range(metadata.num_row_groups)] == [3, 3, 3, 3, 3, 4, 1]
    assert np.array_equal(read_vectors(str(tmp_path / "e.parquet"))[1], vectors.reshape(20, -1))


def test_columns_of_both_kinds_are_found_by_name_and_shape(tmp_path):
    path = str(tmp_path / "e.parquet")
    vectors = CHANCE.standard_normal((5, 2 + 12)).astype(np.float32)
    shapes = {"one": (2,), "many": (3, 4)}
    for dtype in ("float32", "int8"):
        write(tmp_path / "e.parquet", vectors, dtype, shapes)
        found = describe_file(path)
        assert found.columns == {name: VectorColumn(name, shape, dtype) for name, shape in shapes.items()}
        assert found.as_json()["dimensions"] == {"one": 2, "many": [3, 4]}
        ((_, read),) = read_groups(path)
        assert np.array_equal(read, round_vectors(vectors[:, :2], dtype))
        assert read.dtype == np.float32
    with pytest.raises(
        ConfigError, match=r"'many' has several vectors per image, 2 \(one\), 3 x 4 \(many\); .*: one"
    ):
        list(read_groups(path, column="many"))
    with pytest.raises(ConfigError, match=r"no column of vectors 'two'; expected one of: 2 \(one\), 3 x 4 \(many\)"):
        list(read_groups(path, column="two"))
    with pytest.raises(ConfigError, match=r"every column has several vectors per image, .*; .*: none has"):
        choose_column({"many": VectorColumn("many", (3, 4), "float32")}, "", "here")


def test_a_column_named_like_a_scale_is_no_scale_and_two_of_one_name_are_refused(tmp_path):
    write(tmp_path / "e.parquet", np.ones((2, 5), np.float32), "float32", {"v": (2,), "v_scale": (3,)})
    assert list(find_columns(pq.read_schema(tmp_path / "e.parquet"))) == ["v", "v_scale"]
    with pytest.raises(ConfigError, match="column 'v_scale' would be there twice"):
        write(tmp_path / "e.parquet", np.ones((2, 5), np.float32), "int8", {"v": (2,), "v_scale": (3,)})


# int8: a vector is its integers times its scale.

HARD = [
    CHANCE.standard_normal(64),
    CHANCE.standard_normal(64) * 1e30,
    CHANCE.standard_normal(64) * 1e-30,
    CHANCE.standard_normal(64) * 1e-37,
    CHANCE.standard_normal(64) * 1e-43,
    np.eye(64)[3],
    np.r_[1.0, np.full(63, 1 / 254)],
    np.full(64, float(LIMITS["int8"])),
    -np.full(64, float(np.finfo("f4").tiny)),
]


@pytest.mark.parametrize("vector", HARD, ids=range(len(HARD)))
def test_no_number_is_off_by_more_than_half_a_scale(vector):
    vector = vector.astype(np.float32)
    numbers, scale = quantize(vector[None])
    assert scale.dtype == np.float32
    assert np.abs(numbers.astype(int)).max() <= 127
    back = round_vectors(vector[None], "int8")[0]
    assert np.isfinite(back).all()
    error = np.abs(back.astype(np.float64) - vector)
    # 127.5 roundings of float32 beyond the half: of the quotient and of the product.
    assert error.max() <= scale[0] * (0.5 + 255 * 2**-24)
    assert scale[0] <= max(np.abs(vector).max() / 127 * (1 + 2**-23), np.finfo("f4").tiny)


def test_a_zero_vector_has_scale_zero_and_reads_back_as_zeros(tmp_path):
    vectors = np.stack([np.zeros(4), np.ones(4), np.zeros(4)]).astype(np.float32)
    write(tmp_path / "e.parquet", vectors, "int8")
    table, read, _ = read_vectors(str(tmp_path / "e.parquet"))
    assert table["v_scale"].to_pylist() == pytest.approx([0, 1 / 127, 0])
    assert np.array_equal(read, vectors)


def test_a_shard_without_a_row_has_the_same_columns(tmp_path):
    for dtype in ("float32", "int8"):
        write(tmp_path / "full.parquet", np.ones((2, 3, 4), np.float32), dtype)
        write(tmp_path / "empty.parquet", np.ones((0, 3, 4), np.float32), dtype)
        full, empty = (pq.read_schema(tmp_path / name) for name in ("full.parquet", "empty.parquet"))
        assert full.equals(empty)
        assert read_vectors(str(tmp_path / "empty.parquet"))[1].shape == (0, 12)
