"""`embed_shard`: the loop from a shard to its Parquet file. Owns the order of things and the shard's account.

The model runs in the caller's thread while `load_dataset_shard` reads ahead in another.
"""

import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from embedders.base import ImageEmbedder, uses_default_loader
from embedders.errors import EmbedderError, TarquetError, describe_error
from embedders.ledger import FailedSample, Ledger
from embedders.model import Model
from embedders.outputs import write_whole
from embedders.parquet import Columns, EmbeddingWriter, write_ledger
from embedders.prefetch import prefetch
from embedders.provenance import SCHEMA_VERSION, describe_embedder, describe_shard
from embedders.shards import check_exists, read_metadata, read_samples

log = logging.getLogger(__name__)


def embed_shard(
    embedder: ImageEmbedder,
    tar_path: str | Path,
    parquet_path: str | Path,
    *,
    ledger_path: str | Path | None = None,
    id_col: str = "__key__",
    metadata_columns: str | Sequence[str] | Mapping[str, str] = (),
    embedding_dtype: str = "float32",
    max_failed_fraction: float = 0.1,
    accept_damaged_shards: bool = False,
    only: Collection[str] | None = None,
    device: str | None = None,
) -> Ledger:
    """Embed one shard.

    Args:
        embedder: The embedder; its model is loaded once and kept for the next shard.
        tar_path: The shard.
        parquet_path: Where the vectors go; the file appears whole or not at all.
        ledger_path: Where the samples that failed are named, one row each; `None` leaves them to the log and to
            the value returned.
        id_col: The metadata field that identifies a sample.
        metadata_columns: As in `parquet.Columns`.
        embedding_dtype: `float32` or `float16`.
        max_failed_fraction: With more failed samples than this share the shard fails.
        accept_damaged_shards: Whether to embed what is whole of a damaged tar, and name the rest in the ledger.
        only: Keys of the samples to embed, for instance those that failed before; `None` embeds all.
        device: `"cuda"` or `"cpu"`; `None` takes CUDA where torch sees it.

    Returns:
        The ledger: counts, and the samples that failed.

    Raises:
        ShardError: The shard is missing or damaged, or too much of it failed.
        EmbedderError: The embedder breaks its contract.
        OutputError: The result cannot be written.
        GpuError: The GPU was lost.
    """
    tar_path = str(tar_path)
    check_exists(tar_path)
    if not hasattr(embedder, "classifiers"):
        raise EmbedderError(f"{type(embedder).__name__}.__init__ does not call super().__init__(...); add the call")
    if embedder.classifiers:
        raise EmbedderError(f"{embedder.model_name}: classifiers are not run by this version; expected none")
    if only is not None and not uses_default_loader(embedder):
        raise EmbedderError(f"{embedder.model_name} has a loader of its own, which cannot embed chosen samples only")
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    columns = Columns(id_col, metadata_columns)
    ledger = embedder.ledger = Ledger(tar_path, accept_damaged_shards, only)
    start = perf_counter()
    with (
        write_whole(parquet_path) as file,
        EmbeddingWriter(file, columns, embedder.image_embedding_column, embedding_dtype) as writer,
        ThreadPoolExecutor(1, thread_name_prefix="hash") as hashing,
    ):
        # Runs a little ahead of the reader, and so brings the shard into memory for it.
        shard = hashing.submit(describe_shard, tar_path)
        model = Model(embedder, device, tar_path, embedding_dtype)
        ids = {} if uses_default_loader(embedder) else count_samples(tar_path, id_col, ledger)
        for batch, metadata in prefetch(read_batches(embedder, tar_path), depth=2):
            vectors = model.embed(batch, metadata)
            metadata = [add_key(sample, id_col, ids) for sample in metadata]
            writer.write([columns.read(sample, tar_path) for sample in metadata], vectors)
            for sample in metadata:
                settle_sample(ledger, str(sample["__key__"]))
        for key in ledger.unsettled():
            ledger.fail(FailedSample(key, "not_loaded", "load_dataset_shard did not yield it"))
        ledger.check(max_failed_fraction)
        provenance = {
            "schema_version": SCHEMA_VERSION,
            "embedder": describe_embedder(embedder, model.weights, device),
            "max_batch_size": model.max_batch_size,
            "embedding_dtype": embedding_dtype,
            "id_col": id_col,
            "shard": shard.result(),
            "ledger": ledger_path and str(ledger_path),
            "samples": ledger.seen,
            "embedded": ledger.embedded,
            "failed": ledger.count_kinds(),
        }
        writer.close(model.dimension or model.probe_dimension(), provenance)
        if ledger_path is not None:
            # First, so that vectors never stand without the account of what is not among them.
            with write_whole(ledger_path) as ledger_file:
                write_ledger(ledger_file, ledger.failed, provenance)
    seconds = perf_counter() - start
    log.info(
        f"{tar_path}: {ledger.seen} samples, {ledger.embedded} embedded, {len(ledger.failed)} failed "
        f"in {seconds:.1f} s ({ledger.embedded / seconds:.0f} images/s) on {device}"
    )
    return ledger


def read_batches(embedder: ImageEmbedder, tar_path: str) -> Iterator[tuple[Any, list[dict]]]:
    """Draw the batches from an embedder's loader.

    Raises:
        EmbedderError: A loader of the user's own raised, or yields something else.
    """
    try:
        for batch, metadata in embedder.load_dataset_shard(tar_path):
            if not isinstance(metadata, list | tuple) or not all(isinstance(sample, dict) for sample in metadata):
                raise TypeError(f"its metadata is a {type(metadata).__name__}, not a list with one dict per image")
            yield batch, metadata
    except TarquetError:
        raise
    except Exception as error:
        if uses_default_loader(embedder):
            raise
        raise EmbedderError(
            f"{tar_path}: {embedder.model_name}: load_dataset_shard failed: {describe_error(error)}; expected it to "
            "yield pairs of a batch and a list of dicts"
        ) from error


def count_samples(tar_path: str, id_col: str, ledger: Ledger) -> dict[str, str]:
    """Open an account for every sample that the tar itself holds, for a loader that does not tell.

    Returns:
        Key by id, for loaders whose metadata has no `__key__`.
    """
    needs_json = id_col != "__key__"
    ids = {}
    samples = read_samples(
        tar_path,
        accept_damage=ledger.accept_damage,
        wants=lambda name: needs_json and name.lower().endswith(".json"),
    )
    for sample in samples:
        ledger.open(sample.key)
        if needs_json and sample.members.get("json"):
            try:
                ids[str(read_metadata(sample).get(id_col))] = sample.key
            except ValueError:
                continue  # its id stays unknown; if the loader yields it, the loader could read it
    ledger.is_counted = True
    return ids


def add_key(metadata: dict, id_col: str, ids: dict[str, str]) -> dict:
    """Add the WebDataset key to the metadata of a loader that knows a sample by its id only."""
    if "__key__" in metadata or id_col not in metadata:
        return metadata
    sample_id = str(metadata[id_col])
    return {"__key__": ids.get(sample_id, sample_id), **metadata}


def settle_sample(ledger: Ledger, key: str) -> None:
    """Settle the account of an embedded sample.

    Raises:
        EmbedderError: The tar has no such sample, or it was yielded before.
    """
    if not ledger.settle(key):
        raise EmbedderError(
            f"{ledger.shard}: load_dataset_shard yielded a sample {key!r} that the tar does not hold, or yielded it "
            "twice; expected each sample of the tar once, known by its __key__ or its id_col"
        )
