"""Compares the rows within clusters, and finds each pair of near copies once."""

from collections.abc import Iterable
from itertools import chain, islice

import numpy as np

from embedders.copies.clusters import AssignedRows
from embedders.copies.search import Search

PAIR = np.dtype([("row", "<i8"), ("other", "<i8"), ("cosine", "<f4")])


def compare(rows: AssignedRows, clusters: Iterable[int], cosine: float, search: Search) -> tuple[np.ndarray, int]:
    """Find the pairs in these clusters with at least this cosine.

    Returns:
        The sorted pairs, of dtype `PAIR`, where `row` comes before `other` in the run; the number of rows compared.
    """
    found, compared = [np.empty(0, PAIR)], 0
    for cluster in clusters:
        for number, block in enumerate(rows.read(2 * cluster)):
            compared += len(block)
            found.append(compare_blocks(block, block, cluster, cosine, search))
            others = chain(islice(rows.read(2 * cluster), number + 1, None), rows.read(2 * cluster + 1))
            found += [compare_blocks(queries, block, cluster, cosine, search) for queries in others]
    return np.unique(np.concatenate(found)), compared


def compare_blocks(queries: np.ndarray, block: np.ndarray, cluster: int, cosine: float, search: Search) -> np.ndarray:
    """Find the pairs of a query, which has its home in the cluster or visits it, and a row with its home there."""
    left, right, cosines = search.find_near(
        np.ascontiguousarray(queries["vector"]), np.ascontiguousarray(block["vector"]), cosine
    )
    one, other = queries[["row", "home"]][left], block[["row", "visits"]][right]
    # If each visits the home of the other, they are compared twice; the cluster with the lower number keeps the pair.
    meet_twice = (other["visits"] == one["home"][:, None]).any(axis=1)
    kept = (one["row"] != other["row"]) & (~meet_twice | (cluster < one["home"]))
    pairs = np.empty(int(kept.sum()), PAIR)
    pairs["row"] = np.minimum(one["row"], other["row"])[kept]
    pairs["other"] = np.maximum(one["row"], other["row"])[kept]
    # Within one block, both rows find each other; due to rounding, the cosines may differ in the last bit.
    pairs["cosine"] = np.minimum(cosines[kept], 1)
    _, first = np.unique(pairs[["row", "other"]], return_index=True)
    return pairs[first]
