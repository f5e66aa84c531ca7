"""Nearest neighbours, closest pairs, outliers and a map of vectors. Pure functions of arrays.

Vectors are rows of norm 1 (`normalize`), so the dot product is the cosine.
"""

import numpy as np

# Number of nearest neighbours that decide whether a vector is an outlier.
NEIGHBOURS = 8
# With fewer vectors there is no structure for t-SNE to show, and scikit-learn is not needed.
MIN_FOR_TSNE = 30
_ROWS_AT_ONCE = 1000


def normalize(vectors: np.ndarray) -> np.ndarray:
    """Scale each row to norm 1, as float32; a zero row stays zero."""
    vectors = vectors.astype(np.float32)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(norms > 0, norms, 1)


def find_nearest(vectors: np.ndarray, count: int = NEIGHBOURS) -> tuple[np.ndarray, np.ndarray]:
    """Find the nearest neighbours of every row by cosine, without the row itself, nearest first.

    Returns:
        Their rows and their cosines, both of shape (rows, count), or with fewer columns if there are fewer rows.
    """
    count = max(0, min(count, len(vectors) - 1))
    rows = np.empty((len(vectors), count), np.int64)
    cosines = np.empty((len(vectors), count), np.float32)
    for start in range(0, len(vectors) if count else 0, _ROWS_AT_ONCE):
        block = vectors[start : start + _ROWS_AT_ONCE] @ vectors.T
        block[np.arange(len(block)), start + np.arange(len(block))] = -np.inf
        nearest = np.argpartition(-block, count - 1, axis=1)[:, :count]
        order = np.argsort(-np.take_along_axis(block, nearest, axis=1), axis=1, kind="stable")
        rows[start : start + len(block)] = np.take_along_axis(nearest, order, axis=1)
        cosines[start : start + len(block)] = np.take_along_axis(block, rows[start : start + len(block)], axis=1)
    return rows, cosines.clip(-1, 1)


def find_closest_pairs(rows: np.ndarray, cosines: np.ndarray, count: int) -> list[tuple[int, int, float]]:
    """Find the closest pairs. Each row is in at most one pair, so that many copies of an image do not fill the list.

    Args:
        rows: From `find_nearest`.
        cosines: From `find_nearest`.
        count: Number of pairs.
    """
    pairs: list[tuple[int, int, float]] = []
    taken: set[int] = set()
    for one in np.argsort(-cosines[:, 0], kind="stable") if rows.shape[1] else ():
        other = int(rows[one, 0])
        if len(pairs) < count and not taken & {int(one), other}:
            pairs.append((int(one), other, float(cosines[one, 0])))
            taken |= {int(one), other}
    return pairs


def find_outliers(cosines: np.ndarray, count: int) -> list[tuple[int, float]]:
    """Find the rows with the lowest mean cosine to their nearest neighbours, with that mean, lowest first."""
    if not cosines.shape[1]:
        return []
    means = cosines.mean(axis=1)
    return [(int(row), float(means[row])) for row in np.argsort(means, kind="stable")[:count]]


def measure_spread(vectors: np.ndarray) -> float:
    """Return the mean cosine of two rows, 1 for a single row; near 1, all rows are similar."""
    total, count = vectors.sum(axis=0, dtype=np.float64), len(vectors)
    return (
        float((total @ total - (vectors.astype(np.float64) ** 2).sum()) / (count * (count - 1))) if count > 1 else 1.0
    )


def count_main_directions(vectors: np.ndarray, share: float = 0.9) -> int:
    """Return the number of principal components with this share of the variance, from up to 1,000 rows."""
    centred = vectors[:_ROWS_AT_ONCE] - vectors[:_ROWS_AT_ONCE].mean(axis=0)
    variances = np.linalg.eigvalsh(centred @ centred.T)[::-1].clip(0)  # the same as of the covariance, with less work
    if not variances.sum():
        return 0
    return int(np.searchsorted(np.cumsum(variances) / variances.sum(), share) + 1)


def draw_map(vectors: np.ndarray, seed: int = 0) -> np.ndarray:
    """Project vectors to two dimensions, by t-SNE or, if there are few, by their principal components.

    Returns:
        Positions of shape (rows, 2); deterministic.
    """
    if len(vectors) < MIN_FOR_TSNE:
        centred = vectors - vectors.mean(axis=0)
        left, sizes, _ = np.linalg.svd(centred, full_matrices=False)
        positions = np.zeros((len(vectors), 2), np.float32)
        positions[:, : min(2, len(sizes))] = (left * sizes)[:, :2]
        return positions
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    components = min(50, *vectors.shape)
    perplexity = min(30, (len(vectors) - 1) / 3)
    # One thread makes the map independent of the number of cores. Also, the threads busy-wait for each other: on a
    # machine with other work, two of them took five times as long as one.
    with threadpool_limits(1):
        reduced = PCA(components, svd_solver="randomized", random_state=seed).fit_transform(vectors)
        return TSNE(init="pca", perplexity=perplexity, max_iter=500, random_state=seed).fit_transform(reduced)
