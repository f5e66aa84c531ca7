"""The footers of the Parquet files of a run, which say how each was made."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from embedders.errors import ShardError
from embedders.output.provenance import SCHEMA_VERSION, Provenance, ScoreProvenance
from embedders.output.vectors import Shape, VectorColumn, find_columns
from embedders.output.writer import PROVENANCE

Kind = TypeVar("Kind", Provenance, ScoreProvenance)


@dataclass(frozen=True)
class VectorFile:
    """The footer of an output.

    Attributes:
        path: The file.
        rows: Number of rows.
        columns: The columns of vectors by their names.
        others: The types of the other columns by their names, as text.
        provenance: How the vectors were made.
    """

    path: str
    rows: int
    columns: dict[str, VectorColumn]
    others: dict[str, str]
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

    def require_shard(self, shard: str) -> None:
        """Check that the rows are those of the shard that the file is named after.

        Raises:
            ShardError: They are of another one.
        """
        if (name := self.provenance.shard.name) != shard:
            raise ShardError(
                f"{self.path!r}: its rows are of the shard {name!r}; expected {shard!r}; was the file renamed? "
                "remove it and run snakemake"
            )

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
def explain_reading(path: str) -> Iterator[None]:
    """Explain in one line what makes a file of Parquet unreadable.

    Raises:
        ShardError: The file is missing, cut short, or lacks a column.
    """
    try:
        yield
    except MemoryError:  # pyarrow's is one of its ArrowExceptions too, and says nothing about the file
        raise
    except FileNotFoundError as error:
        raise ShardError(
            f"{path!r}: no such file; expected one of tarquet; check the path, or make it again"
        ) from error
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        reason = str(error).strip().splitlines()[0]
        raise ShardError(f"{path!r}: cannot be read ({reason}); expected a complete file; make it again") from error


def describe_file(path: str) -> VectorFile:
    """Read the footer of an output.

    Raises:
        ShardError: The file is missing, cut short, or not an output of tarquet.
    """
    rows, schema, stored = read_footer(path)
    provenance = _read_record(path, stored, Provenance)
    columns = find_columns(schema)
    if not columns:
        raise ShardError(f"{path!r}: no column of vectors; expected an output of tarquet")
    stored_for_vectors = {field.name for column in columns.values() for field in column.fields}
    others = {field.name: str(field.type) for field in schema if field.name not in stored_for_vectors}
    return VectorFile(str(path), rows, columns, others, provenance)


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


def read_footer(path: str) -> tuple[int, pa.Schema, Any]:
    """Read the number of rows of a file, its columns, and what Tarquet has stored in its footer.

    Raises:
        ShardError: The file is missing or cut short.
    """
    with explain_reading(path), pq.ParquetFile(path) as file:
        return file.metadata.num_rows, file.schema_arrow, _parse(file.metadata)


def _read_stored(path: str) -> Any:
    with explain_reading(path):
        return _parse(pq.read_metadata(path))


def _parse(metadata: pq.FileMetaData) -> Any:
    return json.loads((metadata.metadata or {}).get(PROVENANCE, "null"))
