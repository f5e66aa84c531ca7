"""Readers of the Parquet files of a run: vectors, ledgers, scores, and their footers."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from math import prod
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from embedders.errors import ShardError
from embedders.output.columns import KEY, SHARD
from embedders.output.failed import FailedSample
from embedders.output.provenance import SCHEMA_VERSION, Provenance, ScoreProvenance
from embedders.output.usage import Usage
from embedders.output.vectors import Shape, VectorColumn, choose_column, find_columns
from embedders.output.writer import LEDGER_SCHEMA, PROVENANCE

Kind = TypeVar("Kind", Provenance, ScoreProvenance)


@dataclass(frozen=True)
class VectorFile:
    """The footer of an output.

    Attributes:
        path: The file.
        rows: Number of rows.
        columns: The columns of vectors by their names.
        provenance: How the vectors were made.
    """

    path: str
    rows: int
    columns: dict[str, VectorColumn]
    provenance: Provenance

    @property
    def vectors(self) -> str:
        """The type of the column of vectors as text; of several, the types with the names."""
        types = {name: str(column.fields[0].type) for name, column in self.columns.items()}
        return ", ".join(kind if len(types) == 1 else f"{name} {kind}" for name, kind in types.items())

    @property
    def shapes(self) -> dict[str, Shape]:
        """The shapes of the columns of vectors, by their names."""
        return {name: column.shape for name, column in self.columns.items()}

    def as_json(self) -> dict[str, Any]:
        """Return all of it as a dict that is ready for JSON."""
        name, column = next(iter(self.columns.items()))
        shape: dict[str, Any] = {"rows": self.rows, "vector_column": name, "dimension": column.shape[-1]}
        shape |= {"parts": column.parts} if column.parts else {}
        shape |= {"vectors": self.vectors}
        if len(self.columns) > 1:
            simple = {name: shape[0] if len(shape) == 1 else list(shape) for name, shape in self.shapes.items()}
            shape |= {"dimensions": simple}
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


def read_account(path: str) -> tuple[list[FailedSample], dict[str, float], Usage | None]:
    """Read a whole ledger.

    Returns:
        The samples that were not embedded; the seconds spent on each activity of `timings`; and what the shard used,
        which is `None` in a ledger from before this was measured.

    Raises:
        ShardError: The file is missing, cut short, or not a ledger.
    """
    with _explain_reading(path):
        table = pq.read_table(path, page_checksum_verification=True)
        footer = json.loads((table.schema.metadata or {}).get(PROVENANCE, "{}"))
    if not table.schema.equals(LEDGER_SCHEMA):
        raise ShardError(f"{path!r}: its columns are {', '.join(table.column_names)}; expected a ledger of tarquet")
    usage = Usage.from_json(footer["usage"]) if "usage" in footer else None
    return [FailedSample(**row) for row in table.drop_columns(SHARD).to_pylist()], footer.get("seconds", {}), usage


def read_vectors(path: str) -> tuple[pa.Table, np.ndarray, VectorFile]:
    """Read a whole output.

    Returns:
        The table; its vectors as an array of shape (rows, numbers), the parts of an image one behind the other, and
        so several columns; its footer.

    Raises:
        ShardError: The file is missing, cut short, or not an output of tarquet.
    """
    description = describe_file(path)
    with _explain_reading(path):
        table = pq.read_table(path, page_checksum_verification=True)
    parts = [column.load(table).reshape(len(table), prod(column.shape)) for column in description.columns.values()]
    return table, parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1), description


def read_tables(path: str) -> Iterator[pa.Table]:
    """Read an output row group by row group, with all its columns.

    Raises:
        ShardError: The file is missing, cut short, or has a page whose checksum is wrong.
    """
    with _explain_reading(path), pq.ParquetFile(path, page_checksum_verification=True) as file:
        for number in range(file.num_row_groups):
            yield file.read_row_group(number)


def count_groups(path: str) -> int:
    """Count the row groups of an output.

    Raises:
        ShardError: The file is missing or cut short.
    """
    with _explain_reading(path):
        return pq.read_metadata(path).num_row_groups


def read_groups(
    path: str, numbers: Sequence[int] | None = None, column: str = ""
) -> Iterator[tuple[list[str], np.ndarray]]:
    """Read one column of vectors of an output by its row groups, one in memory at a time.

    Args:
        path: The output.
        numbers: The row groups to read; `None` reads all.
        column: As in `vectors.choose_column`.

    Yields:
        The keys of a row group, and its vectors, of shape (rows, dimension): in their stored type, int8 as float32.

    Raises:
        ShardError: The file is missing or cut short.
        ConfigError: There is no such column, or it has several vectors per image.
    """
    with _explain_reading(path), pq.ParquetFile(path, page_checksum_verification=True) as file:
        chosen = choose_column(find_columns(file.schema_arrow), column, path)
        names = [KEY, *(field.name for field in chosen.fields)]
        for number in range(file.num_row_groups) if numbers is None else numbers:
            table = file.read_row_group(number, names)
            yield table[KEY].to_pylist(), chosen.load(table)


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
    columns = find_columns(schema)
    if not columns:
        raise ShardError(f"{path!r}: no column of vectors; expected an output of tarquet")
    return VectorFile(str(path), rows, columns, provenance)


def read_provenance(path: str) -> tuple[Provenance, dict[str, Any]]:
    """Read only how an output or a ledger was made, which is faster than `describe_file`.

    Returns:
        The provenance; from a ledger also the version of the shard, as keys of `record.Origin`.

    Raises:
        ShardError: As `describe_file`.
    """
    stored = _read_stored(path)
    return _read_record(path, stored, Provenance), stored.get("shard_version", {})


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


def _read_footer(path: str) -> tuple[int, pa.Schema, Any]:
    with _explain_reading(path):
        return pq.read_metadata(path).num_rows, pq.read_schema(path), _read_stored(path)


def _read_stored(path: str) -> Any:
    with _explain_reading(path):
        return json.loads((pq.read_metadata(path).metadata or {}).get(PROVENANCE, "null"))


def inspect_file(path: str) -> dict[str, Any]:
    """Return the footer of an output as values for JSON, with the times and the usage from its ledger if it is there.

    For a file of scores, return the number of rows and how they were made.

    Raises:
        ShardError: As `describe_file`.
    """
    rows, _, stored = _read_footer(path)
    if isinstance(stored, dict) and "classifier" in stored:
        return {"file": str(path), "rows": rows} | ScoreProvenance.from_json(stored).as_json()
    described = describe_file(path)
    account: dict[str, Any] = {}
    if described.provenance.ledger:
        with suppress(ShardError):
            _, seconds, usage = read_account(described.provenance.ledger)
            account = {"seconds": seconds, "usage": usage and usage.as_json()}
    return described.as_json() | account
