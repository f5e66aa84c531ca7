"""A shard on its way through an embedder's loader, with the account of its samples.

Owns how a loader, the project's or a user's own, is drawn from and held to what the tar itself holds; not what
becomes of the batches (`job`).
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from embedders.base import ImageEmbedder, uses_default_loader
from embedders.errors import EmbedderError, ShardError, TarquetError, describe_error
from embedders.job.model import explain_gpu_failure
from embedders.output.columns import Columns
from embedders.output.ledger import Ledger
from embedders.reading.metadata import list_suffixes, read_metadata
from embedders.reading.samples import ShardJob, check_exists, read_samples


class ShardReader:
    """One shard on its way through the embedder's loader, with its account.

    Attributes:
        job: The shard.
        ledger: Its account.
        ids: Key by id, for loaders whose metadata has no `__key__`.
        given_up: Whether the shard has failed, and the rest of it is not worth reading.
    """

    def __init__(self, embedder: ImageEmbedder, job: ShardJob, id_col: str, ledger: Ledger, device: str):
        # A copy: while one shard is computed the next one is read already, and each has a ledger of its own.
        self.embedder = copy.copy(embedder)
        self.embedder.ledger = ledger
        self.job = job
        self.id_col = id_col
        self.ledger = ledger
        self.device = device
        self.ids: dict[str, str] = {}
        self.given_up = False
        self._state: tuple[int, ...] | None = None

    def read(self) -> Iterator[tuple[Any, list[dict]]]:
        """Read the shard's batches; every sample's account is open by the time it comes.

        Raises:
            ShardError: The shard is missing or damaged.
            EmbedderError: A loader of the user's own raised, or yields something else than it should.
            GpuError: Such a loader decodes on the GPU, which has no room or is lost.
        """
        timings = self.ledger.timings
        check_exists(self.job.tar_path)
        self._state = self._read_state()
        if not uses_default_loader(self.embedder):
            with timings.time("loading"):
                self.ids = count_samples(self.job.tar_path, self.id_col, self.ledger)
        batches = read_batches(self.embedder, self.job.tar_path, self.device)
        for batch, metadata in timings.time_items(batches, "loading"):
            metadata = [add_key(sample, self.id_col, self.ids) for sample in metadata]
            if torch.cuda.is_initialized() and isinstance(batch, torch.Tensor) and batch.device.type == "cpu":
                batch = batch.pin_memory()  # from there the GPU fetches it by itself, while it computes
            with timings.time("waiting_for_model"):
                yield batch, metadata

    def check_unchanged(self) -> None:
        """See that the shard is the file that was read: else its hash, taken meanwhile, may be another file's.

        Raises:
            ShardError: It is not.
        """
        if self._read_state() != self._state:
            raise ShardError(
                f"{self.job.tar_path!r}: changed or vanished while it was read; expected a finished .tar; run again"
            )

    def _read_state(self) -> tuple[int, ...] | None:
        try:
            stat = Path(self.job.tar_path).stat()
        except OSError:
            return None
        return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns


def read_shards(readers: Sequence[ShardReader]) -> Iterator[tuple[ShardReader, Any]]:
    """Read shards one after the other.

    Yields:
        A reader with `None` when it begins, then with each of its batches, then with its error if it has one.
    """
    for reader in readers:
        yield reader, None  # so that a shard without a batch is seen as well
        try:
            for batch in reader.read():
                if reader.given_up:
                    break
                yield reader, batch
        except TarquetError as error:
            yield reader, error


def read_batches(embedder: ImageEmbedder, tar_path: str, device: str) -> Iterator[tuple[Any, list[dict]]]:
    """Draw the batches from an embedder's loader.

    Raises:
        EmbedderError: A loader of the user's own raised, or yields something else.
        GpuError: Such a loader decodes on the GPU, which has no room or is lost.
    """
    where = f"{tar_path}: {embedder.model_name}: load_dataset_shard"
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
        raise explain_gpu_failure(error, where, device) or EmbedderError(
            f"{where} failed: {describe_error(error)}; expected it to yield pairs of a batch and a list of dicts"
        ) from error


def count_samples(tar_path: str, id_col: str, ledger: Ledger) -> dict[str, str]:
    """Open an account for every sample that the tar itself holds, for a loader that does not tell.

    Returns:
        Key by id, for loaders whose metadata has no `__key__`.
    """
    fields = Columns(id_col).needed
    suffixes = list_suffixes(fields)
    ids = {}
    samples = read_samples(
        tar_path, accept_damage=ledger.accept_damage, wants=lambda name: name.lower().endswith(suffixes)
    )
    for sample in samples:
        ledger.open(sample.account)
        if fields:
            # Else its id stays unknown; if the loader yields it, the loader could read it.
            with suppress(KeyError, ValueError):
                ids[str(read_metadata(sample, fields)[id_col])] = sample.key
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
