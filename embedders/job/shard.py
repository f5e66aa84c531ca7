"""Embeds the batches of one shard, and writes its files. Owns the order of the steps."""

import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from time import perf_counter

import numpy as np
import pyarrow as pa

from embedders.job.batch import Batch
from embedders.job.head import Head
from embedders.job.meter import Meter
from embedders.job.model import Model
from embedders.job.provenance import describe_embedder, describe_shard
from embedders.job.shard_job import ShardJob
from embedders.job.stream import ShardReader
from embedders.output.failed import FailedSample, FailureKind
from embedders.output.files import write_whole
from embedders.output.ledger import Ledger
from embedders.output.provenance import FileRecord, Provenance, ShardRecord
from embedders.output.timings import describe_seconds
from embedders.output.vectors import round_vectors
from embedders.output.writer import EmbeddingWriter, write_ledger
from embedders.reading.loader import ShardLoad

log = logging.getLogger(__name__)


def write_shard(
    reader: ShardReader,
    batches: Iterator[Batch],
    model: Model,
    heads: Sequence[Head],
    max_failed_fraction: float,
    meter: Meter,
    on_batch: Callable[[ShardJob, ShardLoad], None],
) -> None:
    """Embed the batches of a shard, record the result of every sample, and write the vectors and the ledger.

    Args:
        reader: The reader of the shard.
        batches: Its batches.
        model: The model.
        heads: The classifiers whose scores become columns.
        max_failed_fraction: The shard fails if a larger share of its samples fails.
        meter: Measures what the shard uses.
        on_batch: Called after each batch, to show progress.

    Raises:
        TarquetError: As `embed.embed_shard`. The vectors are not written.
    """
    job, load = reader.job, reader.load
    ledger, timings = load.ledger, load.timings
    start = perf_counter()
    with timings.time("waiting_for_images"):
        tar_path = reader.find_path()
    schema = pa.schema([*reader.columns.schema, *(head.field for head in heads)])
    with (
        write_whole(job.parquet_path) as file,
        EmbeddingWriter(file, job.name, schema, reader.embedder.image_embedding_column, model.dtype) as writer,
        ThreadPoolExecutor(1, thread_name_prefix="hash") as hashing,
    ):
        # In parallel with the reader, so that the shard is read from storage once and then comes from the page cache.
        hashed = hashing.submit(describe_shard, tar_path)
        batches = timings.time_items(batches, "waiting_for_images")
        for batch, vectors in model.embed_batches(batches, job.tar_path, timings):
            with timings.time("writing"):
                vectors = _drop_bad_vectors(batch, vectors, model, ledger)
            if heads:
                with timings.time("scoring"):
                    vectors = _add_scores(batch, vectors, model, heads, ledger)
            with timings.time("writing"):
                writer.write(batch.columns, vectors, model.shapes)
                ledger.settle(batch.keys)
            on_batch(job, load)
        reader.fail_unread()
        ledger.check(max_failed_fraction)
        with timings.time("hashing"):
            shard = hashed.result()
        reader.check_unchanged()
        provenance = _describe_output(reader, model, heads, shard, writer.null_columns)
        with timings.time("writing"):
            writer.close(model.shapes or model.probe_shapes(job.tar_path), provenance)
        usage = meter.take()
        if job.ledger_path is not None:
            # The ledger before the vectors, which never exist without the list of samples that they lack.
            with write_whole(job.ledger_path) as ledger_file:
                write_ledger(ledger_file, ledger.failed, provenance, timings.round(), usage, asdict(reader.version))
    if load.only is not None and ledger.seen < len(load.only):
        log.warning(
            "%s: only %d of the %d samples to embed again are in it; expected the shard that they failed in",
            *(job.tar_path, ledger.seen, len(load.only)),
        )
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


def _describe_output(
    reader: ShardReader, model: Model, heads: Sequence[Head], shard: FileRecord, null_columns: list[str]
) -> Provenance:
    job, load, ledger = reader.job, reader.load, reader.load.ledger
    return Provenance(
        embedder=describe_embedder(reader.embedder, model.weights, model.device),
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
        null_columns=null_columns,
    )


def _drop_bad_vectors(batch: Batch, vectors: np.ndarray, model: Model, ledger: Ledger) -> np.ndarray:
    """Fail the samples whose vectors cannot be stored, drop their rows, and return the other vectors."""
    for row in (model.find_bad(vectors) & ~batch.bad).nonzero()[0]:
        batch.bad[row] = True
        ledger.fail(FailedSample(batch.keys[row], FailureKind.BAD_VECTOR, model.explain_bad(vectors[row])))
    return batch.drop_bad(vectors)


def _add_scores(batch: Batch, vectors: np.ndarray, model: Model, heads: Sequence[Head], ledger: Ledger) -> np.ndarray:
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
