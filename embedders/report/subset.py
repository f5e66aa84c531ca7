"""A random sample of a run's vectors, in bounded time and memory for any number of vectors.

From large runs it takes some rows of some row groups, because reading a row means reading its group, and showing its
image means reading through its tar. So rows of a sample may be neighbours in a tar, which does not matter if the
shards are shuffled.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from embedders.output.parquet import count_groups, read_groups

# 10,000 vectors of 1,280 dimensions take 51 MB, and comparing all with each other takes seconds.
MAX_ROWS = 10_000
# A row group has 8 MB, and for the pictures each shard's tar is read.
MAX_GROUPS = 24
MAX_SHARDS = 24


@dataclass(frozen=True, order=True)
class SampleName:
    """Identifies a sample of a run.

    Attributes:
        shard: Name of the shard.
        key: Key of the sample.
        offset: Position of the first member of a failed sample, whose key may not be unique; -1 for other samples.
    """

    shard: str
    key: str
    offset: int = -1


@dataclass(frozen=True)
class VectorSample:
    """Rows of a run.

    Attributes:
        names: Shard and key of each row.
        vectors: Of shape (rows, dimension), as stored.
        is_whole: Whether the sample has all the rows of the run.
    """

    names: list[SampleName]
    vectors: np.ndarray
    is_whole: bool

    def __len__(self) -> int:
        return len(self.names)

    def choose(self, chosen: np.ndarray) -> "VectorSample":
        """Return the rows for which `chosen` is true."""
        names = [name for name, is_chosen in zip(self.names, chosen, strict=True) if is_chosen]
        return VectorSample(names, self.vectors[chosen], self.is_whole)


def sample_vectors(
    folder: str | Path, rows: Mapping[str, int], dimension: int, seed: int = 0, column: str = ""
) -> VectorSample:
    """Return a random sample; deterministic for the same files.

    Args:
        folder: Folder of the outputs.
        rows: Number of rows by name of the shard.
        dimension: Dimension of the vectors.
        seed: Seed of the random numbers.
        column: As in `vectors.choose_column`.

    Raises:
        ShardError: A file is missing or truncated.
    """
    chance = np.random.default_rng(seed)
    groups = choose_groups(folder, {shard: count for shard, count in rows.items() if count}, chance)
    names, vectors = [], [np.empty((0, dimension), np.float32)]
    taken = 0
    for number, (shard, group) in enumerate(groups):
        ((group_keys, group_vectors),) = read_groups(f"{folder}/{shard}.parquet", [group], column)
        # If a group is smaller than its part, the following groups get more.
        part = (MAX_ROWS - taken) // (len(groups) - number)
        chosen = np.sort(chance.permutation(len(group_keys))[:part])
        names += [SampleName(shard, group_keys[row]) for row in chosen]
        vectors.append(group_vectors[chosen].astype(np.float32))
        taken += len(chosen)
    return VectorSample(names, np.concatenate(vectors), taken == sum(rows.values()))


def choose_groups(folder: str | Path, rows: Mapping[str, int], chance: np.random.Generator) -> list[tuple[str, int]]:
    """Choose shards, weighted by their number of rows, then some of their row groups, in the order of the shards."""
    names = list(rows)
    if len(names) > MAX_SHARDS:
        weights = np.array(list(rows.values())) / sum(rows.values())
        names = [names[index] for index in np.sort(chance.choice(len(names), MAX_SHARDS, replace=False, p=weights))]
    groups = [(shard, group) for shard in names for group in range(count_groups(f"{folder}/{shard}.parquet"))]
    return [groups[index] for index in np.sort(chance.permutation(len(groups))[:MAX_GROUPS])]
