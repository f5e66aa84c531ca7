"""The contract of an export format, and the parts in which a run is written."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from embedders.output.run import Run
from embedders.output.tables import read_rows

# Size of a part: at most this much is repeated after an export was stopped, and formats with several files use it as
# the size of a file.
BYTES_PER_PART = 512 << 20


@dataclass(frozen=True)
class Part:
    """Shards that are written together.

    Attributes:
        number: Index of the part.
        shards: Names of the shards.
        start: Index of the first row in the run.
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
        folder: The folder to write to, which exists. It is renamed when it is complete.
    """

    def __init__(self, run: Run, parts: list[Part], folder: Path):
        self.run, self.parts, self.folder = run, parts, folder

    def count_finished(self, recorded: int) -> int:
        """Return how many parts are complete in an export that was stopped after it recorded `recorded`."""
        return recorded

    @abstractmethod
    def write(self, part: Part) -> None:
        """Write a part; a part that was interrupted is written again."""

    def finish(self) -> None:  # noqa: B027, a format may have nothing more to write
        """Write what can only be written after all the parts."""

    def read(self, part: Part, schema: pa.Schema) -> Iterator[pa.Table]:
        """Yield the rows of a part, with the columns of the schema."""
        for shard in part.shards:
            yield from read_rows(self.run, shard, schema)
