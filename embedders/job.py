"""`embed_shards`: the loop from shards to their Parquet files. Owns the order of things and each shard's account.

The model runs in the caller's thread while `load_dataset_shard` reads ahead in another, beyond the end of a shard.
"""

import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from embedders.base import ImageEmbedder, uses_default_loader
from embedders.columns import Columns
from embedders.errors import EmbedderError, GpuLostError, TarquetError
from embedders.ledger import FailedSample, Ledger
from embedders.model import Model
from embedders.outputs import check_writable, write_whole
from embedders.parquet import EmbeddingWriter, write_ledger
from embedders.prefetch import prefetch
from embedders.provenance import SCHEMA_VERSION, describe_embedder, describe_shard
from embedders.reader import ShardReader, read_shards, settle_sample
from embedders.shards import ShardJob, check_exists

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
    ledgers = [Ledger(job.tar_path, accept_damaged_shards, only) for job in jobs]
    readers = [ShardReader(embedder, job, id_col, ledger, device) for job, ledger in zip(jobs, ledgers, strict=True)]
    torch.get_num_threads()  # settles this thread's number, before the loader's lower the one for new threads
    with closing(prefetch(read_shards(readers), depth=2)) as stream:
        for reader, items in groupby(stream, key=itemgetter(0)):
            try:
                write_shard(reader, (item for _, item in items), model, columns, max_failed_fraction)
                yield reader.job, reader.ledger
            except GpuLostError:
                raise
            except TarquetError as error:
                yield reader.job, error


def check_embedder(embedder: ImageEmbedder, only: Collection[str] | None) -> None:
    """Refuse an embedder that could not do what it is asked.

    Raises:
        EmbedderError: It cannot.
    """
    if not hasattr(embedder, "classifiers"):
        raise EmbedderError(f"{type(embedder).__name__}.__init__ does not call super().__init__(...); add the call")
    if embedder.classifiers:
        raise EmbedderError(f"{embedder.model_name}: classifiers are not run by this version; expected none")
    if only is not None and not uses_default_loader(embedder):
        raise EmbedderError(f"{embedder.model_name} has a loader of its own, which cannot embed chosen samples only")


def write_shard(
    reader: ShardReader, items: Iterator[Any], model: Model, columns: Columns, max_failed_fraction: float
) -> None:
    """Embed what a reader brings, settle the account of every sample, and write both files."""
    job, ledger, embedder = reader.job, reader.ledger, reader.embedder
    stopwatch = Stopwatch()
    with (
        write_whole(job.parquet_path) as file,
        EmbeddingWriter(file, columns, embedder.image_embedding_column, model.dtype) as writer,
        ThreadPoolExecutor(1, thread_name_prefix="hash") as hashing,
    ):
        # Runs beside the reader, and so brings the shard into memory for it.
        hashed = hashing.submit(describe_shard, job.tar_path)
        for item in items:
            if isinstance(item, TarquetError):
                raise item
            if item is None:
                continue
            stopwatch.lap("waiting for images")
            batch, metadata = item
            vectors = model.embed(batch, metadata, job.tar_path)
            stopwatch.lap("in the model")
            writer.write([columns.read(sample, job.tar_path) for sample in metadata], vectors)
            for sample in metadata:
                settle_sample(ledger, str(sample["__key__"]))
            stopwatch.lap("writing")
        stopwatch.lap("waiting for images")
        for key in ledger.unsettled():
            ledger.fail(FailedSample(key, "not_loaded", "load_dataset_shard did not yield it"))
        ledger.check(max_failed_fraction)
        shard = hashed.result()
        reader.check_unchanged()
        provenance = {
            "schema_version": SCHEMA_VERSION,
            "embedder": describe_embedder(embedder, model.weights, model.device),
            "max_batch_size": model.max_batch_size,
            "embedding_dtype": model.dtype,
            "id_col": columns.id_col,
            "shard": shard,
            "ledger": job.ledger_path,
            "is_retry": ledger.only is not None,
            "samples": ledger.seen,
            "embedded": ledger.embedded,
            "failed": ledger.count_kinds(),
        }
        writer.close(model.dimension or model.probe_dimension(job.tar_path), provenance)
        if job.ledger_path is not None:
            # First, so that vectors never stand without the account of what is not among them.
            with write_whole(job.ledger_path) as ledger_file:
                write_ledger(ledger_file, ledger.failed, provenance)
    stopwatch.lap("writing")
    total_s = sum(stopwatch.seconds.values())
    log.info(
        f"{job.tar_path}: {ledger.seen} samples, {ledger.embedded} embedded, {len(ledger.failed)} failed "
        f"in {total_s:.1f} s ({ledger.embedded / total_s:.0f} images/s) on {model.device}: {stopwatch.describe()}"
    )


class Stopwatch:
    """Where the time of a shard goes, as the process sees it: what it waits for is what to buy more of.

    Attributes:
        seconds: Time by what it was spent on.
    """

    def __init__(self):
        self.seconds: dict[str, float] = {}
        self._last = perf_counter()

    def lap(self, spent_on: str) -> None:
        """Put the time since the last lap to an account."""
        now = perf_counter()
        self.seconds[spent_on] = self.seconds.get(spent_on, 0.0) + now - self._last
        self._last = now

    def describe(self) -> str:
        """Say it in a phrase."""
        return ", ".join(f"{seconds:.1f} s {spent_on}" for spent_on, seconds in self.seconds.items())
