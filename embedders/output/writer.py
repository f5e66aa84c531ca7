"""Writers of the Parquet files: vectors, ledgers, scores.

Vectors are stored as `vectors` says, without dictionary and compression: vectors of norm 1 do not compress, and plain
pages are read fastest. Those of int8 have a dictionary, because a plain number of Parquet has at least 4 bytes. The
schema depends only on the configuration, never on the content of a shard, so that all the shards of a run can be read
as one table.
"""

import json
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from embedders.errors import ConfigError
from embedders.output.arrays import build_array
from embedders.output.columns import SHARD, SHARD_FIELD
from embedders.output.failed import FailedSample
from embedders.output.provenance import Provenance, ScoreProvenance
from embedders.output.usage import Usage
from embedders.output.vectors import DTYPES, Shape, VectorColumn, list_leaves, split_columns

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

    The file is complete after `close`. The shapes of the vectors are those of the first batch.

    Args:
        file: The file.
        shard: Name of the shard, for the first column.
        columns: The columns between it and the vectors.
        vector_column: Name of the column of vectors, if there is only one.
        dtype: A key of `vectors.DTYPES`.
    """

    def __init__(self, file: BinaryIO, shard: str, columns: pa.Schema, vector_column: str, dtype: str):
        if dtype not in DTYPES:
            raise ConfigError(f"embedding_dtype: {dtype!r}; expected {' or '.join(DTYPES)}")
        self._shard = shard
        self._columns = pa.schema([SHARD_FIELD, *columns])
        refuse_twice([*self._columns.names, vector_column])
        self._file = file
        self._vector_column = vector_column
        self._dtype = dtype
        self._vectors: list[VectorColumn] = []
        self._schema = columns
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

    def write(self, rows: pa.RecordBatch, vectors: np.ndarray, shapes: Mapping[str, Shape] | None = None) -> None:
        """Append rows.

        Args:
            rows: The columns between the name of the shard and the vectors.
            vectors: float32 or the stored type, of shape (rows, numbers).
            shapes: Shape of each column of vectors by its name, if `vectors` has several concatenated, or a column
                with several vectors per image.
        """
        shapes = shapes or {self._vector_column: vectors.shape[1:]}
        self._open(shapes)
        if not len(vectors):
            return
        self._has_rows = True
        self._null_columns -= {name for name in self._null_columns if rows.column(name).null_count < len(vectors)}
        # A batch of large rows fills several row groups.
        bytes_per_row = max(1, sum(column.bytes_per_row for column in self._vectors))
        size = -(-BYTES_PER_GROUP // bytes_per_row)
        vectors = vectors.reshape(len(vectors), -1)
        for start in range(0, len(vectors), size):
            self._append(rows.slice(start, size), split_columns(vectors[start : start + size], shapes))

    def close(self, shapes: int | Mapping[str, Shape], provenance: Provenance) -> None:
        """Write the remaining rows and the footer; `shapes`, as in `write`, are used for a shard without rows."""
        writer = self._open({self._vector_column: (shapes,)} if isinstance(shapes, int) else shapes)
        self._flush()
        writer.add_key_value_metadata({PROVENANCE: json.dumps(provenance.as_json())})
        writer.close()

    def _append(self, rows: pa.RecordBatch, vectors: Mapping[str, np.ndarray]) -> None:
        stored = [array for column in self._vectors for array in column.store(vectors[column.name])]
        shard = build_array([self._shard] * len(rows), pa.string())
        self._batches.append(pa.RecordBatch.from_arrays([shard, *rows.columns, *stored], schema=self._schema))
        self._bytes += self._batches[-1].nbytes
        if self._bytes >= BYTES_PER_GROUP:
            self._flush()

    def _open(self, shapes: Mapping[str, Shape]) -> pq.ParquetWriter:
        if self._writer is not None:
            return self._writer
        self._vectors = [VectorColumn(name, tuple(shape), self._dtype) for name, shape in shapes.items()]
        fields = [field for column in self._vectors for field in column.fields]
        names = self._columns.names
        refuse_twice([*names, *(field.name for field in fields)])
        self._schema = pa.schema([*self._columns, *fields])
        self._writer = pq.ParquetWriter(
            self._file,
            self._schema,
            use_dictionary=[*names, *list_leaves([column.fields[0] for column in self._vectors if column.scale])],
            compression={**dict.fromkeys(names, "zstd"), **dict.fromkeys(list_leaves(fields), "none")},
            write_statistics=names,
            write_page_checksum=True,
            write_page_index=True,
        )
        return self._writer

    def _flush(self) -> None:
        if self._writer is not None and self._batches:
            self._writer.write_table(pa.Table.from_batches(self._batches))
        self._batches, self._bytes = [], 0


def refuse_twice(names: Sequence[str]) -> None:
    """Check that no two columns have the same name.

    Raises:
        ConfigError: Two have.
    """
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(
                f"column {name!r} would be there twice; rename the vectors (image_embedding_column, or the name in "
                "the model's mapping), the score (pred_column) or the field"
            )


def write_ledger(
    file: BinaryIO,
    failed: Sequence[FailedSample],
    provenance: Provenance,
    seconds: Mapping[str, float],
    usage: Usage | None = None,
    shard_version: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Write the samples that were not embedded, one row each, the times, and what the shard used if it is known.

    These are here and not in the footer of the vectors, so that the same run twice gives the same vector files.

    Args:
        file: The file.
        failed: The samples.
        provenance: That of the vectors.
        seconds: Seconds spent on each activity of `timings`.
        usage: What the shard used.
        shard_version: What tells whether the shard changes later, as keys of `record.Origin`.
    """
    shard = provenance.shard.name
    columns = [
        build_array([shard if one.name == SHARD else getattr(sample, one.name) for sample in failed], one.type)
        for one in LEDGER_SCHEMA
    ]
    table = pa.Table.from_arrays(columns, schema=LEDGER_SCHEMA)
    used = {} if usage is None else {"usage": usage.as_json()}
    known = {"seconds": dict(seconds), "shard_version": dict(shard_version)} | used
    _write_table(file, table, provenance.as_json() | known)


def write_scores(file: BinaryIO, table: pa.Table, provenance: ScoreProvenance) -> None:
    """Write the names of shards, the keys and the scores."""
    _write_table(file, table, provenance.as_json())


def _write_table(file: BinaryIO, table: pa.Table, footer: dict[str, Any]) -> None:
    table = table.replace_schema_metadata({PROVENANCE: json.dumps(footer)})
    pq.write_table(table, file, write_page_checksum=True, write_page_index=True)
