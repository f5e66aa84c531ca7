"""Comparing the rows of clusters: pairs of near copies, each once."""

from collections.abc import Iterable
from itertools import chain, islice

import numpy as np

from embedders.copies.clusters import AssignedRows
from embedders.copies.search import find_near

PAIR = np.dtype([("row", "<i8"), ("other", "<i8"), ("cosine", "<f4")])


def compare(rows: AssignedRows, clusters: Iterable[int], cosine: float) -> tuple[np.ndarray, int]:
    """Find the pairs of these clusters whose cosine is at least this.

    Returns:
        The pairs, of type `PAIR`, in order; `row` comes before `other` in the run. The number of rows compared.
    """
    found, compared = [np.empty(0, PAIR)], 0
    for cluster in clusters:
        for number, block in enumerate(rows.read(2 * cluster)):
            compared += len(block)
            found.append(compare_blocks(block, block, cluster, cosine))
            others = chain(islice(rows.read(2 * cluster), number + 1, None), rows.read(2 * cluster + 1))
            found += [compare_blocks(queries, block, cluster, cosine) for queries in others]
    return np.unique(np.concatenate(found)), compared


def compare_blocks(queries: np.ndarray, block: np.ndarray, cluster: int, cosine: float) -> np.ndarray:
    """Find the pairs of a query, which is at home in a cluster or visits it, and a row that is at home there."""
    left, right, cosines = find_near(
        np.ascontiguousarray(queries["vector"]), np.ascontiguousarray(block["vector"]), cosine
    )
    one, other = queries[["row", "home"]][left], block[["row", "visits"]][right]
    # Where each visits the home of the other they meet twice; the cluster of the lower number has the pair.
    meet_twice = (other["visits"] == one["home"][:, None]).any(axis=1)
    kept = (one["row"] != other["row"]) & (~meet_twice | (cluster < one["home"]))
    pairs = np.empty(int(kept.sum()), PAIR)
    pairs["row"] = np.minimum(one["row"], other["row"])[kept]
    pairs["other"] = np.maximum(one["row"], other["row"])[kept]
    # In one block both of a pair find each other; by rounding their cosines may differ in the last bit.
    pairs["cosine"] = np.minimum(cosines[kept], 1)
    _, first = np.unique(pairs[["row", "other"]], return_index=True)
    return pairs[first]
