"""Ids that are in several rows of a run: how many there are, and where the first ones are.

First, 64-bit hashes of the ids are compared: if all differ, so do the ids. Otherwise the ids with equal hashes are
read again and compared themselves. Memory is bounded for any number of ids: what does not fit into `HELD_BYTES` is
divided by hash among temporary files in the run's folder, so that equal ids meet in one file, and these are counted
one by one.
"""

import tempfile
from bisect import bisect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import accumulate, chain, pairwise
from pathlib import Path
from typing import IO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from embedders.errors import OutputError
from embedders.output.columns import KEY
from embedders.output.tables import read_ids

NAMED = 5
# 4 million hashes; or 750,000 ids of 20 bytes with their rows, which take ten times this memory while counted.
HELD_BYTES = 32 << 20
_PART_BITS, _MAX_PART_BITS = 6, 9
# An id, its number of rows, and its first and its last row in the run.
_COUNTS = pa.schema([("id", pa.string()), ("rows", pa.int64()), ("first", pa.int64()), ("last", pa.int64())])


@dataclass(frozen=True)
class RepeatedIds:
    """The ids that are in several rows of a run.

    Attributes:
        id_col: The field that identifies a sample; `__key__` is the WebDataset key.
        ids: Number of these ids.
        rows: Number of their rows.
        first: The first few of them in the order of the run, each with the shards of its first and its last row.
    """

    id_col: str = "__key__"
    ids: int = 0
    rows: int = 0
    first: dict[str, list[str]] = field(default_factory=dict)

    @property
    def is_wrong(self) -> bool:
        """Whether the user has named a field that identifies samples, and it does not."""
        return bool(self.ids) and self.id_col != "__key__"

    def describe(self) -> str:
        """Return a sentence that counts the ids and names the first few."""
        some = ", ".join(
            f"{name!r} (shard {first!r})" if first == last else f"{name!r} (shards {first!r} and {last!r})"
            for name, (first, last) in self.first.items()
        )
        more = ", ..." if self.ids > len(self.first) else ""
        counts = f"{self.ids:,}, {self.rows:,} rows in all: {some}{more}"
        if not self.is_wrong:
            return (
                f"keys that are in several shards: {counts}; shard and key together name a row, so this does no harm"
            )
        return (
            f"values of {self.id_col!r} (id_col) that are in several rows: {counts}; expected each in one row; "
            "shard and key together name a row"
        )


def find_repeated_ids(folder: str | Path, rows: Mapping[str, int], id_col: str) -> RepeatedIds:
    """Find the ids that are in several rows of a run.

    Args:
        folder: The run's output folder.
        rows: Number of rows of each shard by name, in the order of the run.
        id_col: The field that identifies a sample.

    Raises:
        ShardError: An output is missing or cut short.
        OutputError: The ids do not fit into memory, and no temporary file can be written to the folder.
    """
    shards, starts = list(rows), list(accumulate(rows.values(), initial=0))
    column = KEY if id_col == "__key__" else id_col

    def read() -> Iterator[pa.ChunkedArray]:
        return (read_ids(f"{folder}/embeddings/{shard}.parquet", column) for shard in shards)

    try:
        hashes = _find_repeated_hashes(map(_hash, read()), starts[-1], Path(folder))
        if hashes is not None and not len(hashes):
            return RepeatedIds(id_col)
        tables = (_choose_rows(ids, start, hashes) for ids, start in zip(read(), starts, strict=False))
        ids, count, first = _count_repeated(tables, Path(folder))
    except OSError as error:
        raise OutputError(
            f"{str(folder)!r}: a temporary file for the ids of the run cannot be written ({error.strerror}); "
            "expected a writable folder with free space"
        ) from error
    found = {row["id"]: (row["first"], row["last"]) for row in first.to_pylist()}
    named = {name: [shards[bisect(starts, place) - 1] for place in places] for name, places in found.items()}
    return RepeatedIds(id_col, ids, count, named)


def _hash(ids: pa.ChunkedArray) -> np.ndarray:
    return np.fromiter(map(hash, ids.to_pylist()), np.int64, len(ids)).view(np.uint64)


