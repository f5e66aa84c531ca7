"""What an export writes to: the contract of a format, and the parts that a run is written in."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from embedders.output.run import Run
from embedders.output.tables import read_rows

# What is done again after an export was stopped, and the size of a file where a format has several.
BYTES_PER_PART = 512 << 20


@dataclass(frozen=True)
class Part:
    """Shards that are written together.

    Attributes:
        number: Its place among the parts.
        shards: Names of the shards.
        start: Number of its first row, counted over the run.
        rows: Number of rows.
    """

    number: int
    shards: list[str]
    start: int
    rows: int


def divide(run: Run) -> list[Part]:
    """Divide a run into parts of whole shards, of about `BYTES_PER_PART` of vectors."""
    parts: list[Part] = []
    shards, rows = [], 0
    for shard, count in run.rows.items():
        shards.append(shard)
        rows += count
        if rows * run.bytes_per_row >= BYTES_PER_PART:
            parts.append(Part(len(parts), shards, run.starts[shards[0]], rows))
            shards, rows = [], 0
    if shards:
        parts.append(Part(len(parts), shards, run.starts[shards[0]], rows))
    return parts


class Target(ABC):
    """A folder in one format, written part by part.

    Args:
        run: The run.
        parts: Its parts.
        folder: The folder, which exists. It is renamed when all of it is there.
    """

    def __init__(self, run: Run, parts: list[Part], folder: Path):
        self.run, self.parts, self.folder = run, parts, folder

    def count_finished(self, recorded: int) -> int:
        """Return how many parts are there, of an export that was stopped after it had recorded so many."""
        return recorded

    @abstractmethod
    def write(self, part: Part) -> None:
        """Write a part; one that was written by half is written again."""

    def finish(self) -> None:  # noqa: B027, a format may have nothing more to write
        """Write what needs all the parts."""

    def read(self, part: Part, schema: pa.Schema) -> Iterator[pa.Table]:
        """Read the rows of a part, with these columns."""
        for shard in part.shards:
            yield from read_rows(self.run, shard, schema)
