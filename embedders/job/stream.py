"""Reads a shard through an embedder's loader and records the result of each sample.

Owns iterating over a loader, default or custom, and comparing what it yields with the content of the tar; not what
happens to the batches (`embed`).
"""

from collections.abc import Collection, Iterator
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch

from embedders.base import ImageEmbedder, uses_default_loader
from embedders.errors import EmbedderError, ShardError, TarquetError, describe_error
from embedders.job.batch import Batch
from embedders.job.gpu_failures import explain_gpu_failure
from embedders.job.shard_job import ShardJob
from embedders.output.columns import Columns, read_key
from embedders.output.failed import FailedSample, FailureKind, SampleError
from embedders.output.ledger import Ledger
from embedders.reading.copies import Copies
from embedders.reading.loader import ShardLoad
from embedders.reading.metadata import list_suffixes, read_metadata
from embedders.reading.remote import Version, is_remote
from embedders.reading.samples import check_exists, read_samples

_END = object()


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
        copies: Copies | None = None,
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
        return self._copies.find(self.job.tar_path) if self._copies else self.job.tar_path

    @property
    def version(self) -> Version:
        """What tells whether the shard changes later: what its server said, or size and time when reading began."""
        told = self._copies.find_version(self.job.tar_path) if self._copies else None
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


def find_fields(embedder: ImageEmbedder, columns: Columns) -> dict[str, str] | None:
    """Return the type of each metadata field to read, for the columns and for `decode`; `None` reads all.

    A loader of the embedder's own that calls the default one may use any field.
    """
    if columns.needed is None or not uses_default_loader(embedder):
        return None
    return dict.fromkeys(embedder.metadata_fields, "string") | columns.needed


def require_loader(embedder: ImageEmbedder, only: Collection[str] | None, image_suffix: str) -> None:
    """Check that the loader of an embedder can do what the options ask for.

    Raises:
        EmbedderError: It cannot.
    """
    if not hasattr(embedder, "classifiers"):
        raise EmbedderError(f"{type(embedder).__name__}.__init__ does not call super().__init__(...); add the call")
    if only is not None and not uses_default_loader(embedder):
        raise EmbedderError(f"{embedder.model_name} has its own loader, which cannot embed only chosen samples")
    if image_suffix and not uses_default_loader(embedder):
        raise EmbedderError(
            f"{embedder.model_name} has its own loader, which ignores image_suffix {image_suffix!r}; expected none; "
            "leave it out, and choose the image in load_dataset_shard"
        )


def read_batches(
    embedder: ImageEmbedder, tar_path: str, device: str, load: ShardLoad
) -> Iterator[tuple[Any, list[dict]]]:
    """Yield the batches of an embedder's loader.

    Raises:
        EmbedderError: A custom loader raised, or does not yield what it should.
        GpuError: A custom loader decodes on the GPU, which is out of memory or lost.
    """
    where = f"{tar_path}: {embedder.model_name}: load_dataset_shard"
    try:
        batches: Any = iter(load.run(embedder.load_dataset_shard, tar_path))
        with closing(batches) if hasattr(batches, "close") else nullcontext():
            while (pair := load.run(next, batches, _END)) is not _END:
                images, metadata = pair
                if not isinstance(metadata, list | tuple) or not all(isinstance(sample, dict) for sample in metadata):
                    raise TypeError(
                        f"its metadata is a {type(metadata).__name__}, not a list with one dict per image"
                    )
                yield images, list(metadata)
                del pair, images  # else they stay in memory while the next batch is loaded
    except Exception as error:
        if isinstance(error, TarquetError) or uses_default_loader(embedder):
            raise
        raise explain_gpu_failure(error, where, device) or EmbedderError(
            f"{where} failed: {describe_error(error)}; expected it to yield pairs of a batch and a list of dicts; "
            "to leave out only a bad sample, catch its error there (webdataset: handler=wds.warn_and_continue)"
        ) from error


def count_samples(tar_path: str, id_col: str, ledger: Ledger, accept_damage: bool) -> tuple[dict[str, str], set[str]]:
    """Add every sample of the tar to the ledger; a custom loader does not do so itself.

    Returns:
        Key by id, for loaders whose metadata has no `__key__`; the keys of samples without an id.
    """
    fields = Columns(id_col).needed
    suffixes = list_suffixes(fields)
    ids, without_id = {}, set()
    samples = read_samples(tar_path, accept_damage=accept_damage, wants=lambda name: name.lower().endswith(suffixes))
    for sample in samples:
        ledger.open(sample.account)
        is_later = sample.account != sample.key  # a repeated key; a custom loader may merge the members of a key
        if fields and (sample.problem is None or is_later):
            try:
                sample_id = read_metadata(sample, fields).get(id_col)
            except SampleError:
                continue  # the id stays unknown; a loader that yields the sample could read it
            if sample_id is None:
                without_id.update([] if is_later else [sample.key])
            else:
                without_id.discard(sample.key)
                ids[str(sample_id)] = sample.key
    return ids, without_id


def add_key(metadata: dict, id_col: str, ids: dict[str, str]) -> dict:
    """Return the metadata with the WebDataset key added, for a loader that knows a sample only by its id."""
    if "__key__" in metadata or metadata.get(id_col) is None:
        return metadata
    sample_id = str(metadata[id_col])
    return {"__key__": ids.get(sample_id, sample_id), **metadata}
