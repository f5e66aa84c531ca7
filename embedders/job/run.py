"""`run_job`: the work of one process, from options to the files of its shards.

Imports nothing heavy at the top: a missing shard is reported at once, and torch is imported only after the GPU is
pinned.
"""

import logging
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from embedders.errors import ConfigError, ShardError, TarquetError
from embedders.job.failures import report_failure
from embedders.job.garbage import keep_imports
from embedders.job.locate import build_embedder, locate_class, split_class_path
from embedders.job.shard_job import ShardJob
from embedders.output.failed import FailureKind
from embedders.output.files import check_writable
from embedders.output.hashes import hash_file
from embedders.output.record import Addition, find_time
from embedders.output.timings import Timings
from embedders.reading.copies import Copies
from embedders.reading.remote import Version
from embedders.reading.samples import check_exists

log = logging.getLogger(__name__)


def run_job(
    jobs: Sequence[ShardJob],
    class_path: str,
    args: Mapping[str, Any],
    device: AbstractContextManager[str],
    *,
    addition: Addition | None = None,
    only: str | None = None,
    threads: int | None = None,
    **options: Any,
) -> None:
    """Embed shards on one device. If there are several, a failed one is reported and the others go on.

    Args:
        jobs: The shards.
        class_path: As in `locate.split_class_path`.
        args: Arguments of the class.
        device: Context manager that holds the device while the job runs; it returns `"cuda"` or `"cpu"`.
        addition: The job's part of a folder's record; shards in it are not embedded again.
        only: Ledger of an earlier run; only the samples that failed then are embedded.
        threads: Number of threads for computing and decoding.
        options: `id_col`, `metadata_columns`, `embedding_dtype` and others of `embed_shards`.

    Raises:
        TarquetError: The job cannot start, or a shard failed.
    """
    check_before_lease(jobs[0], class_path, args)
    todo = [job for job in jobs if not (addition and addition.has(job.parquet_path) and job.is_finished)]
    if len(jobs) > 1:
        log.info("%d of %d shards were finished before", len(jobs) - len(todo), len(jobs))
    if not todo:
        return
    if only is not None:
        from embedders.output.parquet import read_ledger

        # A file without a suffix has no key; its name may be the key of a sample that was embedded.
        options["only"] = {sample.key for sample in read_ledger(only) if sample.kind != FailureKind.BAD_NAME}
        options["max_failed_fraction"] = 1.0  # all of them failed before, so any number may fail again
        todo = [replace(job, retried_sha256=hash_file(only)) for job in todo]
    if addition is not None:
        todo = [replace(job, name=addition.name_shard(job.parquet_path), recipe=addition.recipe) for job in todo]
        # As Snakemake does with the outputs that it knows: if the job fails, old results must not pass for new ones.
        for path in (path for job in todo for path in job.outputs):
            Path(path).unlink(missing_ok=True)
    failed: list[str] = []

    def go_on(job: ShardJob, error: TarquetError) -> None:
        report_failure(job.tar_path, error)
        failed.append(job.tar_path)

    startup = Timings()
    with ExitStack() as stack:
        copies = stack.enter_context(Copies(job.tar_path for job in todo))  # fetches the first ones from here on
        with startup.time("waiting_for_gpu"):
            torch_device = stack.enter_context(device)
        if torch_device == "cpu":
            startup.seconds.clear()  # no GPU was waited for
        with startup.time("starting"):
            with keep_imports():
                import torch

                from embedders.job.embed import embed_shards
                from embedders.job.progress import show_progress
                from embedders.output.footers import describe_file

                if class_path.startswith("embedders:"):  # built in; a user's own code is imported after the block
                    locate_class(class_path)
            if threads is not None:
                torch.set_num_threads(threads)
            embedder = build_embedder(class_path, args)
            if embedder.num_threads_per_worker is None:
                embedder.num_threads_per_worker = threads
        options["on_batch"] = stack.enter_context(show_progress(todo))
        options["on_error"] = go_on if len(jobs) > 1 else None
        # Before the shards are read; the hash of the content tells whether one changes later.
        times = {job: find_time(job.tar_path) for job in todo}
        for job, _ in embed_shards(embedder, todo, device=torch_device, startup=startup, copies=copies, **options):
            if addition is not None:
                shard = describe_file(job.parquet_path).provenance.shard
                version = copies.find_version(job.tar_path) or Version(shard.bytes, times[job])
                made_from = {"sha256": shard.sha256, "ledger": job.retried_sha256}
                addition.add(job.parquet_path, **asdict(version), **made_from)
    if failed:
        raise ShardError(f"{len(failed)} of {len(jobs)} shards failed; see the line above for each")


def check_before_lease(job: ShardJob, class_path: str, args: object) -> None:
    """Check, before a job waits for a GPU, what would make it fail in any case.

    Raises:
        TarquetError: The shard, the class, its arguments or the output path cannot be used.
    """
    check_exists(job.tar_path)
    split_class_path(class_path)
    if not isinstance(args, dict):
        raise ConfigError(f'embedder args {args!r}: expected an object such as {{}} or {{"batch_size": 64}}')
    check_writable(Path(job.parquet_path))
