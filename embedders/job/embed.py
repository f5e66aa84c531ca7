"""`embed_shards`: the loop from shards to their Parquet files. Owns the order of the steps.

The model runs in the caller's thread while `load_dataset_shard` reads ahead, on into the next shard, in another.
"""

import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import Any

import pyarrow as pa
import torch

from embedders.base import ImageEmbedder
from embedders.errors import GpuLostError, TarquetError
from embedders.job.batch import Batch
from embedders.job.head import Head
from embedders.job.meter import Meter
from embedders.job.model import Model
from embedders.job.provenance import describe_embedder, describe_shard
from embedders.job.shard_job import ShardJob
from embedders.job.stream import ShardReader, find_fields, require_loader
from embedders.output.columns import Columns
from embedders.output.failed import FailedSample, FailureKind
from embedders.output.files import check_writable, write_whole
from embedders.output.ledger import Ledger
from embedders.output.provenance import Provenance, ShardRecord
from embedders.output.timings import Timings, describe_seconds
from embedders.output.vectors import round_vectors
from embedders.output.writer import EmbeddingWriter, write_ledger
from embedders.reading.copies import Copies
from embedders.reading.loader import ShardLoad
from embedders.reading.prefetch import prefetch
from embedders.reading.samples import check_exists, check_suffix

log = logging.getLogger(__name__)


def embed_shard(
    embedder: ImageEmbedder,
    tar_path: str | Path,
    parquet_path: str | Path,
    *,
    ledger_path: str | Path | None = None,
    shard_name: str = "",
    **options: Any,
) -> Ledger:
    """Embed one shard.

    Args:
        embedder: The embedder; its model is loaded once and kept for the next call.
        tar_path: As in `ShardJob`.
        parquet_path: As in `ShardJob`.
        ledger_path: As in `ShardJob`.
        shard_name: `name` in `ShardJob`.
        options: Those of `embed_shards`.

    Returns:
        The ledger: the counts and the failed samples.

    Raises:
        ShardError: The shard is missing or damaged, or too many of its samples failed.
        EmbedderError: The embedder breaks its contract.
        OutputError: The result cannot be written.
        GpuError: The GPU was lost, or is too small for one image.
    """
    check_exists(str(tar_path))
    check_writable(Path(parquet_path))
    job = ShardJob(str(tar_path), str(parquet_path), str(ledger_path) if ledger_path else None, name=shard_name)
    with Copies([job.tar_path]) as copies:
        ((_, ledger),) = embed_shards(embedder, [job], copies=copies, **options)
    return ledger


def embed_shards(
    embedder: ImageEmbedder,
    jobs: Sequence[ShardJob],
    *,
    id_col: str = "__key__",
    metadata_columns: str | Sequence[str] | Mapping[str, str] = (),
    image_suffix: str = "",
    embedding_dtype: str = "float32",
    max_failed_fraction: float = 0.1,
    accept_damaged_shards: bool = False,
    only: Collection[str] | None = None,
    device: str | None = None,
    startup: Timings | None = None,
    meter: Meter | None = None,
    copies: Copies | None = None,
    on_batch: Callable[[ShardJob, ShardLoad], None] = lambda job, load: None,
    on_error: Callable[[ShardJob, TarquetError], None] | None = None,
) -> Iterator[tuple[ShardJob, Ledger]]:
    """Embed shards one after the other with one model; the next shard is read while the current one is finished.

    Args:
        embedder: The embedder.
        jobs: The shards.
        id_col: The metadata field that identifies a sample.
        metadata_columns: As in `columns.Columns`.
        image_suffix: Suffix of the images, for example `jpg`, if a sample has several; without it each has one.
        embedding_dtype: `float32`, `float16` or `int8`.
        max_failed_fraction: A shard fails if a larger share of its samples fails.
        accept_damaged_shards: Whether to embed the intact samples of a damaged tar and list the damage in the ledger.
        only: Keys of the samples to embed, for example those that failed before; `None` embeds all.
        device: `"cuda"` or `"cpu"`; `None` uses CUDA if torch sees a GPU.
        startup: Time that the process has already spent; it is added to the first shard's.
        meter: Measures what the shards use; what was used since it was made is added to the first shard's.
        copies: The copies of shards with an address, in the order of `jobs`; may be left out if none has one.
        on_batch: Called after each batch, to show progress.
        on_error: Called with a failed shard and its error; the other shards go on. `None` raises the error.

    Yields:
        Each finished shard with its ledger.

    Raises:
        EmbedderError: The model cannot be loaded.
        GpuLostError: The GPU was lost; the other shards need it too.
        TarquetError: A shard failed, and there is no `on_error`.
    """
    require_loader(embedder, only, image_suffix)
    meter = meter or Meter()
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    columns = Columns(id_col, metadata_columns)
    timings = [startup or Timings(), *(Timings() for _ in jobs[1:])]
    with timings[0].time("starting"):
        model = Model(embedder, device, embedding_dtype)
        heads = [Head(classifier, device) for classifier in embedder.classifiers or ()]
    asked = (accept_damaged_shards, only, find_fields(embedder, columns), check_suffix(image_suffix))
    loads = [ShardLoad(Ledger(job.tar_path), *asked, timings=timed) for job, timed in zip(jobs, timings, strict=True)]
    copies = copies or Copies([])
    readers = [
        ShardReader(embedder, job, columns, load, device, copies) for job, load in zip(jobs, loads, strict=True)
    ]
    torch.get_num_threads()  # fixes this thread's number, before the loader's threads lower the default for new ones
    with closing(prefetch([reader.read() for reader in readers], depth=2)) as streams, ExitStack() as first:
        first.callback(copies.stop)  # before the streams are closed: the thread that reads them may wait for a copy
        for reader, batches in zip(readers, streams, strict=True):
            try:
                write_shard(reader, batches, model, heads, max_failed_fraction, meter, on_batch)
            except TarquetError as error:
                meter.take()  # what a failed shard used is not the next one's
                if on_error is None or isinstance(error, GpuLostError):
                    raise
                copies.name_shards(error)
                on_error(reader.job, error)
            else:
                yield reader.job, reader.load.ledger
            copies.remove(reader.job.tar_path)


