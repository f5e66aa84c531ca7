"""Assigns the rows of shards to clusters, in files that some jobs write and others read.

A row belongs to the cluster with the nearest centre, its home, and may visit others: two rows with different homes
are compared if one of them visits the home of the other. Rows x and y of norm 1, with homes a and b, are on opposite
sides of the plane halfway between the centres of a and b. If their cosine is t, their distance is sqrt(2 - 2 t), so
the distance of one of them from the plane is at most half of that. Such rows visit, but at most the `MAX_VISITS`
nearest clusters.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from embedders.copies.plan import Plan, normalize, read_chunks
from embedders.copies.search import Search

MAX_VISITS = 3
# Size of the vectors in memory at once when rows are assigned; with visiting rows up to four times as much.
BYTES_PER_CHUNK = 64 << 20
BYTES_PER_BLOCK = 64 << 20


def make_row_type(dimension: int) -> np.dtype:
    """Return the dtype of a row: its number in the run, its home, the clusters that it visits (or -1), its vector."""
    fields = [("row", "<i8"), ("home", "<i4"), ("visits", "<i4", MAX_VISITS), ("vector", "<f4", dimension)]
    return np.dtype(fields)


def assign(
    plan: Plan, files: dict[str, str], cosine: float, search: Search, rows_file: BinaryIO, offsets_file: BinaryIO
) -> int:
    """Write the rows of some shards by cluster.

    Args:
        plan: The plan.
        files: Path of the vectors by name of the shard.
        cosine: Rows with at least this cosine must be compared.
        search: Finds the nearest centres.
        rows_file: For the rows, in chunks; a chunk is sorted by cluster, home rows before visiting rows.
        offsets_file: For the offsets of each chunk: where home rows and visiting rows of each cluster begin, and
            where the chunk ends.

    Returns:
        Number of rows that were left out because they have no direction.
    """
    offsets, written, skipped = [], 0, 0
    chunk_rows = max(1, BYTES_PER_CHUNK // (4 * plan.centres.shape[1]))
    for shard, path in files.items():
        start = plan.starts[plan.shards.index(shard)]
        for first, vectors in read_chunks(path, chunk_rows, plan.column):
            for part in range(0, len(vectors), chunk_rows):
                unit, sound = normalize(vectors[part : part + chunk_rows])
                skipped += len(vectors[part : part + chunk_rows]) - len(unit)
                rows, segments = sort_by_cluster(plan.centres, unit, start + first + part + sound, cosine, search)
                rows_file.write(rows.tobytes())
                counts = np.bincount(segments, minlength=2 * len(plan.centres))
                offsets.append(written + np.concatenate([[0], np.cumsum(counts)]))
                written += len(rows)
    np.save(offsets_file, np.array(offsets, np.int64).reshape(-1, 2 * len(plan.centres) + 1))
    return skipped


def sort_by_cluster(
    centres: np.ndarray, vectors: np.ndarray, numbers: np.ndarray, cosine: float, search: Search
) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows to write, with a copy for each visit, and the segment of each: 2 * cluster + is_visit."""
    similarities, nearest = search.find_nearest(vectors, centres, min(1 + MAX_VISITS, len(centres)))
    home, visits = nearest[:, 0], np.full((len(vectors), MAX_VISITS), -1)
    for place in range(1, nearest.shape[1]):
        apart = np.linalg.norm(centres[home] - centres[nearest[:, place]], axis=1)
        to_plane = (similarities[:, 0] - similarities[:, place]) / np.maximum(apart, 1e-9)
        visits[:, place - 1] = np.where(to_plane <= np.sqrt(2 - 2 * cosine) / 2, nearest[:, place], -1)
    visitors, places = np.nonzero(visits >= 0)
    source = np.concatenate([np.arange(len(vectors)), visitors])
    segments = np.concatenate([2 * home, 2 * visits[visitors, places] + 1])
    order = np.argsort(segments, kind="stable")
    source, segments = source[order], segments[order]
    rows = np.empty(len(source), make_row_type(vectors.shape[1]))
    rows["row"], rows["home"] = numbers[source], home[source]
    rows["visits"], rows["vector"] = visits[source], vectors[source]
    return rows, segments


class AssignedRows:
    """Reads the rows that the assign jobs have written, block by block.

    Args:
        paths: Files of rows and of offsets of each job.
        dimension: Dimension of the vectors.
    """

    def __init__(self, paths: list[tuple[str, str]], dimension: int):
        self._type, self._files = make_row_type(dimension), []
        for rows, offsets in paths:
            if Path(rows).stat().st_size:  # an empty file cannot be mapped
                self._files.append((np.memmap(rows, self._type, "r"), np.load(offsets, mmap_mode="r")))

    def read(self, segment: int) -> Iterator[np.ndarray]:
        """Read the rows of a segment in blocks of about `BYTES_PER_BLOCK`."""
        limit = max(1, BYTES_PER_BLOCK // self._type.itemsize)
        waiting, size = [], 0
        for rows, offsets in self._files:
            for start, end in offsets[:, segment : segment + 2]:
                for first in range(start, end, limit):
                    waiting.append(rows[first : min(end, first + limit)])
                    size += len(waiting[-1])
                    if size >= limit:
                        yield np.concatenate(waiting)
                        waiting, size = [], 0
        if waiting:
            yield np.concatenate(waiting)
