"""What a shard leaves, written without embedding anything."""

import json

import numpy as np

from embedders.output.columns import Columns
from embedders.output.ledger import FailedSample
from embedders.output.parquet import EmbeddingWriter, write_ledger


def write_shard(folder, name, rows, failed, dimension=2, samples=None):
    for kind in ("embeddings", "ledger"):
        (folder / kind / name).parent.mkdir(parents=True, exist_ok=True)
    provenance = {"samples": rows + len(failed) if samples is None else samples}
    with (folder / "embeddings" / f"{name}.parquet").open("wb") as file:
        writer = EmbeddingWriter(file, Columns(), "v", "float32")
        writer.write([{"key": str(n)} for n in range(rows)], np.zeros((rows, dimension), np.float32))
        writer.close(dimension, provenance)
    with (folder / "ledger" / f"{name}.parquet").open("wb") as file:
        seconds = {"waiting_for_images": 1.5, "model": 2.25}
        failed = [FailedSample(key, kind, f"{key} is bad") for key, kind in failed]
        write_ledger(file, failed, provenance | {"seconds": seconds})


def make_run(
    folder,
    rows,
    dimension=5,
    dtype="float32",
    vectors=None,
    weights_sha256="00ff",
    columns=(),
    fields=None,
    vector_column="v",
):
    """Write a finished run of random vectors, or of these ones; `fields` gives the metadata of a row by its key."""
    chance = np.random.default_rng(sum(map(ord, "".join(rows))))
    embedder = {"class": "a:B", "args": {"size": 1}, "model_name": "a model", "source_sha256": None}
    embedder |= {"weights_sha256": weights_sha256, "preprocessing": {"mean": [0.5]}, "device": "cpu", "versions": {}}
    columns = Columns("__key__", columns)
    for shard, count in rows.items():
        path = folder / f"embeddings/{shard}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        values = chance.standard_normal((count, dimension)) if vectors is None else vectors[shard]
        with path.open("wb") as file:
            writer = EmbeddingWriter(file, columns, vector_column, dtype)
            metadata = [{"__key__": f"{n:05d}"} | (fields(shard, n) if fields else {}) for n in range(count)]
            writer.write([columns.read(row, shard) for row in metadata], values.astype(np.float32))
            writer.close(values.shape[1], {"samples": count, "embedder": embedder})
    (folder / "run_shards.json").write_text(json.dumps({shard: f"{shard}.tar" for shard in rows}))
