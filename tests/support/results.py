"""What a shard leaves, written without embedding anything."""

import json
from dataclasses import replace
from math import prod

import numpy as np

from embedders.output.columns import Columns
from embedders.output.failed import FailedSample
from embedders.output.provenance import EmbedderRecord, Provenance, ShardRecord
from embedders.output.writer import EmbeddingWriter, write_ledger


def make_provenance(samples=0, embedder=None, shard="a", **known):
    made = EmbedderRecord("a.py:A", {}, "a", "0" * 64, None, {"background": "white"}, "cpu", {"tarquet": "0.1.0"})
    values = {"embedding_dtype": "float32", "id_col": "__key__", "embedded": samples, "failed": {}} | known
    shard = ShardRecord("a.tar", "0" * 64, 5, name=shard)
    return Provenance(embedder=embedder or made, shard=shard, samples=samples, **values)


def make_rows(columns, samples):
    """The columns of samples, each of which is stored."""
    rows, wrong = columns.read(samples)
    assert not wrong
    return rows


def write_vectors(
    path, samples, vectors, columns=None, name="v", provenance=None, batch=None, dtype=None, shapes=None
):
    """Write an output from the metadata of its samples; `shapes` names several columns, or one of several vectors."""
    shapes = shapes or {name: vectors.shape[1:]}
    columns, provenance = columns or Columns(), provenance or make_provenance(len(samples))
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (columns.schema, name, dtype or str(vectors.dtype))
    with path.open("wb") as file, EmbeddingWriter(file, provenance.shard.name, *shape) as writer:
        for start in range(0, len(samples), batch or max(len(samples), 1)):
            part = slice(start, start + (batch or len(samples)))
            writer.write(make_rows(columns, samples[part]), vectors[part], shapes)
            if batch:
                writer._flush()
        writer.close(shapes, provenance)


def write_shard(
    folder, name, rows, failed, dimension=2, samples=None, seconds=None, usage=None, fields=None, **known
):
    provenance = make_provenance(rows + len(failed) if samples is None else samples, shard=name, **known)
    keys = fields or [{"__key__": str(n), "key": str(n)} for n in range(rows)]
    vectors, columns = np.zeros((rows, dimension), np.float32), Columns(provenance.id_col)
    write_vectors(folder / f"embeddings/{name}.parquet", keys, vectors, columns, provenance=provenance)
    path = folder / f"ledger/{name}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        failed = [FailedSample(key, kind, f"{key} is bad") for key, kind in failed]
        write_ledger(file, failed, provenance, seconds or {"waiting_for_images": 1.5, "model": 2.25}, usage)


def make_run(
    folder,
    rows,
    dimension=5,
    dtype="float32",
    vectors=None,
    columns=(),
    fields=None,
    name="v",
    id_col="__key__",
    shapes=None,
    **made,
):
    """Write a finished run of random vectors, or of these ones; `fields` gives the metadata of a row by its key."""
    numbers = sum(map(prod, shapes.values())) if shapes else dimension
    chance = np.random.default_rng(sum(map(ord, "".join(rows))))
    embedder = replace(make_provenance().embedder, **made)
    for shard, count in rows.items():
        values = chance.standard_normal((count, numbers)) if vectors is None else vectors[shard]
        samples = [{"__key__": f"{n:05d}"} | (fields(shard, n) if fields else {}) for n in range(count)]
        provenance = make_provenance(count, embedder, shard, id_col=id_col)
        path = folder / f"embeddings/{shard}.parquet"
        values = values.astype("float32" if dtype == "int8" else dtype)
        options = {"dtype": dtype, "shapes": shapes}
        write_vectors(path, samples, values, Columns(id_col, columns), name, provenance, **options)
    (folder / "run_shards.json").write_text(json.dumps({shard: f"{shard}.tar" for shard in rows}))