def _find_repeated_hashes(hashes: Iterable[np.ndarray], total: int, folder: Path) -> np.ndarray | None:
    """Return the hashes that come more than once, sorted; `None` if there are too many of them to hold."""
    bits = min(_MAX_PART_BITS, (total * 8 // HELD_BYTES).bit_length())
    repeated = [np.empty(0, np.uint64)]
    with _open_files(1 << bits, folder) as files:
        for batch in hashes:
            for file, part in zip(files, _split(np.sort(batch), bits), strict=True):
                file.write(part.tobytes())
        for file in files:
            file.seek(0)
            part = np.sort(np.frombuffer(file.read(), np.uint64))
            file.close()
            repeated.append(np.unique(part[1:][part[1:] == part[:-1]]))
            if sum(map(len, repeated)) * 8 > HELD_BYTES:
                return None
    return np.concatenate(repeated)


def _choose_rows(ids: pa.ChunkedArray, start: int, hashes: np.ndarray | None) -> pa.Table:
    """Return the ids of a shard whose hashes are among these, with the numbers of their rows in the run."""
    chosen = np.arange(len(ids))
    if hashes is not None:
        found = _hash(ids)
        chosen = np.flatnonzero(hashes[np.searchsorted(hashes, found).clip(max=len(hashes) - 1)] == found)
    numbers = pa.array(start + chosen)
    return pa.table([ids.take(pa.array(chosen)), pa.repeat(1, len(chosen)), numbers, numbers], schema=_COUNTS)


def _count_repeated(tables: Iterable[pa.Table], folder: Path, depth: int = 0) -> tuple[int, int, pa.Table]:
    """Return the number of repeated ids, the number of their rows, and the first few ids."""
    held, size = [_COUNTS.empty_table()], 0
    tables = iter(tables)
    for table in tables:
        held.append(table)
        size += table.nbytes
        if size >= HELD_BYTES:
            held = [_add_up(held)]
            size = held[0].nbytes
            if size >= HELD_BYTES / 2:
                return _count_in_parts(chain(held, tables), folder, depth)
    counts = _add_up(held)
    repeated = counts.filter(pc.greater(counts["rows"], 1))
    return len(repeated), pc.sum(repeated["rows"]).as_py() or 0, _choose_first(repeated)


def _count_in_parts(tables: Iterable[pa.Table], folder: Path, depth: int) -> tuple[int, int, pa.Table]:
    ids, rows, first = 0, 0, [_COUNTS.empty_table()]
    with _open_files(1 << _PART_BITS, folder) as files:
        writers = [pa.ipc.new_stream(file, _COUNTS) for file in files]
        for table in tables:
            for writer, part in zip(writers, _divide(table, depth), strict=True):
                writer.write_table(part)
        for writer, file in zip(writers, files, strict=True):
            writer.close()
            file.seek(0)
            parts = (pa.Table.from_batches([batch]) for batch in pa.ipc.open_stream(file))
            found = _count_repeated(parts, folder, depth + 1)
            ids, rows, first = ids + found[0], rows + found[1], [*first, found[2]]
            file.close()
    return ids, rows, _choose_first(pa.concat_tables(first))


@contextmanager
def _open_files(count: int, folder: Path) -> Iterator[list[IO[bytes]]]:
    """Open temporary files. They have no names, so that nothing stays of them, however the process ends."""
    with ExitStack() as stack:
        yield [stack.enter_context(tempfile.TemporaryFile(dir=folder)) for _ in range(count)]


def _split(hashes: np.ndarray, bits: int) -> list[np.ndarray]:
    """Divide sorted hashes by their highest bits."""
    edges = np.arange(1, 1 << bits, dtype=np.uint64) << np.uint64(64 - bits)
    return np.split(hashes, np.searchsorted(hashes, edges))


def _divide(table: pa.Table, depth: int) -> Iterator[pa.Table]:
    """Divide ids by bits of their hashes, by other ones at each depth."""
    shifted = _hash(table["id"]) >> np.uint64(_PART_BITS * depth)
    parts = (shifted & np.uint64((1 << _PART_BITS) - 1)).astype(np.uint8)
    order = np.argsort(parts, kind="stable")
    table = table.take(pa.array(order))
    ends = np.searchsorted(parts[order], np.arange(1 << _PART_BITS), side="right").tolist()
    return (table.slice(start, end - start) for start, end in pairwise([0, *ends]))


def _add_up(tables: Sequence[pa.Table]) -> pa.Table:
    grouped = pa.concat_tables(tables).group_by("id")
    return grouped.aggregate([("rows", "sum"), ("first", "min"), ("last", "max")]).rename_columns(_COUNTS.names)


def _choose_first(table: pa.Table) -> pa.Table:
    return table.sort_by("first").slice(0, NAMED)
