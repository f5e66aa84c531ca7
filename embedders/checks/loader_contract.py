"""Checks that `load_dataset_shard` keeps its part of the contract. Looks only at what it yields."""

import copy
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from numbers import Integral
from typing import Any

import numpy as np
import torch

from embedders.base import ImageEmbedder
from embedders.errors import TarquetError, make_one_line
from embedders.job.loaders import add_key, count_samples, find_fields, read_batches
from embedders.output.columns import Columns, read_key
from embedders.output.failed import FailedSample, FailureKind
from embedders.output.ledger import Ledger
from embedders.reading.loader import ShardLoad

# Maximum batch size for the check; a custom loader may use other sizes.
MAX_BATCH_SIZE = {"cpu": 16, "cuda": 256}
# The check stops reading a shard after this many failed samples.
MAX_FAILED = 256
# Above this size, the keys of a shard are not read to check that the loader yields no others.
MAX_COUNTED_BYTES = 1 << 30

Batch = tuple[Any, list[dict]]


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        subject: What was checked: `class`, `loader`, `model`, `shard`.
        message: What was found and, if it is wrong, what was expected and what to do.
        is_wrong: Whether the embedder or the shard needs a fix.
    """

    subject: str
    message: str
    is_wrong: bool = False

    def __str__(self) -> str:
        return f"{'wrong' if self.is_wrong else 'ok':5}  {self.subject}: {make_one_line(self.message)}"


class TrialLedger(Ledger):
    """A ledger that ends the check of a shard after many failures, so that a large bad shard is not read whole."""

    def fail(self, failed: FailedSample) -> None:
        """Record a failed sample, and end the check if there are many."""
        super().fail(failed)
        if len(self.failed) >= MAX_FAILED:
            raise TrialEnd


class TrialEnd(TarquetError):
    """Raised when `MAX_FAILED` samples have failed."""


def load_batches(
    embedder: ImageEmbedder, tar_path: str, id_col: str, device: str, images: int, image_suffix: str = ""
) -> tuple[list[Batch], list[FailedSample]]:
    """Load the first batches of a shard, with about `images` images in all.

    Returns:
        The batches, and the samples that the default loader recorded as failed.

    Raises:
        EmbedderError: The loader raised, or does not yield what it should.
    """
    embedder = copy.copy(embedder)
    fields = find_fields(embedder, Columns(id_col))
    load = ShardLoad(TrialLedger(tar_path), accept_damage=True, fields=fields, image_suffix=image_suffix)
    if isinstance(embedder.batch_size, Integral):  # anything else is an error of the default loader
        embedder.batch_size = min(embedder.batch_size, MAX_BATCH_SIZE[device])
    batches = []
    with suppress(TrialEnd):
        for batch, metadata in read_batches(embedder, tar_path, device, load):
            if metadata or (_is_sized(batch) and len(batch)):  # an empty batch does no harm
                batches.append((batch, [add_key(sample, id_col, {}) for sample in metadata]))
            images -= len(metadata)
            if images <= 0:
                break
    return batches, load.ledger.failed


def check_batches(
    batches: list[Batch], failed: list[FailedSample], id_col: str, metadata_fields: Sequence[str] = ()
) -> Iterator[Finding]:
    """Check the batches of the loader, and the samples that it could not prepare."""
    images = sum(len(metadata) for _, metadata in batches)
    unprepared = [sample for sample in failed if sample.kind == FailureKind.PREPROCESS_ERROR]
    if unprepared:
        share = f"preprocess fails on {len(unprepared)} of the first {images + len(failed)} images"
        message = f"{share}, for example {unprepared[0].key!r}: {unprepared[0].message}; expected a tensor; fix it"
        yield Finding("loader", message, is_wrong=True)
    lacking = [sample for sample in failed if sample.kind == FailureKind.BAD_METADATA and metadata_fields]
    if lacking:
        share = f"{len(lacking)} of the first {images + len(failed)} samples fail, bad_metadata"
        yield Finding("loader", f"{share}, for example {lacking[0].key!r}: {lacking[0].message}", is_wrong=True)
    if not images:
        first = f", for example {failed[0].key!r}: {failed[0].message}" if failed else ""
        message = f"load_dataset_shard yielded no image{first}; expected some; check the content of the shard"
        if not unprepared and not lacking:
            yield Finding("loader", message, is_wrong=True)
        return
    for batch, metadata in batches:
        if _is_sized(batch) and len(batch) != len(metadata):
            message = f"a batch of {len(batch)} images came with {len(metadata)} dicts; expected one dict per image"
            yield Finding("loader", message, is_wrong=True)
            return
        without = [sample for sample in metadata if sample.get(id_col) is None]
        if without:
            named = ", ".join(map(repr, sorted(map(str, without[0]))))
            message = (
                f"{len(without)} of {len(metadata)} metadata dicts have no {id_col!r} (id_col), or null there; "
                f"expected it next to {named}; set id_col, or add it"
            )
            yield Finding("loader", message, is_wrong=True)
            return
    shape = f", {tuple(batches[0][0].shape)} {batches[0][0].dtype}" if isinstance(batches[0][0], torch.Tensor) else ""
    counts = f"{len(batches)} batch{'es' * (len(batches) > 1)} of {images} images"
    yield Finding("loader", f"{counts}{shape}, each with its metadata")


def check_ids(
    batches: list[Batch], columns: Columns, tar_path: str, failed: Sequence[FailedSample] | None
) -> Iterator[Finding]:
    """Check that a custom loader yields only samples of the tar, each once, and that their metadata can be stored.

    Args:
        batches: What the loader yielded.
        columns: The columns next to the vectors.
        tar_path: The shard.
        failed: The samples that the loader recorded as failed; `None` if it was stopped before its end.
    """
    samples = list(chain.from_iterable(metadata for _, metadata in batches))
    unstored = columns.read(samples)[1]
    if unstored:
        message = f"{len(unstored)} of the first {len(samples)} samples will fail, bad_metadata, for example "
        row, reason = next(iter(unstored.items()))
        message += f"{read_key(samples[row])!r}: {reason}; {FailureKind.BAD_METADATA.fix}"
        yield Finding("loader", message, is_wrong=True)
        return
    names = Counter(str(read_key(sample)) for sample in samples)
    name, times = names.most_common(1)[0]
    if times > 1:
        message = f"load_dataset_shard yields {name!r} {times} times; expected each sample once; fix the loader"
        yield Finding("loader", message, is_wrong=True)
        return
    if os.path.getsize(tar_path) > MAX_COUNTED_BYTES:
        return
    ledger = Ledger(tar_path)
    ids, _ = count_samples(tar_path, columns.id_col, ledger, accept_damage=True)
    keys = ledger.unsettled()
    known = {*ids, *keys}
    foreign = [name for name in names if name not in known]
    if foreign:
        other = "" if columns.id_col == "__key__" else f" or {columns.id_col}"
        message = (
            f"load_dataset_shard yields {foreign[0]!r}, which is not a __key__{other} in the tar; expected only its "
        )
        yield Finding("loader", f"{message}samples; take the name from the tar", is_wrong=True)
        return
    if failed is None:
        return
    found = {*names, *(ids[name] for name in names if name in ids), *(sample.key for sample in failed)}
    lost = [key for key in keys if key not in found]
    if lost:
        kind = FailureKind.NOT_LOADED
        message = f"{len(lost)} of {len(keys)} samples will fail, {kind}, for example {lost[0]!r}; {kind.fix}"
        yield Finding("loader", message, is_wrong=True)


def check_loading_again(batches: list[Batch], again: list[Batch]) -> Iterator[Finding]:
    """Check that the loader yields the same images the second time."""
    same = [metadata for _, metadata in batches] == [metadata for _, metadata in again[: len(batches)]]
    if same and isinstance(batches[0][0], torch.Tensor | np.ndarray):
        first, second = (torch.as_tensor(images) for images in (batches[0][0], again[0][0]))
        same = torch.equal(first, second)  # numpy has no bfloat16
    if not same:
        message = "the loader yields other images the second time; expected the same; remove random augmentation"
        yield Finding("loader", message, is_wrong=True)
    else:
        yield Finding("loader", "the same images a second time")


def _is_sized(images: Any) -> bool:
    """Return whether the length of a batch is its number of images."""
    return isinstance(images, torch.Tensor | np.ndarray | list)
