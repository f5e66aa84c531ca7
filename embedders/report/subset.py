"""A random sample of a run's vectors, in bounded time and memory, however many there are. Owns which rows are taken.

Of large runs it takes row groups, some rows of each: to read a row is to read its group, and to show its image is to
walk through its tar. So rows of a sample may be neighbours in a tar; in shuffled shards that does not matter.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from embedders.output.parquet import count_groups, read_groups

# 10,000 vectors of 1,280 numbers are 51 MB, and comparing each with each takes seconds.
MAX_ROWS = 10_000
# Row groups are of 8 MB, and each shard is a tar to walk through.
MAX_GROUPS = 24
MAX_SHARDS = 24


@dataclass(frozen=True, order=True)
class SampleName:
    """Where a sample of a run is found again.

    Attributes:
        shard: Name of its shard.
        key: Its key.
        offset: Position of its first member, for a failed sample, whose key another one may have; -1 for others.
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
        is_whole: Whether these are all the rows of the run.
    """

    names: list[SampleName]
    vectors: np.ndarray
    is_whole: bool

    def __len__(self) -> int:
        return len(self.names)

    def choose(self, chosen: np.ndarray) -> "VectorSample":
        """Take the rows for which `chosen` is true."""
        names = [name for name, is_chosen in zip(self.names, chosen, strict=True) if is_chosen]
        return VectorSample(names, self.vectors[chosen], self.is_whole)


def sample_vectors(folder: str | Path, rows: Mapping[str, int], dimension: int, seed: int = 0) -> VectorSample:
    """Take a random sample, the same one for the same files.

    Args:
        folder: Folder of the outputs.
        rows: Number of rows by name of the shard.
        dimension: Numbers of a vector.
        seed: Of the random numbers.

    Raises:
        ShardError: A file is missing or cut short.
    """
    chance = np.random.default_rng(seed)
    groups = choose_groups(folder, {shard: count for shard, count in rows.items() if count}, chance)
    names, vectors = [], [np.empty((0, dimension), np.float32)]
    taken = 0
    for number, (shard, group) in enumerate(groups):
        ((group_keys, group_vectors),) = read_groups(f"{folder}/{shard}.parquet", [group])
        # What small groups leave of their part goes to those that follow.
        part = (MAX_ROWS - taken) // (len(groups) - number)
        chosen = np.sort(chance.permutation(len(group_keys))[:part])
        names += [SampleName(shard, group_keys[row]) for row in chosen]
        vectors.append(group_vectors[chosen].astype(np.float32))
        taken += len(chosen)
    return VectorSample(names, np.concatenate(vectors), taken == sum(rows.values()))


def choose_groups(folder: str | Path, rows: Mapping[str, int], chance: np.random.Generator) -> list[tuple[str, int]]:
    """Choose shards by their number of rows, then row groups among theirs, in the order of the shards."""
    names = list(rows)
    if len(names) > MAX_SHARDS:
        weights = np.array(list(rows.values())) / sum(rows.values())
        names = [names[index] for index in np.sort(chance.choice(len(names), MAX_SHARDS, replace=False, p=weights))]
    groups = [(shard, group) for shard in names for group in range(count_groups(f"{folder}/{shard}.parquet"))]
    return [groups[index] for index in np.sort(chance.permutation(len(groups))[:MAX_GROUPS])]