def write_shard(
    reader: ShardReader,
    batches: Iterator[Batch],
    model: Model,
    heads: Sequence[Head],
    max_failed_fraction: float,
    meter: Meter,
    on_batch: Callable[[ShardJob, ShardLoad], None],
) -> None:
    """Embed the batches of a shard, record the result of every sample, and write the vectors and the ledger."""
    job, load, embedder = reader.job, reader.load, reader.embedder
    ledger, timings = load.ledger, load.timings
    start = perf_counter()
    with timings.time("waiting_for_images"):
        tar_path = reader.find_path()
    schema = pa.schema([*reader.columns.schema, *(head.field for head in heads)])
    with (
        write_whole(job.parquet_path) as file,
        EmbeddingWriter(file, job.name, schema, embedder.image_embedding_column, model.dtype) as writer,
        ThreadPoolExecutor(1, thread_name_prefix="hash") as hashing,
    ):
        # In parallel with the reader, so that the shard is read from storage once and then comes from the page cache.
        hashed = hashing.submit(describe_shard, tar_path)
        batches = timings.time_items(batches, "waiting_for_images")
        for batch, vectors in model.embed_batches(batches, job.tar_path, timings):
            with timings.time("writing"):
                vectors = drop_bad_vectors(batch, vectors, model, ledger)
            if heads:
                with timings.time("scoring"):
                    vectors = add_scores(batch, vectors, model, heads, ledger)
            with timings.time("writing"):
                writer.write(batch.columns, vectors, model.shapes)
                ledger.settle(batch.keys)
            on_batch(job, load)
        reader.fail_unread()
        ledger.check(max_failed_fraction)
        with timings.time("hashing"):
            shard = hashed.result()
        reader.check_unchanged()
        provenance = Provenance(
            embedder=describe_embedder(embedder, model.weights, model.device),
            classifiers=[head.describe() for head in heads],
            max_batch_size=model.max_batch_size,
            embedding_dtype=model.dtype,
            id_col=reader.columns.id_col,
            image_suffix=load.image_suffix,
            shard=ShardRecord(job.tar_path, shard.sha256, shard.bytes, name=job.name),
            ledger=job.ledger_path,
            is_retry=load.only is not None,
            retried_sha256=job.retried_sha256,
            recipe=job.recipe,
            samples=ledger.seen,
            embedded=ledger.embedded,
            failed=ledger.count_kinds(),
            remarks=dict(sorted(ledger.remarks.items())),
            null_columns=writer.null_columns,
        )
        with timings.time("writing"):
            writer.close(model.shapes or model.probe_shapes(job.tar_path), provenance)
        usage = meter.take()
        if job.ledger_path is not None:
            # The ledger before the vectors, which never exist without the list of samples that they lack.
            with write_whole(job.ledger_path) as ledger_file:
                write_ledger(ledger_file, ledger.failed, provenance, timings.round(), usage, asdict(reader.version))
    if provenance.null_columns:
        names = ", ".join(map(repr, provenance.null_columns))
        log.warning("%s: null in every row: %s; check the names in metadata_columns", job.tar_path, names)
    total_s = perf_counter() - start
    log.info(
        f"{job.tar_path}: {ledger.seen} samples, {ledger.embedded} embedded, {len(ledger.failed)} failed"
        f"{''.join(f', {count} {kind}' for kind, count in sorted(ledger.remarks.items()))} "
        f"in {total_s:.1f} s ({ledger.embedded / total_s:.0f} images/s) on {model.device}: "
        f"{describe_seconds(timings.seconds)}; {usage.describe()}"
    )


def drop_bad_vectors(batch: Batch, vectors: Any, model: Model, ledger: Ledger) -> Any:
    """Fail the samples whose vectors cannot be stored, drop their rows, and return the other vectors."""
    for row in (model.find_bad(vectors) & ~batch.bad).nonzero()[0]:
        batch.bad[row] = True
        ledger.fail(FailedSample(batch.keys[row], FailureKind.BAD_VECTOR, model.explain_bad(vectors[row])))
    return batch.drop_bad(vectors)


def add_scores(batch: Batch, vectors: Any, model: Model, heads: Sequence[Head], ledger: Ledger) -> Any:
    """Add the columns of scores, fail samples without a finite score, and return the vectors of the others."""
    for head in heads:
        taken = round_vectors(model.take(vectors, head.classifier.embedding_column), model.dtype)
        scores = head.score(taken, ledger.shard)
        batch.columns = batch.columns.append_column(head.field, scores)
        for row in scores.is_null().to_numpy(zero_copy_only=False).nonzero()[0]:
            batch.bad[row] = True
            message = f"{head.field.name}: the score is NaN or infinite; expected a finite number"
            ledger.fail(FailedSample(batch.keys[row], FailureKind.BAD_SCORE, message))
        vectors = batch.drop_bad(vectors)
    return vectors
