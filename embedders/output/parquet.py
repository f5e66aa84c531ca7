"""The Parquet files: their schema and their writers. The only user of `pyarrow.parquet`.

Vectors are stored as non-null `fixed_size_list<float>[D]`, without dictionary and compression: unit vectors do
not compress, and plain pages read back fastest. The schema depends on the configuration alone, never on what a
shard happens to hold, so that all the shards of a run read as one table.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from embedders.errors import ConfigError, ShardError
from embedders.output.columns import KEY, Columns
from embedders.output.ledger import FailedSample

DTYPES = {"float32": (pa.float32(), np.float32), "float16": (pa.float16(), np.float16)}
PROVENANCE = b"tarquet"
# A row group is held in memory, three times over while it is written.
BYTES_PER_GROUP = 8 << 20

LEDGER_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("message", pa.string(), nullable=False),
        pa.field("member", pa.string()),
        pa.field("offset", pa.int64()),
    ]
)


class EmbeddingWriter:
    """Streams rows into one Parquet file; memory holds one row group at most.

    The file is complete after `close`. The embedding's dimension is that of the first batch.
    """

    def __init__(
        self, file: BinaryIO, columns: Columns, vector_column: str, dtype: str, scores: Sequence[pa.Field] = ()
    ):
        if dtype not in DTYPES:
            raise ConfigError(f"embedding_dtype: {dtype!r}; expected {' or '.join(DTYPES)}")
        self._fields = [*columns.fields(), *scores]
        names = [field.name for field in self._fields]
        if vector_column in names:
            raise ConfigError(f"column {vector_column!r} would be there twice; rename image_embedding_column")
        for name in names:
            if names.count(name) > 1:
                raise ConfigError(f"column {name!r} would be there twice; rename pred_column")
        self._file = file
        self._vector_column = vector_column
        self._arrow_type, self._numpy_type = DTYPES[dtype]
        self._rows: list[dict] = []
        self._vectors: list[np.ndarray] = []
        self._bytes = 0
        self._writer: pq.ParquetWriter | None = None

    def __enter__(self) -> "EmbeddingWriter":
        return self

    def __exit__(self, *_) -> None:
        """Let go of a file that was not closed: by itself, pyarrow would write a footer into it when collected."""
        if self._writer is not None:
            self._writer.is_open = False

    def write(self, rows: list[dict], vectors: np.ndarray) -> None:
        """Append rows.

        Args:
            rows: One dict per row, as `Columns.read` gives it, with the scores.
            vectors: float32 or the stored type, of shape (len(rows), dimension).
        """
        self._open(vectors.shape[1])
        self._rows += rows
        self._vectors.append(vectors.astype(self._numpy_type))
        self._bytes += self._vectors[-1].nbytes + sum(len(str(value)) for row in rows for value in row.values())
        if self._bytes >= BYTES_PER_GROUP:
            self._flush()

    def close(self, dimension: int, provenance: dict) -> None:
        """Write what is left and the footer; `dimension` serves a shard without a row."""
        self._open(dimension)
        self._flush()
        self._writer.add_key_value_metadata({PROVENANCE: json.dumps(provenance)})
        self._writer.close()

    def _open(self, dimension: int) -> None:
        if self._writer is not None:
            return
        vector = pa.list_(pa.field("element", self._arrow_type, nullable=False), dimension)
        schema = pa.schema([*self._fields, pa.field(self._vector_column, vector, nullable=False)])
        names = [field.name for field in self._fields]
        leaf = f"{self._vector_column}.list.element"
        self._writer = pq.ParquetWriter(
            self._file,
            schema,
            use_dictionary=names,
            compression={**dict.fromkeys(names, "zstd"), leaf: "none"},
            write_statistics=names,
            write_page_checksum=True,
        )

    def _flush(self) -> None:
        if not self._rows:
            return
        schema = self._writer.schema
        flat = pa.array(np.concatenate(self._vectors).reshape(-1))
        vectors = pa.FixedSizeListArray.from_arrays(flat, type=schema.field(self._vector_column).type)
        columns = [pa.array([row[field.name] for row in self._rows], field.type) for field in self._fields]
        self._writer.write_table(pa.Table.from_arrays([*columns, vectors], schema=schema))
        self._rows, self._vectors, self._bytes = [], [], 0


def write_ledger(file: BinaryIO, failed: Sequence[FailedSample], provenance: dict) -> None:
    """Write the samples that were not embedded, one row each."""
    rows = [{name: getattr(sample, name) for name in LEDGER_SCHEMA.names} for sample in failed]
    write_table(file, pa.Table.from_pylist(rows, schema=LEDGER_SCHEMA), provenance)


def write_table(file: BinaryIO, table: pa.Table, provenance: dict) -> None:
    """Write a table whole, with its provenance."""
    pq.write_table(
        table.replace_schema_metadata({PROVENANCE: json.dumps(provenance)}), file, write_page_checksum=True
    )


@contextmanager
def _explain_reading(path: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, pa.ArrowException) as error:
        reason = str(error).strip().splitlines()[0]
        raise ShardError(f"{path!r}: cannot be read ({reason}); expected a whole file; make it again") from error


def read_ledger(path: str) -> list[FailedSample]:
    """Read the samples that were not embedded.

    Raises:
        ShardError: The file is missing, cut short, or not a ledger.
    """
    return read_account(path)[0]


def read_account(path: str) -> tuple[list[FailedSample], dict[str, float]]:
    """Read a ledger whole.

    Returns:
        The samples that were not embedded; seconds by what they were spent on, as in `timings`.

    Raises:
        ShardError: The file is missing, cut short, or not a ledger.
    """
    with _explain_reading(path):
        table = pq.read_table(path, page_checksum_verification=True)
        footer = json.loads((table.schema.metadata or {}).get(PROVENANCE, "{}"))
    if not table.schema.equals(LEDGER_SCHEMA):
        raise ShardError(f"{path!r}: its columns are {', '.join(table.column_names)}; expected a ledger of tarquet")
    return [FailedSample(**row) for row in table.to_pylist()], footer.get("seconds", {})


def read_vectors(path: str) -> tuple[pa.Table, np.ndarray, dict]:
    """Read an output whole.

    Returns:
        The table; its vectors as an array of shape (rows, dimension); its provenance.

    Raises:
        ShardError: The file is missing, cut short, or not an output of tarquet.
    """
    description = describe_file(path)
    with _explain_reading(path):
        table = pq.read_table(path, page_checksum_verification=True)
    vectors = table.column(table.num_columns - 1).combine_chunks().flatten()
    shape = (description["rows"], description["dimension"])
    return table, vectors.to_numpy(zero_copy_only=False).reshape(shape), description


def count_groups(path: str) -> int:
    """Count the row groups of an output.

    Raises:
        ShardError: The file is missing or cut short.
    """
    with _explain_reading(path):
        return pq.read_metadata(path).num_row_groups


def read_groups(path: str, numbers: Sequence[int] | None = None) -> Iterator[tuple[list[str], np.ndarray]]:
    """Read an output by its row groups, one in memory at a time.

    Args:
        path: The output.
        numbers: The row groups to read; `None` reads all.

    Yields:
        The keys; the vectors, of their stored type and of shape (rows, dimension).

    Raises:
        ShardError: The file is missing or cut short.
    """
    with _explain_reading(path), pq.ParquetFile(path, page_checksum_verification=True) as file:
        for number in range(file.num_row_groups) if numbers is None else numbers:
            table = file.read_row_group(number)
            vectors = table.column(table.num_columns - 1).combine_chunks().flatten()
            yield table[KEY].to_pylist(), vectors.to_numpy(zero_copy_only=False).reshape(table.num_rows, -1)


def read_scores(path: str) -> np.ndarray:
    """Read the scores of a file that `score` made.

    Raises:
        ShardError: The file is missing or cut short.
    """
    with _explain_reading(path):
        table = pq.read_table(path, page_checksum_verification=True)
    return table.column(table.num_columns - 1).to_numpy()


def describe_file(path: str) -> dict:
    """Read the footer of an output: rows, column, dimension and type of the vectors, and how they were made.

    Raises:
        ShardError: The file is missing, cut short, or not an output of tarquet.
    """
    rows, schema, provenance = _read_footer(path)
    vectors = schema.types[-1]
    if not isinstance(provenance, dict) or not pa.types.is_fixed_size_list(vectors):
        raise ShardError(f"{path!r}: no provenance in its footer; expected an output of tarquet")
    shape = {"vector_column": schema.names[-1], "dimension": vectors.list_size, "vectors": str(vectors)}
    return {"file": str(path), "rows": rows} | shape | provenance


def _read_footer(path: str) -> tuple[int, pa.Schema, Any]:
    with _explain_reading(path):
        metadata, schema = pq.read_metadata(path), pq.read_schema(path)
        return metadata.num_rows, schema, json.loads((metadata.metadata or {}).get(PROVENANCE, "null"))


def inspect_file(path: str) -> dict:
    """Read the footer of an output as `describe_file` does, with the times from its ledger where that is to be had.

    Of a file of scores it is the rows and how they were made.

    Raises:
        ShardError: As `describe_file`.
    """
    rows, _, provenance = _read_footer(path)
    if isinstance(provenance, dict) and "classifier" in provenance:
        return {"file": str(path), "rows": rows} | provenance
    description = describe_file(path)
    if description.get("ledger"):
        with suppress(ShardError):
            description["seconds"] = read_account(description["ledger"])[1]
    return description
