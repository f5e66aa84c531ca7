"""Searching vectors by cosine similarity. The only user of faiss.

Vectors come as rows of norm 1, float32, so that an inner product is a cosine.
"""

import faiss
import numpy as np

# A pair of equal vectors may have a cosine that is this much below 1, by rounding.
ROUNDING = 1e-6
# A picture in very many copies has as many pairs as copies squared. Each image keeps this many of a block: more than
# enough to put all of them into one group.
MAX_PER_ROW = 1000
# Numbers in the table of cosines of some queries with a block.
_CELLS = 16 << 20


def set_threads(count: int) -> None:
    """Search on this many threads from now on."""
    faiss.omp_set_num_threads(count)


def find_centres(vectors: np.ndarray, count: int) -> np.ndarray:
    """Find the centres of clusters by spherical k-means; the same ones for the same vectors."""
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


def find_nearest(vectors: np.ndarray, centres: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Find the nearest centres of each vector, nearest first.

    Returns:
        Their cosines and their numbers, of shape (len(vectors), count).
    """
    return faiss.knn(vectors, centres, count, metric=faiss.METRIC_INNER_PRODUCT)


def find_near(queries: np.ndarray, block: np.ndarray, cosine: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Find the pairs of a query and a row of a block whose cosine is at least this, `MAX_PER_ROW` for each query.

    Returns:
        Number of the query, number of the row, and cosine of each pair.
    """
    index = faiss.IndexFlatIP(block.shape[1])
    index.add(block)
    found = []
    at_once = max(1, _CELLS // max(1, len(block)))
    for start in range(0, len(queries), at_once):
        limits, cosines, rows = index.range_search(queries[start : start + at_once], cosine - ROUNDING)
        counts = np.asarray(np.diff(limits.astype(np.int64)), np.int64)
        numbers = np.repeat(np.arange(start, start + len(counts)), counts)
        if len(counts) and counts.max() > MAX_PER_ROW:
            order = np.lexsort((rows, -cosines, numbers))
            rank = np.arange(len(order)) - np.repeat(limits[:-1].astype(np.int64), counts)
            kept = order[rank < MAX_PER_ROW]
            numbers, rows, cosines = numbers[kept], rows[kept], cosines[kept]
        found.append((numbers, rows, cosines))
    if not found:
        return np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32)
    queries_found, rows_found, cosines_found = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return queries_found, rows_found, cosines_found
