"""Searches vectors by cosine similarity on the CPU. The only user of faiss; `gpu_search.py` does the same on a GPU.

Vectors are float32 rows of norm 1, so the inner product is the cosine.
"""

from typing import Protocol

import faiss
import numpy as np

# Due to rounding, the cosine of two equal vectors may be this much below 1.
ROUNDING = 1e-6
# The number of pairs grows with the square of the number of copies. Each image keeps at most this many pairs per
# block, which is more than enough to put all its copies into one group.
MAX_PER_ROW = 1000
# Maximum size of the matrix of cosines between queries and a block.
_CELLS = 16 << 20

Pairs = tuple[np.ndarray, np.ndarray, np.ndarray]


class Search(Protocol):
    """What the steps of the search for near copies need from a device."""

    def find_nearest(self, vectors: np.ndarray, centres: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Find the nearest centres of each vector, nearest first.

        Returns:
            Their cosines and their indices, of shape (len(vectors), count).
        """
        ...

    def find_near(self, queries: np.ndarray, block: np.ndarray, cosine: float) -> Pairs:
        """Find the pairs of a query and a row with at least this cosine, at most `MAX_PER_ROW` for each query.

        Returns:
            Index of the query, index of the row in the block, and cosine of each pair.
        """
        ...


def set_threads(count: int) -> None:
    """Set the number of threads of faiss."""
    faiss.omp_set_num_threads(count)


class CpuSearch:
    """Searches by faiss."""

    def find_nearest(self, vectors: np.ndarray, centres: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Find the nearest centres, as in `Search`."""
        return faiss.knn(vectors, centres, count, metric=faiss.METRIC_INNER_PRODUCT)

    def find_near(self, queries: np.ndarray, block: np.ndarray, cosine: float) -> Pairs:
        """Find pairs, as in `Search`."""
        index = faiss.IndexFlatIP(block.shape[1])
        index.add(block)
        found = []
        at_once = max(1, _CELLS // max(1, len(block)))
        for start in range(0, len(queries), at_once):
            limits, cosines, rows = index.range_search(queries[start : start + at_once], cosine - ROUNDING)
            counts = np.asarray(np.diff(limits.astype(np.int64)), np.int64)
            numbers = np.repeat(np.arange(start, start + len(counts)), counts)
            found.append(keep_nearest(numbers, rows, cosines))
        return join_pairs(found)


def find_centres(vectors: np.ndarray, count: int) -> np.ndarray:
    """Return the centres of clusters by spherical k-means; deterministic."""
    kmeans = faiss.Kmeans(
        vectors.shape[1],
        count,
        niter=10,
        spherical=True,
        seed=0,
        min_points_per_centroid=1,
        max_points_per_centroid=256,
    )
    kmeans.train(vectors)
    return np.asarray(kmeans.centroids)


def keep_nearest(numbers: np.ndarray, rows: np.ndarray, cosines: np.ndarray) -> Pairs:
    """Keep the `MAX_PER_ROW` pairs of each query with the highest cosines; the pairs are sorted by query."""
    starts = np.flatnonzero(np.diff(numbers, prepend=-1))
    counts = np.diff(starts, append=len(numbers))
    if len(counts) and counts.max() > MAX_PER_ROW:
        order = np.lexsort((rows, -cosines, numbers))
        rank = np.arange(len(order)) - np.repeat(starts, counts)
        kept = order[rank < MAX_PER_ROW]
        numbers, rows, cosines = numbers[kept], rows[kept], cosines[kept]
    return numbers, rows, cosines


def join_pairs(found: list[Pairs]) -> Pairs:
    """Return all pairs as one."""
    nothing = np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32)
    numbers, rows, cosines = (np.concatenate(parts) for parts in zip(nothing, *found, strict=True))
    return numbers, rows, cosines
