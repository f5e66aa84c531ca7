"""Ids that are in several rows of a run: how many there are, and where the first ones are."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from glob import escape
from pathlib import Path
from typing import Any

from embedders.errors import ShardError
from embedders.output.columns import KEY, SHARD
from embedders.output.footers import read_footer

NAMED = 5
# Ids with one hash are compared themselves, up to this number of hashes. Beyond it, a collision hardly matters.
COMPARED = 1000
# DuckDB writes what does not fit into this to a temporary folder in the run's folder. It needs 125 MB for a thread.
MEMORY, THREADS = "512MB", 2
# Columns by their numbers: for DuckDB `Key` and `key` are one name.
_READ = "SELECT #{id}::VARCHAR AS id, #{shard} AS shard FROM read_parquet(?, hive_partitioning = false)"
# By hash, because groups of text do not go to a temporary file.
_COUNT = """
    CREATE TEMP TABLE repeated AS
    SELECT hash(id) AS hash, count(*) AS rows FROM ({read}) GROUP BY hash HAVING count(*) > 1
"""
_COMPARE = """
    SELECT id, count(*), min(shard), max(shard) FROM ({read})
    WHERE hash(id) IN (SELECT hash FROM repeated ORDER BY hash LIMIT {limit})
    GROUP BY id HAVING count(*) > 1 ORDER BY min(shard), id
"""


@dataclass(frozen=True)
class RepeatedIds:
    """The ids that are in several rows of a run.

    Attributes:
        id_col: The field that identifies a sample; `__key__` is the WebDataset key.
        ids: Number of these ids.
        rows: Number of their rows.
        some: A few of them, each with the first and the last of its shards by name.
    """

    id_col: str = "__key__"
    ids: int = 0
    rows: int = 0
    some: dict[str, list[str]] = field(default_factory=dict)

    @property
    def is_wrong(self) -> bool:
        """Whether the user has named a field that identifies samples, and it does not."""
        return bool(self.ids) and self.id_col != "__key__"

    def describe(self) -> str:
        """Return a sentence that counts the ids and names some of them."""
        some = ", ".join(
            f"{name!r} (shard {first!r})" if first == last else f"{name!r} (shards {first!r} and {last!r})"
            for name, (first, last) in self.some.items()
        )
        more = ", ..." if self.ids > len(self.some) else ""
        rows = f"{self.rows:,} rows in all: {some}{more}"
        if not self.is_wrong:
            keys = "1 key is" if self.ids == 1 else f"{self.ids:,} keys are"
            return f"{keys} in several shards, {rows}; this does no harm, because shard and key together name a row"
        values = "1 value" if self.ids == 1 else f"{self.ids:,} values"
        return (
            f"{values} of {self.id_col!r} (id_col) in several rows, {rows}; expected each in one row; shard and key "
            "together name a row"
        )


def find_repeated_ids(folder: str | Path, shards: Sequence[str], id_col: str) -> RepeatedIds:
    """Find the ids that are in several rows of a run, within 700 MB of memory.

    Args:
        folder: The run's output folder.
        shards: Names of the shards.
        id_col: The field that identifies a sample.

    Raises:
        ShardError: An output cannot be read, or the temporary files cannot be written.
    """
    # Not at the top: the report needs only the class above, and its environment has no DuckDB.
    import duckdb

    if not shards:
        return RepeatedIds(id_col)
    # DuckDB reads names of files as patterns.
    files = [escape(f"{folder}/embeddings/{shard}.parquet") for shard in shards]
    columns = read_footer(f"{folder}/embeddings/{shards[0]}.parquet")[1].names
    column = KEY if id_col == "__key__" else id_col
    if column not in columns:
        raise ShardError(f"{str(folder)!r}: no column {column!r} (id_col); expected one of {', '.join(columns)}")
    read = _READ.format(id=columns.index(column) + 1, shard=columns.index(SHARD) + 1)
    limits: dict[str, Any] = {"memory_limit": MEMORY, "threads": THREADS, "preserve_insertion_order": False}
    try:
        with duckdb.connect(config=limits | {"temp_directory": f"{folder}/.repeated_ids"}) as database:
            database.execute(_COUNT.format(read=read), [files])
            ids, rows = database.sql("SELECT count(*), coalesce(sum(rows), 0) FROM repeated").fetchall()[0]
            if not ids:
                return RepeatedIds(id_col)
            found = database.execute(_COMPARE.format(read=read, limit=COMPARED), [files]).fetchall()
    except duckdb.Error as error:
        reason = str(error).strip().splitlines()[0]
        raise ShardError(
            f"{str(folder)!r}: the values of {id_col!r} (id_col) cannot be compared ({reason}); expected complete "
            "outputs, and space for temporary files in this folder"
        ) from error
    if ids <= COMPARED:
        ids, rows = len(found), sum(count for _, count, *_ in found)
    return RepeatedIds(id_col, ids, int(rows), {name: [first, last] for name, _, first, last in found[:NAMED]})
