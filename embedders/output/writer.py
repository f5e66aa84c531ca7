"""Writers of the Parquet files: vectors, ledgers, scores.

Vectors are stored as non-null `fixed_size_list<float>[D]`, without dictionary and compression: vectors of norm 1 do
not compress, and plain pages are read fastest. The schema depends only on the configuration, never on the content of
a shard, so that all the shards of a run can be read as one table.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from embedders.errors import ConfigError
from embedders.output.columns import SHARD_FIELD
from embedders.output.failed import FailedSample
from embedders.output.provenance import Provenance, ScoreProvenance

DTYPES = {"float32": (pa.float32(), np.float32), "float16": (pa.float16(), np.float16)}
PROVENANCE = b"tarquet"
# A row group takes three times this memory while it is written, and most readers load a whole one to get one row.
BYTES_PER_GROUP = 8 << 20

LEDGER_SCHEMA = pa.schema(
    [
        SHARD_FIELD,
        pa.field("key", pa.string(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("message", pa.string(), nullable=False),
        pa.field("member", pa.string()),
        pa.field("offset", pa.int64()),
    ]
)


class EmbeddingWriter:
    """Writes rows to one Parquet file, with at most one row group in memory.

    The file is complete after `close`. The dimensions of the vectors are those of the first batch.

    Args:
        file: The file.
        shard: Name of the shard, for the first column.
        columns: The columns between it and the vectors.
        vector_column: Name of the column of vectors, if there is only one.
        dtype: `float32` or `float16`.
    """

    def __init__(self, file: BinaryIO, shard: str, columns: pa.Schema, vector_column: str, dtype: str):
        if dtype not in DTYPES:
            raise ConfigError(f"embedding_dtype: {dtype!r}; expected {' or '.join(DTYPES)}")
        self._shard = pa.scalar(shard, pa.string())
        self._columns = pa.schema([SHARD_FIELD, *columns])
        _refuse_twice([vector_column], self._columns)
        for name in self._columns.names:
            if self._columns.names.count(name) > 1:
                raise ConfigError(f"column {name!r} would be there twice; rename pred_column")
        self._file = file
        self._vector_column = vector_column
        self._arrow_type, self._numpy_type = DTYPES[dtype]
        self._batches: list[pa.RecordBatch] = []
        self._bytes = 0
        self._null_columns = set(columns.names)
        self._has_rows = False
        self._writer: pq.ParquetWriter | None = None

    def __enter__(self) -> "EmbeddingWriter":
        return self

    def __exit__(self, *_) -> None:
        """Abandon a file that was not closed: otherwise pyarrow writes a footer into it during garbage collection."""
        if self._writer is not None:
            self._writer.is_open = False

    @property
    def null_columns(self) -> list[str]:
        """The columns that are null in every row so far; empty if there are no rows."""
        return [name for name in self._columns.names if name in self._null_columns] if self._has_rows else []

    def write(self, rows: pa.RecordBatch, vectors: np.ndarray, dimensions: Mapping[str, int] | None = None) -> None:
        """Append rows.

        Args:
            rows: The columns between the name of the shard and the vectors.
            vectors: float32 or the stored type, of shape (rows, dimension).
            dimensions: Dimension of each column of vectors by its name, if `vectors` has several concatenated.
        """
        dimensions = dimensions or {self._vector_column: vectors.shape[1]}
        writer = self._open(dimensions)
        if not len(vectors):
            return
        self._has_rows = True
        self._null_columns -= {name for name in rows.schema.names if rows.column(name).null_count < len(vectors)}
        schema = writer.schema
        vectors = vectors.astype(self._numpy_type, copy=False)
        stored, start = [], 0
        for name, dimension in dimensions.items():
            flat = pa.array(vectors[:, start : start + dimension].reshape(-1))
            stored.append(pa.FixedSizeListArray.from_arrays(flat, type=schema.field(name).type))
            start += dimension
        shard = pa.repeat(self._shard, len(vectors))
        self._batches.append(pa.RecordBatch.from_arrays([shard, *rows.columns, *stored], schema=schema))
        self._bytes += self._batches[-1].nbytes
        if self._bytes >= BYTES_PER_GROUP:
            self._flush()

    def close(self, dimensions: int | Mapping[str, int], provenance: Provenance) -> None:
        """Write the remaining rows and the footer; `dimensions`, as in `write`, are used for a shard without rows."""
        writer = self._open({self._vector_column: dimensions} if isinstance(dimensions, int) else dimensions)
        self._flush()
        writer.add_key_value_metadata({PROVENANCE: json.dumps(provenance.as_json())})
        writer.close()

    def _open(self, dimensions: Mapping[str, int]) -> pq.ParquetWriter:
        if self._writer is not None:
            return self._writer
        _refuse_twice(list(dimensions), self._columns)
        schema = self._columns
        for name, dimension in dimensions.items():
            vector = pa.list_(pa.field("element", self._arrow_type, nullable=False), dimension)
            schema = schema.append(pa.field(name, vector, nullable=False))
        names = self._columns.names
        leaves = [f"{name}.list.element" for name in dimensions]
        self._writer = pq.ParquetWriter(
            self._file,
            schema,
            use_dictionary=names,
            compression={**dict.fromkeys(names, "zstd"), **dict.fromkeys(leaves, "none")},
            write_statistics=names,
            write_page_checksum=True,
            write_page_index=True,
        )
        return self._writer

    def _flush(self) -> None:
        if self._writer is not None and self._batches:
            self._writer.write_table(pa.Table.from_batches(self._batches))
        self._batches, self._bytes = [], 0


def _refuse_twice(vector_columns: Sequence[str], others: pa.Schema) -> None:
    for name in vector_columns:
        if name in others.names:
            raise ConfigError(f"column {name!r} would be there twice; rename image_embedding_column")


def write_ledger(
    file: BinaryIO,
    failed: Sequence[FailedSample],
    provenance: Provenance,
    seconds: Mapping[str, float],
    shard_mtime_ns: int | None = None,
) -> None:
    """Write the samples that were not embedded, one row each, and the times.

    The times are here and not in the footer of the vectors, so that the same run twice gives the same vector files.

    Args:
        file: The file.
        failed: The samples.
        provenance: That of the vectors.
        seconds: Seconds spent on each activity of `timings`.
        shard_mtime_ns: Time of change of the shard, in nanoseconds.
    """
    shard = {SHARD_FIELD.name: provenance.shard.name}
    rows = [shard | {name: getattr(sample, name) for name in LEDGER_SCHEMA.names[1:]} for sample in failed]
    table = pa.Table.from_pylist(rows, schema=LEDGER_SCHEMA)
    times = {"seconds": dict(seconds), "shard_mtime_ns": shard_mtime_ns}
    _write_table(file, table, provenance.as_json() | times)


def write_scores(file: BinaryIO, table: pa.Table, provenance: ScoreProvenance) -> None:
    """Write the names of shards, the keys and the scores."""
    _write_table(file, table, provenance.as_json())


def _write_table(file: BinaryIO, table: pa.Table, footer: dict[str, Any]) -> None:
    table = table.replace_schema_metadata({PROVENANCE: json.dumps(footer)})
    pq.write_table(table, file, write_page_checksum=True, write_page_index=True)
