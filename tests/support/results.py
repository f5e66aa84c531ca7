"""What a shard leaves, written without embedding anything."""

import numpy as np

from embedders.output.columns import Columns
from embedders.output.ledger import FailedSample
from embedders.output.parquet import EmbeddingWriter, write_ledger


def write_shard(folder, name, rows, failed, dimension=2, samples=None, embedder=None):
    for kind in ("embeddings", "ledger"):
        (folder / kind / name).parent.mkdir(parents=True, exist_ok=True)
    provenance = {"samples": rows + len(failed) if samples is None else samples, "embedder": embedder or {}}
    with (folder / "embeddings" / f"{name}.parquet").open("wb") as file:
        writer = EmbeddingWriter(file, Columns(), "v", "float32")
        writer.write([{"key": str(n)} for n in range(rows)], np.zeros((rows, dimension), np.float32))
        writer.close(dimension, provenance)
    with (folder / "ledger" / f"{name}.parquet").open("wb") as file:
        seconds = {"waiting_for_images": 1.5, "model": 2.25}
        failed = [FailedSample(key, kind, f"{key} is bad") for key, kind in failed]
        write_ledger(file, failed, provenance | {"seconds": seconds})
