"""Readers of the Parquet files of a run: vectors, ledgers, scores, and their footers."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from embedders.errors import ShardError
from embedders.output.columns import KEY, SHARD
from embedders.output.failed import FailedSample
from embedders.output.provenance import SCHEMA_VERSION, Provenance, ScoreProvenance
from embedders.output.writer import LEDGER_SCHEMA, PROVENANCE

Kind = TypeVar("Kind", Provenance, ScoreProvenance)


@dataclass(frozen=True)
class VectorFile:
    """The footer of an output.

    Attributes:
        path: The file.
        rows: Number of rows.
        vector_column: Name of the column of vectors; of several, the first.
        dimension: Length of a vector of that column.
        vectors: Type of that column.
        dimensions: Those of all columns of vectors, by their names.
        provenance: How the vectors were made.
    """

    path: str
    rows: int
    vector_column: str
    dimension: int
    vectors: str
    provenance: Provenance
    dimensions: dict[str, int]

    def as_json(self) -> dict[str, Any]:
        """Return all of it as a dict that is ready for JSON."""
        names = (
            "rows",
            "vector_column",
            "dimension",
            "vectors",
            *(("dimensions",) if len(self.dimensions) > 1 else ()),
        )
        shape = {name: getattr(self, name) for name in names}
        return {"file": self.path} | shape | self.provenance.as_json()


@contextmanager
def _explain_reading(path: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, pa.ArrowException) as error:
        reason = str(error).strip().splitlines()[0]
        raise ShardError(f"{path!r}: cannot be read ({reason}); expected a complete file; make it again") from error


def read_ledger(path: str) -> list[FailedSample]:
    """Read the samples that were not embedded.

    Raises:
        ShardError: The file is missing, cut short, or not a ledger.
    """
    return read_account(path)[0]


def read_account(path: str) -> tuple[list[FailedSample], dict[str, float]]:
    """Read a whole ledger.

    Returns:
        The samples that were not embedded; and the seconds spent on each activity of `timings`.

    Raises:
        ShardError: The file is missing, cut short, or not a ledger.
    """
    with _explain_reading(path):
        table = pq.read_table(path, page_checksum_verification=True)
        footer = json.loads((table.schema.metadata or {}).get(PROVENANCE, "{}"))
    if not table.schema.equals(LEDGER_SCHEMA):
        raise ShardError(f"{path!r}: its columns are {', '.join(table.column_names)}; expected a ledger of tarquet")
    return [FailedSample(**row) for row in table.drop_columns(SHARD).to_pylist()], footer.get("seconds", {})


def read_vectors(path: str) -> tuple[pa.Table, np.ndarray, VectorFile]:
    """Read a whole output.

    Returns:
        The table; its vectors as an array of shape (rows, dimension), of several columns one behind the other; its
        footer.

    Raises:
        ShardError: The file is missing, cut short, or not an output of tarquet.
    """
    description = describe_file(path)
    with _explain_reading(path):
        table = pq.read_table(path, page_checksum_verification=True)
    parts = [_to_numpy(table, name) for name in description.dimensions]
    return table, parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1), description


def count_groups(path: str) -> int:
    """Count the row groups of an output.

    Raises:
        ShardError: The file is missing or cut short.
    """
    with _explain_reading(path):
        return pq.read_metadata(path).num_row_groups


def read_groups(
    path: str, numbers: Sequence[int] | None = None, column: str | None = None
) -> Iterator[tuple[list[str], np.ndarray]]:
    """Read an output by its row groups, one in memory at a time.

    Args:
        path: The output.
        numbers: The row groups to read; `None` reads all.
        column: The column of vectors; `None` takes the first.

    Yields:
        The keys of a row group, and its vectors, in their stored type and of shape (rows, dimension).

    Raises:
        ShardError: The file is missing or cut short.
    """
    with _explain_reading(path), pq.ParquetFile(path, page_checksum_verification=True) as file:
        for number in range(file.num_row_groups) if numbers is None else numbers:
            table = file.read_row_group(number)
            yield table[KEY].to_pylist(), _to_numpy(table, column or next(iter(_find_dimensions(table.schema))))


def read_scores(path: str) -> np.ndarray:
    """Read the scores of a file that `score` made.

    Raises:
        ShardError: The file is missing or cut short.
    """
    with _explain_reading(path):
        table = pq.read_table(path, page_checksum_verification=True)
    return table.column(table.num_columns - 1).to_numpy()


def describe_file(path: str) -> VectorFile:
    """Read the footer of an output.

    Raises:
        ShardError: The file is missing, cut short, or not an output of tarquet.
    """
    rows, schema, stored = _read_footer(path)
    provenance = _read_record(path, stored, Provenance)
    dimensions = _find_dimensions(schema)
    if not dimensions:
        raise ShardError(f"{path!r}: no column of vectors; expected an output of tarquet")
    first, dimension = next(iter(dimensions.items()))
    return VectorFile(str(path), rows, first, dimension, str(schema.field(first).type), provenance, dimensions)


def read_provenance(path: str) -> tuple[Provenance, int | None]:
    """Read only how an output or a ledger was made, which is faster than `describe_file`.

    Returns:
        The provenance; from a ledger also the time of change of the shard, if it was stored.

    Raises:
        ShardError: As `describe_file`.
    """
    stored = _read_stored(path)
    return _read_record(path, stored, Provenance), stored.get("shard_mtime_ns")


def read_score_provenance(path: str) -> ScoreProvenance:
    """Read how a file of scores was made.

    Raises:
        ShardError: As `describe_file`.
    """
    return _read_record(path, _read_stored(path), ScoreProvenance)


def _read_record(path: str, stored: Any, kind: type[Kind]) -> Kind:
    if not isinstance(stored, dict):
        raise ShardError(f"{path!r}: no provenance in its footer; expected an output of tarquet")
    if stored.get("schema_version") != SCHEMA_VERSION:
        raise ShardError(
            f"{path!r}: its footer has the version {stored.get('schema_version')!r}; expected {SCHEMA_VERSION}; read "
            "it with the version of tarquet that wrote it"
        )
    try:
        return kind.from_json(stored)
    except KeyError as error:
        raise ShardError(f"{path!r}: no {error} in its footer; expected an output of tarquet") from error


def _find_dimensions(schema: pa.Schema) -> dict[str, int]:
    """Find the columns of vectors, which come last, and are never null as metadata may be."""
    fields: dict[str, int] = {}
    for field in reversed(list(schema)):
        if not pa.types.is_fixed_size_list(field.type) or field.nullable:
            break
        fields[field.name] = field.type.list_size
    return dict(reversed(fields.items()))


def _to_numpy(table: pa.Table, column: str) -> np.ndarray:
    flat = table.column(column).combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return flat.reshape(table.num_rows, table.schema.field(column).type.list_size)


def _read_footer(path: str) -> tuple[int, pa.Schema, Any]:
    with _explain_reading(path):
        return pq.read_metadata(path).num_rows, pq.read_schema(path), _read_stored(path)


def _read_stored(path: str) -> Any:
    with _explain_reading(path):
        return json.loads((pq.read_metadata(path).metadata or {}).get(PROVENANCE, "null"))


def inspect_file(path: str) -> dict[str, Any]:
    """Return the footer of an output as values for JSON, with the times from its ledger if that can be read.

    For a file of scores, return the number of rows and how they were made.

    Raises:
        ShardError: As `describe_file`.
    """
    rows, _, stored = _read_footer(path)
    if isinstance(stored, dict) and "classifier" in stored:
        return {"file": str(path), "rows": rows} | ScoreProvenance.from_json(stored).as_json()
    described = describe_file(path)
    seconds = {}
    if described.provenance.ledger:
        with suppress(ShardError):
            seconds = {"seconds": read_account(described.provenance.ledger)[1]}
    return described.as_json() | seconds
