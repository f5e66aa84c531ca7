"""`near_copies.parquet`: the pairs of near copies of a run, their groups, and which image of each group to keep."""

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from embedders.errors import ShardError
from embedders.output.columns import SHARD_FIELD
from embedders.output.files import write_whole
from embedders.output.tables import open_writer

FOOTER = b"tarquet_near_copies"
SCHEMA = pa.schema(
    [
        SHARD_FIELD,
        pa.field("key", pa.string(), nullable=False),
        SHARD_FIELD.with_name("other_shard"),
        pa.field("other_key", pa.string(), nullable=False),
        pa.field("cosine", pa.float32(), nullable=False),
        pa.field("group", pa.int64(), nullable=False),
        pa.field("keep", pa.bool_(), nullable=False),
        pa.field("other_keep", pa.bool_(), nullable=False),
    ]
)


@dataclass(frozen=True)
class CopyCounts:
    """What a search for near copies found.

    Attributes:
        cosine: Cosine similarity from which on two images are a pair.
        keep: Which image of a group to keep, `first` or `largest`.
        rows: Number of rows of each shard, by name.
        compared: Number of vectors that were compared; vectors of norm zero are not.
        pairs: Number of pairs.
        groups: Number of groups.
        images: Number of images in groups.
        column: The column of vectors that was asked for; empty for the first with one vector per image.
        made_from: Digest of what the vectors were made from, as `Record.sign` returns it; empty if not known.
    """

    cosine: float
    keep: str
    rows: dict[str, int]
    compared: int
    pairs: int
    groups: int
    images: int
    column: str = ""
    made_from: str = ""

    def describe(self) -> str:
        """Return the counts as one line."""
        if not self.pairs:
            return f"no near copies among {self.compared:,} images (a cosine of {self.cosine} or more)"
        return (
            f"{self.images:,} of {self.compared:,} images are near copies (a cosine of {self.cosine} or more), in "
            f"{self.groups:,} groups and {self.pairs:,} pairs; removing {self.images - self.groups:,} of them leaves "
            "one image per group"
        )


def write_near_copies(path: str | Path, tables: Iterable[pa.Table], counts: CopyCounts) -> None:
    """Write the pairs; the file is either complete or not there."""
    schema = SCHEMA.with_metadata({FOOTER: json.dumps(asdict(counts))})
    with write_whole(path) as file, open_writer(file, schema) as writer:
        for table in tables:
            writer.write_table(table.cast(schema))


def read_near_copies(path: str | Path) -> tuple[pa.Table, CopyCounts]:
    """Read all the pairs and the counts.

    Raises:
        ShardError: The file is missing, incomplete, or of another kind.
    """
    return read_pairs(path), read_counts(path)


def read_counts(path: str | Path) -> CopyCounts:
    """Read the counts from the footer.

    Raises:
        ShardError: As `read_near_copies`.
    """
    with _explain(path):
        return CopyCounts(**json.loads(pq.read_schema(path).metadata[FOOTER]))


def read_groups(path: str | Path) -> np.ndarray:
    """Read the group number of each pair.

    Raises:
        ShardError: As `read_near_copies`.
    """
    with _explain(path):
        return pq.read_table(path, columns=["group"])["group"].to_numpy()


def read_pairs(path: str | Path, groups: Sequence[int] | None = None) -> pa.Table:
    """Read the pairs of some groups, or of all.

    Raises:
        ShardError: As `read_near_copies`.
    """
    with _explain(path):
        chosen = None if groups is None else [("group", "in", list(groups))]
        return pq.read_table(path, filters=chosen, page_checksum_verification=True)


@contextmanager
def _explain(path: str | Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        raise ShardError(
            f"{str(path)!r}: cannot be read ({error}); expected the list of near copies; remove it and run snakemake"
        ) from error
