"""Reading the Parquet files that a run left: vectors, ledgers, scores, and their footers."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from embedders.errors import ShardError
from embedders.output.columns import KEY
from embedders.output.failed import FailedSample
from embedders.output.provenance import SCHEMA_VERSION, Provenance, ScoreProvenance
from embedders.output.writer import LEDGER_SCHEMA, PROVENANCE


@dataclass(frozen=True)
class VectorFile:
    """What the footer of an output says.

    Attributes:
        path: The file.
        rows: Number of rows.
        vector_column: Name of the column of vectors.
        dimension: Length of a vector.
        vectors: Type of that column.
        provenance: How the vectors were made.
    """

    path: str
    rows: int
    vector_column: str
    dimension: int
    vectors: str
    provenance: Provenance

    def as_json(self) -> dict[str, Any]:
        """Return all of it as a dict that is ready for JSON."""
        shape = {name: getattr(self, name) for name in ("rows", "vector_column", "dimension", "vectors")}
        return {"file": self.path} | shape | self.provenance.as_json()


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


def read_vectors(path: str) -> tuple[pa.Table, np.ndarray, VectorFile]:
    """Read an output whole.

    Returns:
        The table; its vectors as an array of shape (rows, dimension); its footer.

    Raises:
        ShardError: The file is missing, cut short, or not an output of tarquet.
    """
    description = describe_file(path)
    with _explain_reading(path):
        table = pq.read_table(path, page_checksum_verification=True)
    vectors = table.column(table.num_columns - 1).combine_chunks().flatten()
    shape = (description.rows, description.dimension)
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


def describe_file(path: str) -> VectorFile:
    """Read the footer of an output.

    Raises:
        ShardError: The file is missing, cut short, or not an output of tarquet.
    """
    rows, schema, stored = _read_footer(path)
    vectors = schema.types[-1] if schema.types else pa.null()
    if not isinstance(stored, dict) or not pa.types.is_fixed_size_list(vectors):
        raise ShardError(f"{path!r}: no provenance in its footer; expected an output of tarquet")
    if stored.get("schema_version") != SCHEMA_VERSION:
        raise ShardError(
            f"{path!r}: its footer is of version {stored.get('schema_version')!r}; expected {SCHEMA_VERSION}; read "
            "it with the version of tarquet that wrote it"
        )
    try:
        provenance = Provenance.from_json(stored)
    except KeyError as error:
        raise ShardError(f"{path!r}: no {error} in its footer; expected an output of tarquet") from error
    return VectorFile(str(path), rows, schema.names[-1], vectors.list_size, str(vectors), provenance)


def _read_footer(path: str) -> tuple[int, pa.Schema, Any]:
    with _explain_reading(path):
        metadata, schema = pq.read_metadata(path), pq.read_schema(path)
        return metadata.num_rows, schema, json.loads((metadata.metadata or {}).get(PROVENANCE, "null"))


def inspect_file(path: str) -> dict[str, Any]:
    """Return what the footer of an output says, with the times from its ledger where that can be read, as JSON.

    Of a file of scores it is the rows and how they were made.

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
