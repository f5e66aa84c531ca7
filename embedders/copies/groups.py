"""Pairs of near copies -> groups, the image of each group to keep, and the list of all pairs."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from embedders.copies.compare import PAIR
from embedders.copies.plan import Plan
from embedders.errors import ConfigError
from embedders.output.near_copies import CopyCounts, write_near_copies
from embedders.output.run import Run
from embedders.output.tables import read_rows, read_schema

PAIRS_AT_ONCE = 1 << 18


def list_near_copies(
    run: Run, plan: Plan, paths: list[str], cosine: float, keep: str, output: str | Path
) -> CopyCounts:
    """Write the list of near copies.

    All the pairs are in memory, about 60 bytes for each, and the keys of their images.

    Args:
        run: The run.
        plan: The plan of the search.
        paths: Files of pairs.
        cosine: The minimum cosine of a pair.
        keep: `first` keeps the first image of a group in the order of the run; `largest` keeps the one with the most
            pixels according to the columns `width` and `height`, and the first of equal ones.
        output: The list to write.
    """
    parts, compared = [np.empty(0, PAIR)], 0
    for path in paths:
        with np.load(path) as file:
            parts.append(file["pairs"])
            compared += int(file["compared"])
    pairs = np.concatenate(parts)
    images, places = np.unique(np.concatenate([pairs["row"], pairs["other"]]), return_inverse=True)
    left, right = places[: len(pairs)], places[len(pairs) :]
    graph = coo_array((np.ones(len(pairs), bool), (left, right)), shape=(len(images), len(images)))
    groups, group = connected_components(graph, directed=False) if len(images) else (0, np.empty(0, np.int32))
    named = read_names(run, plan, images, ["width", "height"] if keep == "largest" else [])
    kept = choose_kept(group, groups, measure_pixels(named) if keep == "largest" else np.zeros(len(images)))
    found = (compared, len(pairs), groups, len(images))
    counts = CopyCounts(cosine, keep, run.rows, *found, plan.column, plan.signature)
    order = np.lexsort((right, left, group[left]))

    def make_tables() -> Iterator[pa.Table]:
        for start in range(0, len(order), PAIRS_AT_ONCE):
            rows = order[start : start + PAIRS_AT_ONCE]
            one, other = named.take(left[rows]), named.take(right[rows])
            columns = {"shard": one["shard"], "key": one["key"]}
            columns |= {"other_shard": other["shard"], "other_key": other["key"], "cosine": pairs["cosine"][rows]}
            columns |= {"group": group[left[rows]], "keep": kept[left[rows]], "other_keep": kept[right[rows]]}
            yield pa.table(columns)

    write_near_copies(output, make_tables(), counts)
    return counts


def read_names(run: Run, plan: Plan, images: np.ndarray, columns: list[str]) -> pa.Table:
    """Read shard, key and further columns of these rows of the run, one row group at a time.

    Raises:
        ConfigError: There is no such column.
    """
    known = read_schema(run)
    for name in columns:
        if name not in known.names:
            raise ConfigError(
                f"near_copies: keep is 'largest', but the results have no column {name!r}; run snakemake"
            )
    schema = pa.schema([known.field(name) for name in ("shard", "key", *columns)])
    parts = [schema.empty_table()]
    ends = np.searchsorted(images, plan.starts)
    for number in np.flatnonzero(np.diff(ends)):
        wanted = images[ends[number] : ends[number + 1]] - plan.starts[number]
        first = 0
        for table in read_rows(run, plan.shards[number], schema):
            here = wanted[(wanted >= first) & (wanted < first + len(table))] - first
            parts.append(table.take(here))
            first += len(table)
    return pa.concat_tables(parts).combine_chunks()


def measure_pixels(named: pa.Table) -> np.ndarray:
    """Return the number of pixels of each image, 0 if unknown."""
    width, height = (pc.cast(named[name], pa.float64()) for name in ("width", "height"))
    return pc.fill_null(pc.multiply(width, height), 0.0).to_numpy()


def choose_kept(group: np.ndarray, groups: int, pixels: np.ndarray) -> np.ndarray:
    """Return for each image whether to keep it: the first one of its group that has the most pixels."""
    order = np.lexsort((np.arange(len(group)), -pixels, group))
    kept = np.zeros(len(group), bool)
    kept[order[np.searchsorted(group[order], np.arange(groups))]] = True
    return kept
