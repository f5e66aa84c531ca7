"""The progress of a job: a bar on a terminal, or a line per minute in a log file."""

import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from time import monotonic

import click

from embedders.job.shard_job import ShardJob
from embedders.reading.loader import ShardLoad
from embedders.reading.remote import is_remote

log = logging.getLogger(__name__)

LINE_INTERVAL_S = 60
# The size of a shard with an address is not known when a job starts.
_BYTES_OF_REMOTE = 1 << 28


class Progress:
    """Counts a job's images and measures which share of its shards is done. Call it after each batch.

    Attributes:
        images: Images embedded so far.
        fraction: Share of the bytes of all shards that is done, from 0 to 1.
    """

    def __init__(self, jobs: Sequence[ShardJob], bar=None):
        self._bar = bar
        self._bytes = {job.tar_path: _read_size(job.tar_path) for job in jobs}
        self._bytes_before = dict(zip(self._bytes, accumulate(self._bytes.values(), initial=0), strict=False))
        self._embedded: dict[str, int] = {}
        self._start = self._said = monotonic()
        self.images = 0
        self.fraction = 0.0

    def __call__(self, job: ShardJob, load: ShardLoad) -> None:
        """Count a batch that was embedded."""
        self._embedded[job.tar_path] = load.ledger.embedded
        self.images = sum(self._embedded.values())
        size = self._bytes[job.tar_path]
        done_bytes = self._bytes_before[job.tar_path] + size * find_fraction(load, job.tar_path, size)
        self.fraction = done_bytes / (sum(self._bytes.values()) or 1)
        if self._bar is not None:
            self._bar.update(int(done_bytes) - self._bar.pos, self)
        elif monotonic() - self._said >= LINE_INTERVAL_S:
            self._said = monotonic()
            left_s = (self._said - self._start) * (1 / self.fraction - 1) if self.fraction else None
            left = "" if left_s is None else f", {self.fraction:.0%} of the job, about {left_s / 60:.0f} min to go"
            log.info("%s: %s%s", job.tar_path, self.describe(), left)

    def describe(self) -> str:
        """Return the number of images and the speed as text."""
        return f"{self.images} images, {self.images / max(monotonic() - self._start, 1e-9):.0f} images/s"


@contextmanager
def show_progress(jobs: Sequence[ShardJob]) -> Iterator[Progress]:
    """Show the progress of `jobs` while the block runs: a bar on a terminal, otherwise lines in the log."""
    if not sys.stderr.isatty():
        yield Progress(jobs)
        return
    length = sum(_read_size(job.tar_path) for job in jobs) or 1
    with click.progressbar(
        length=length, file=sys.stderr, item_show_func=lambda progress: progress and progress.describe()
    ) as bar:
        yield Progress(jobs, bar)


def find_fraction(load: ShardLoad, tar_path: str, size_bytes: int) -> float:
    """Return the share of a shard that is done, from 0 to 1.

    It is measured in samples if they were counted first, else by the reader's position in the tar, a batch or two
    ahead. The position in a compressed tar and the size of a remote one are unknown, so the share is 0 until it is
    done.
    """
    ledger = load.ledger
    if load.is_counted:
        return (ledger.embedded + len(ledger.failed)) / max(ledger.seen, 1)
    if not tar_path.endswith(".tar") or is_remote(tar_path) or not size_bytes:
        return 0.0
    return min(load.offset / size_bytes, 1.0)


def _read_size(path: str) -> int:
    if is_remote(path):
        return _BYTES_OF_REMOTE
    try:
        return os.stat(path).st_size
    except OSError:
        return 0  # the job will report it
