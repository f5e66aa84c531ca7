"""The groups of near copies for the report, from the list of a run that searched for them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from embedders.output.near_copies import CopyCounts, read_counts, read_groups, read_pairs
from embedders.report.findings import Finding
from embedders.report.subset import SampleName

GROUPS, IMAGES_PER_GROUP = 8, 6


@dataclass(frozen=True)
class CopyGroups:
    """The content of the list of near copies.

    Attributes:
        file: Name of the list.
        counts: The totals.
        groups: The first few images of each of the largest groups, beginning with the one to keep.
        sizes: Number of images of each of these groups.
    """

    file: str
    counts: CopyCounts
    groups: list[list[SampleName]]
    sizes: list[int]

    def judge(self) -> Finding:
        """Return the finding for the report."""
        action = " Remove copies before you train or test on these." if self.counts.pairs else ""
        text = f"{self.counts.describe()}.{action}"
        return Finding("look" if self.counts.pairs else "good", text[0].upper() + text[1:], "copies")


def gather_copies(folder: Path, rows: Mapping[str, int], made_from: str) -> CopyGroups | None:
    """Return the largest groups; `None` if there is no list, or if the run has changed since it was made.

    Args:
        folder: The output folder.
        rows: Number of rows of each shard, by name.
        made_from: Digest of what the vectors were made from, as `Record.sign` returns it.
    """
    path = folder / "near_copies.parquet"
    if not path.is_file() or (counts := read_counts(path)).rows != rows or counts.made_from not in ("", made_from):
        return None
    group, pairs = np.unique(read_groups(path), return_counts=True)
    largest = group[np.argsort(-pairs, kind="stable")[:GROUPS]].tolist()
    images: dict[int, dict[SampleName, bool]] = {number: {} for number in largest}
    for pair in read_pairs(path, largest).to_pylist():
        images[pair["group"]][SampleName(pair["shard"], pair["key"])] = pair["keep"]
        images[pair["group"]][SampleName(pair["other_shard"], pair["other_key"])] = pair["other_keep"]
    ordered = [sorted(found, key=lambda name: not found[name]) for found in images.values()]
    return CopyGroups(path.name, counts, [names[:IMAGES_PER_GROUP] for names in ordered], [*map(len, ordered)])
