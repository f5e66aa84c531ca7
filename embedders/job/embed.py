"""`embed_shards`: the loop from shards to their Parquet files. Owns the order of things and each shard's account.

The model runs in the caller's thread while `load_dataset_shard` reads ahead in another, beyond the end of a shard.
"""

import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from embedders.base import ImageEmbedder, uses_default_loader
from embedders.errors import EmbedderError, GpuLostError, TarquetError
from embedders.job.head import Head, add_scores
from embedders.job.model import Model
from embedders.job.provenance import SCHEMA_VERSION, describe_embedder, describe_shard
from embedders.job.stream import ShardReader, read_shards, settle_sample
from embedders.output.columns import Columns
from embedders.output.files import check_writable, write_whole
from embedders.output.ledger import FailedSample, Ledger
from embedders.output.parquet import EmbeddingWriter, write_ledger
from embedders.output.timings import describe_seconds
from embedders.reading.prefetch import prefetch
from embedders.reading.samples import ShardJob, check_exists

log = logging.getLogger(__name__)


def embed_shard(
    embedder: ImageEmbedder,
    tar_path: str | Path,
    parquet_path: str | Path,
    *,
    ledger_path: str | Path | None = None,
    **options: Any,
) -> Ledger:
    """Embed one shard.

    Args:
        embedder: The embedder; its model is loaded once and kept for the next shard.
        tar_path: As in `ShardJob`.
        parquet_path: As in `ShardJob`.
        ledger_path: As in `ShardJob`.
        options: Those of `embed_shards`.

    Returns:
        The ledger: counts, and the samples that failed.

    Raises:
        ShardError: The shard is missing or damaged, or too much of it failed.
        EmbedderError: The embedder breaks its contract.
        OutputError: The result cannot be written.
        GpuError: The GPU was lost, or is too small for one image.
    """
    check_exists(str(tar_path))
    check_writable(Path(parquet_path))
    job = ShardJob(str(tar_path), str(parquet_path), ledger_path and str(ledger_path))
    for _, outcome in embed_shards(embedder, [job], **options):
        if isinstance(outcome, TarquetError):
            raise outcome
    return outcome


def embed_shards(
    embedder: ImageEmbedder,
    jobs: Sequence[ShardJob],
    *,
    id_col: str = "__key__",
    metadata_columns: str | Sequence[str] | Mapping[str, str] = (),
    embedding_dtype: str = "float32",
    max_failed_fraction: float = 0.1,
    accept_damaged_shards: bool = False,
    only: Collection[str] | None = None,
    device: str | None = None,
    on_batch: Callable[[Ledger], None] = lambda ledger: None,
) -> Iterator[tuple[ShardJob, Ledger | TarquetError]]:
    """Embed shards one after the other with one model; the next one is read while the last of one is computed.

    Args:
        embedder: The embedder.
        jobs: The shards.
        id_col: The metadata field that identifies a sample.
        metadata_columns: As in `columns.Columns`.
        embedding_dtype: `float32` or `float16`.
        max_failed_fraction: With more failed samples than this share a shard fails.
        accept_damaged_shards: Whether to embed what is whole of a damaged tar, and name the rest in the ledger.
        only: Keys of the samples to embed, for instance those that failed before; `None` embeds all.
        device: `"cuda"` or `"cpu"`; `None` takes CUDA where torch sees it.
        on_batch: Called with the shard's ledger after each batch, to show progress.

    Yields:
        Each job, when it is done, with its ledger or with the error that it failed with: one shard that fails does
        not stop the others.

    Raises:
        EmbedderError: The model cannot be loaded.
        GpuLostError: The GPU was lost, which the other shards need too.
    """
    check_embedder(embedder, only)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    columns = Columns(id_col, metadata_columns)
    model = Model(embedder, device, embedding_dtype)
    heads = [Head(classifier, device) for classifier in embedder.classifiers or ()]
    ledgers = [Ledger(job.tar_path, accept_damaged_shards, only) for job in jobs]
    readers = [ShardReader(embedder, job, id_col, ledger, device) for job, ledger in zip(jobs, ledgers, strict=True)]
    torch.get_num_threads()  # settles this thread's number, before the loader's lower the one for new threads
    with closing(prefetch(read_shards(readers), depth=2)) as stream:
        for reader, items in groupby(stream, key=itemgetter(0)):
            try:
                write_shard(reader, (item for _, item in items), model, heads, columns, max_failed_fraction, on_batch)
                yield reader.job, reader.ledger
            except GpuLostError:
                raise
            except TarquetError as error:
                reader.given_up = True
                yield reader.job, error


