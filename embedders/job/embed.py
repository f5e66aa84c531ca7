"""`embed_shards`: the loop over the shards of a job. Owns the order of the shards; not how one is written (`shard`).

The model runs in the caller's thread while `load_dataset_shard` reads ahead, on into the next shard, in another.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import torch

from embedders.base import ImageEmbedder
from embedders.errors import GpuLostError, TarquetError
from embedders.job.head import Head
from embedders.job.loaders import find_fields, require_loader
from embedders.job.meter import Meter
from embedders.job.model import Model
from embedders.job.shard import write_shard
from embedders.job.shard_job import ShardJob
from embedders.job.stream import ShardReader
from embedders.output.columns import Columns
from embedders.output.files import check_writable
from embedders.output.ledger import Ledger
from embedders.output.timings import Timings
from embedders.reading.copies import Copies
from embedders.reading.loader import ShardLoad
from embedders.reading.prefetch import prefetch
from embedders.reading.samples import check_exists, check_suffix


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
