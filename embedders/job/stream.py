"""Reads a shard through an embedder's loader to the rows of its files, and records the result of each sample.

Owns comparing what a loader yields with the content of the tar; not calling it (`loaders`), nor what happens to the
batches (`shard`).
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from embedders.base import ImageEmbedder, uses_default_loader
from embedders.errors import ShardError
from embedders.job.batch import Batch
from embedders.job.loaders import add_key, count_samples, read_batches
from embedders.job.shard_job import ShardJob
from embedders.output.columns import Columns, read_key
from embedders.output.failed import FailedSample, FailureKind
from embedders.reading.copies import Copies
from embedders.reading.loader import ShardLoad
from embedders.reading.remote import Version, is_remote
from embedders.reading.samples import check_exists


class ShardReader:
    """Reads one shard through the embedder's loader.

    Args:
        embedder: The embedder.
        job: The shard.
        columns: The columns next to the vectors.
        load: The options of the loader, and the shard's ledger.
        device: `"cuda"` or `"cpu"`.
        copies: The copies of shards with an address.

    Attributes:
        unnamed: Number of images that the loader yielded without a key or an id.
    """

    def __init__(
        self,
        embedder: ImageEmbedder,
        job: ShardJob,
        columns: Columns,
        load: ShardLoad,
        device: str,
        copies: Copies,
    ):
        self.embedder = embedder
        self.job = job
        self.columns = columns
        self.load = load
        self.device = device
        self.unnamed = 0
        self._copies = copies
        self._ids: dict[str, str] = {}  # key by id, for loaders whose metadata has no `__key__`
        self._without_id: set[str] = set()
        self._state: tuple[int, ...] | None = None

    def read(self) -> Iterator[Batch]:
        """Read the shard's batches. Each sample is in the ledger before its batch is yielded.

        A sample whose metadata cannot be stored fails here. A batch of only such samples is not yielded.

        Raises:
            ShardError: The shard is missing or damaged.
            EmbedderError: A custom loader raised, or does not yield what it should.
            GpuError: A custom loader decodes on the GPU, which is out of memory or lost.
        """
        load, timings = self.load, self.load.timings
        if is_remote(self.job.tar_path):
            with timings.time("fetching"):
                self.find_path()
        path = self.find_path()
        check_exists(path)
        self._state = self._read_state()
        if not uses_default_loader(self.embedder):
            with timings.time("loading"):
                self._ids, self._without_id = count_samples(
                    path, self.columns.id_col, load.ledger, load.accept_damage
                )
                load.is_counted = True
        loaded = read_batches(self.embedder, path, self.device, load)
        for batch in timings.time_items((self._make_batch(*pair) for pair in loaded), "loading"):
            if batch.bad.all():
                continue
            with timings.time("waiting_for_model"):
                yield batch

    def find_path(self) -> str:
        """Return where to read the shard; wait for its copy if it has an address.

        Raises:
            ShardError: It cannot be fetched.
            OutputError: There is no room for its copy.
        """
        return self._copies.find(self.job.tar_path)

    @property
    def version(self) -> Version:
        """What tells whether the shard changes later: what its server said, or size and time when reading began."""
        told = self._copies.find_version(self.job.tar_path)
        return told or Version(*self._state[-2:] if self._state else (None,))

    def check_unchanged(self) -> None:
        """Check that the shard was not replaced while it was read; else its hash may be that of another file.

        Raises:
            ShardError: It was.
        """
        if self._read_state() != self._state:
            raise ShardError(
                f"{self.job.tar_path!r}: changed or vanished while it was read; expected a finished .tar; run again"
            )

    def fail_unread(self) -> None:
        """Record as failed the samples of the tar that the loader did not yield."""
        id_col = self.columns.id_col
        message = "load_dataset_shard did not yield it"
        if self.unnamed:
            message += (
                f"; it yielded {self.unnamed} images whose metadata has no '__key__' and no {id_col!r} (id_col)"
            )
        for key in self.load.ledger.unsettled():
            failed = FailedSample(key, FailureKind.NOT_LOADED, message)
            if self.unnamed and key in self._without_id:
                failed = FailedSample(key, FailureKind.BAD_METADATA, f"has no {id_col!r} (id_col), or null there")
            self.load.ledger.fail(failed)

    def _make_batch(self, images: Any, metadata: list[dict]) -> Batch:
        metadata = [add_key(sample, self.columns.id_col, self._ids) for sample in metadata]
        columns, wrong = self.columns.read(metadata)
        keys = [None if (key := read_key(sample)) is None else str(key) for sample in metadata]
        bad = np.zeros(len(keys), bool)
        for row, message in wrong.items():
            bad[row] = True
            key = keys[row]
            if key is None:
                self.unnamed += 1
            else:
                self.load.ledger.fail(FailedSample(key, FailureKind.BAD_METADATA, message))
        if torch.cuda.is_initialized() and isinstance(images, torch.Tensor) and images.device.type == "cpu":
            images = images.pin_memory()  # so that the copy to the GPU overlaps with computing
        return Batch(images, keys, columns, bad)

    def _read_state(self) -> tuple[int, ...] | None:
        try:
            stat = Path(self.find_path()).stat()
        except OSError:
            return None
        return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns
