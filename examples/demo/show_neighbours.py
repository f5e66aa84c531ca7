"""Prints nearest neighbours by cosine similarity in the demo's results, and where the results are.

The only argument is the output folder of the run.
"""

import sys
from pathlib import Path

import numpy as np
import pyarrow.dataset as ds

QUERIES = ("chelsea-00", "coffee-00", "rocket-00")
NEIGHBOURS = 5


def main() -> None:
    """Read the vectors of all shards and print the neighbours of three crops."""
    results = Path(sys.argv[1])
    table = ds.dataset(results / "embeddings", format="parquet").to_table()
    vectors = np.stack(table["image_embedding"].to_numpy())
    keys, scenes = table["key"].to_pylist(), np.array(table["scene"].to_pylist())

    cosine = vectors @ vectors.T  # the vectors have norm 1
    np.fill_diagonal(cosine, -1)
    print(f"\nNearest neighbours by cosine, of {len(keys)} crops of {len(set(scenes))} photographs:\n")
    for query in QUERIES:
        row = keys.index(query)
        nearest = np.argsort(-cosine[row])
        stranger = next(other for other in nearest if scenes[other] != scenes[row])
        print(f"  {query:12}", *(f"{keys[other]} {cosine[row, other]:.2f}" for other in nearest[:NEIGHBOURS]))
        print(f"  {'':12}  nearest of another photograph: {keys[stranger]} {cosine[row, stranger]:.2f}")
    same = int((scenes[cosine.argmax(axis=1)] == scenes).sum())
    print(f"\nFor {same} of {len(keys)} crops the nearest one is a crop of the same photograph.")
    print(
        f"""
Results: {results}
  embeddings/*.parquet   {len(keys)} vectors of {vectors.shape[1]} dimensions, one row per image
  ledger/*.parquet       images that could not be embedded, and why
  near_copies.parquet    pairs and groups of near copies: the crops of one photograph
  summary.json           totals
  report.html            failures, speed, a map and neighbours; open it in a browser

Read them:
  import numpy as np, pyarrow.dataset as ds
  table = ds.dataset("{results}/embeddings", format="parquet").to_table()
  vectors = np.stack(table["image_embedding"].to_numpy())"""
    )


if __name__ == "__main__":
    main()
