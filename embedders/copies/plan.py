"""The plan of a search for near copies: centres of clusters, found in a sample, and the rows of each shard."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from embedders.copies.search import find_centres
from embedders.output.parquet import count_groups, read_groups
from embedders.output.run import Run
from embedders.output.vectors import VectorColumn, choose_column

# Below this number, comparing all rows with each other costs less than clusters.
MIN_ROWS_PER_CLUSTER = 1000
SAMPLE_PER_CLUSTER, MAX_SAMPLE_BYTES, MAX_SAMPLED_SHARDS = 64, 1 << 30, 1000


@dataclass(frozen=True)
class Plan:
    """The data that the jobs of a search share.

    Attributes:
        centres: Centres of the clusters, of shape (clusters, dimension) and norm 1.
        shards: Names of the shards, in the order of the run.
        starts: Index of the first row of each shard in the run; the last number is the total.
        made_from: Size and modification time of each shard's file, so that a plan for other files is different.
        column: The column of vectors to compare; empty for the first with one vector per image.
        signature: `made_from` of the run, which a copy of the results keeps.
    """

    centres: np.ndarray
    shards: list[str]
    starts: np.ndarray
    made_from: np.ndarray
    column: str = ""
    signature: str = ""

    def write(self, file: BinaryIO) -> None:
        """Write the plan."""
        shards = np.array(self.shards)
        np.savez(
            file,
            centres=self.centres,
            shards=shards,
            starts=self.starts,
            made_from=self.made_from,
            column=self.column,
            signature=self.signature,
        )


def read_plan(path: str | Path) -> Plan:
    """Read a plan."""
    with np.load(path) as file:
        # A plan of an earlier version lacks these.
        column, signature = (str(file[name]) if name in file else "" for name in ("column", "signature"))
        return Plan(file["centres"], file["shards"].tolist(), file["starts"], file["made_from"], column, signature)


def make_plan(run: Run, column: str = "") -> Plan:
    """Return the plan of a search, with centres found in a sample of the run; deterministic.

    Args:
        run: The run.
        column: As in `vectors.choose_column`.

    Raises:
        ConfigError: There is no such column, or it has several vectors per image.
    """
    chosen = choose_column(run.columns, column, f"near_copies in {str(run.folder)!r}")
    dimension = chosen.shape[-1]
    starts = np.cumsum([0, *run.rows.values()])
    clusters = count_clusters(run.total)
    sample = sample_rows(run, chosen, min(SAMPLE_PER_CLUSTER * clusters, MAX_SAMPLE_BYTES // (4 * dimension)))
    clusters = min(clusters, len(sample))
    centres = find_centres(sample, clusters) if clusters > 1 else np.eye(1, dimension, dtype=np.float32)
    return Plan(centres, list(run.rows), starts, np.array(list(run.sizes.values())), column, run.made_from)


def count_clusters(rows: int) -> int:
    """Return a number of clusters with which assigning rows costs about as much as comparing them."""
    return max(1, min(2 * math.isqrt(rows), rows // MIN_ROWS_PER_CLUSTER))


def sample_rows(run: Run, column: VectorColumn, count: int) -> np.ndarray:
    """Return about `count` vectors of norm 1 from all shards, or from `MAX_SAMPLED_SHARDS` of them."""
    chance = np.random.default_rng(0)
    shards = [shard for shard, rows in run.rows.items() if rows]
    shards = [shards[number] for number in chance.permutation(len(shards))[:MAX_SAMPLED_SHARDS]]
    share = min(1.0, count / max(1, sum(run.rows[shard] for shard in shards)))
    sampled = [np.empty((0, column.shape[-1]), np.float32)]
    for shard in shards:
        wanted = math.ceil(share * run.rows[shard])
        groups = chance.permutation(count_groups(run.find_file(shard))).tolist()
        for _, vectors in read_groups(run.find_file(shard), groups, column.name):
            sampled.append(normalize(vectors[chance.permutation(len(vectors))[:wanted]])[0])
            wanted -= len(vectors)
            if wanted <= 0:
                break
    return np.concatenate(sampled)


def normalize(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the vectors that have a direction, as float32 with norm 1, and their indices.

    A vector that is zero or contains NaN or infinity is left out; it cannot be a copy.
    """
    with np.errstate(all="ignore"):
        vectors = vectors.astype(np.float32)
        norms = np.linalg.norm(vectors.astype(np.float64), axis=1)
        sound = np.isfinite(norms) & (norms > 0)
        return (vectors[sound] / norms[sound, None]).astype(np.float32), np.flatnonzero(sound)


def read_chunks(run_file: str, rows: int, column: str) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the vectors of a shard in chunks of at least `rows` rows, each with the index of its first row."""
    start, waiting = 0, []
    for _, vectors in read_groups(run_file, column=column):
        waiting.append(vectors)
        if sum(map(len, waiting)) >= rows:
            yield start, np.concatenate(waiting)
            start, waiting = start + sum(map(len, waiting)), []
    if waiting:
        yield start, np.concatenate(waiting)