def check_embedder(embedder: ImageEmbedder, only: Collection[str] | None) -> None:
    """Refuse an embedder that could not do what it is asked.

    Raises:
        EmbedderError: It cannot.
    """
    if not hasattr(embedder, "classifiers"):
        raise EmbedderError(f"{type(embedder).__name__}.__init__ does not call super().__init__(...); add the call")
    if only is not None and not uses_default_loader(embedder):
        raise EmbedderError(f"{embedder.model_name} has a loader of its own, which cannot embed chosen samples only")


def write_shard(
    reader: ShardReader,
    items: Iterator[Any],
    model: Model,
    heads: Sequence[Head],
    columns: Columns,
    max_failed_fraction: float,
    on_batch: Callable[[Ledger], None],
) -> None:
    """Embed what a reader brings, settle the account of every sample, and write both files."""
    job, ledger, embedder = reader.job, reader.ledger, reader.embedder
    timings = ledger.timings
    start = perf_counter()
    with (
        write_whole(job.parquet_path) as file,
        EmbeddingWriter(
            file, columns, embedder.image_embedding_column, model.dtype, [head.field for head in heads]
        ) as writer,
        ThreadPoolExecutor(1, thread_name_prefix="hash") as hashing,
    ):
        # Runs beside the reader, and so brings the shard into memory for it.
        hashed = hashing.submit(describe_shard, job.tar_path)
        batches = take_batches(timings.time_items(items, "waiting_for_images"))
        for vectors, metadata in model.embed_batches(batches, job.tar_path, timings):
            with timings.time("writing"):
                rows = [columns.read(sample, job.tar_path) for sample in metadata]
                vectors = vectors.astype(model.dtype, copy=False)
            if heads:
                with timings.time("scoring"):
                    add_scores(heads, rows, vectors, job.tar_path)
            with timings.time("writing"):
                writer.write(rows, vectors)
                for sample in metadata:
                    settle_sample(ledger, str(sample["__key__"]))
            on_batch(ledger)
        for key in ledger.unsettled():
            ledger.fail(FailedSample(key, "not_loaded", "load_dataset_shard did not yield it"))
        ledger.check(max_failed_fraction)
        with timings.time("hashing"):
            shard = hashed.result()
        reader.check_unchanged()
        provenance = {
            "schema_version": SCHEMA_VERSION,
            "embedder": describe_embedder(embedder, model.weights, model.device),
            "classifiers": [head.describe() for head in heads],
            "max_batch_size": model.max_batch_size,
            "embedding_dtype": model.dtype,
            "id_col": columns.id_col,
            "shard": shard | {"path": job.address or job.tar_path},
            "ledger": job.ledger_path,
            "is_retry": ledger.only is not None,
            "samples": ledger.seen,
            "embedded": ledger.embedded,
            "failed": ledger.count_kinds(),
            "remarks": dict(sorted(ledger.remarks.items())),
        }
        with timings.time("writing"):
            writer.close(model.dimension or model.probe_dimension(job.tar_path), provenance)
        if job.ledger_path is not None:
            # First, so that vectors never stand without the account of what is not among them. The times are here
            # and not in the other footer: the same run twice leaves the same bytes of vectors.
            with write_whole(job.ledger_path) as ledger_file:
                write_ledger(ledger_file, ledger.failed, provenance | {"seconds": timings.round()})
    total_s = perf_counter() - start
    log.info(
        f"{job.tar_path}: {ledger.seen} samples, {ledger.embedded} embedded, {len(ledger.failed)} failed"
        f"{''.join(f', {count} {kind}' for kind, count in sorted(ledger.remarks.items()))} "
        f"in {total_s:.1f} s ({ledger.embedded / total_s:.0f} images/s) on {model.device}: "
        f"{describe_seconds(timings.seconds)}"
    )


def take_batches(items: Iterable[Any]) -> Iterator[tuple[Any, list[dict]]]:
    """Take the batches of one shard from what `read_shards` yields.

    Raises:
        TarquetError: The reader's error.
    """
    for item in items:
        if isinstance(item, TarquetError):
            raise item
        if item is not None:
            yield item
        del item  # else it lives on while the next one is awaited
