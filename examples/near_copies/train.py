"""Reads the shards for training with WebDataset, without the near copies.

The arguments are the run's output folder and its shards.
"""

import sys
from pathlib import Path

import pyarrow.parquet as pq
import webdataset as wds


def read_removed(path: str) -> set[tuple[str, str]]:
    """Return shard and key of each image that is not the one of its group to keep."""
    pairs = pq.read_table(path).to_pylist()
    removed = {(pair["shard"], pair["key"]) for pair in pairs if not pair["keep"]}
    return removed | {(pair["other_shard"], pair["other_key"]) for pair in pairs if not pair["other_keep"]}


def main() -> None:
    """Print the number of images per caption that a training would read."""
    removed = read_removed(f"{sys.argv[1]}/near_copies.parquet")
    dataset = wds.WebDataset(sys.argv[2:], shardshuffle=False)
    dataset = dataset.select(lambda sample: (Path(sample["__url__"]).stem, sample["__key__"]) not in removed)
    seen = [caption.decode() for image, caption in dataset.to_tuple("jpg", "txt")]
    for caption in sorted(set(seen)):
        print(f"{caption}: {seen.count(caption)}")
    print(f"{len(seen)} images, {len(removed)} near copies left out")


if __name__ == "__main__":
    main()
