"""The default `load_dataset_shard`: reads a shard and decodes its images on threads to batches, in tar order.

Owns how a sample becomes a row of a batch or a failed sample; not the tar (`tar`, `samples`), the pixels (`images`)
or the model.
"""

import os
from collections.abc import Callable, Collection, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any, TypeVar

import torch

from embedders.errors import EmbedderError, describe_error
from embedders.output.failed import FailedSample, FailureKind, SampleError
from embedders.output.ledger import Ledger
from embedders.output.timings import Timings
from embedders.reading.images import ImageError
from embedders.reading.metadata import list_suffixes, read_metadata
from embedders.reading.prefetch import map_ordered
from embedders.reading.remarks import collect_remarks
from embedders.reading.samples import IMAGE_SUFFIXES, Sample, read_samples, select_image
from embedders.reading.stack import stack_images

Item = TypeVar("Item")

# Limit of the encoded images that wait for decoding: most shards stay far below, but a hostile one could fill memory.
MAX_BYTES_AHEAD = 256 << 20
# Encoded bytes that a thread decodes in one task, if images are small.
BYTES_PER_TASK = 256 << 10


@dataclass
class ShardLoad:
    """The loading of one shard: the options of the loader, and what it reports.

    Attributes:
        ledger: The ledger, in which an account is opened for every sample, and failed samples are noted.
        accept_damage: Whether to continue in a damaged tar, with each damaged place as a failed sample.
        only: Keys of the samples to load; `None` loads all.
        fields: Type of each metadata field that is needed; `None` needs all.
        image_suffix: The suffix of the images; without one, each sample has one image.
        is_counted: Whether the accounts of all the samples are open before the loader starts.
        offset: How far the default loader has come in the uncompressed tar, in bytes.
        timings: Where the time goes.
    """

    ledger: Ledger
    accept_damage: bool = False
    only: Collection[str] | None = None
    fields: Mapping[str, str] | None = None
    image_suffix: str = ""
    is_counted: bool = False
    offset: int = 0
    timings: Timings = field(default_factory=Timings)

    def run(self, function: Callable[..., Item], *arguments: Any) -> Item:
        """Call a function; a default loader or `TarSamples` that is created during the call uses this load.

        The load cannot be an argument: `load_dataset_shard` has a fixed signature, and a user's own loader may call
        the default one.
        """
        token = _CURRENT.set(self)
        try:
            return function(*arguments)
        finally:
            _CURRENT.reset(token)


_CURRENT: ContextVar[ShardLoad | None] = ContextVar("current shard load", default=None)


def find_load(tar_path: str) -> ShardLoad:
    """Return the load that `ShardLoad.run` works for; outside of it, a new one, whose ledger is not used."""
    return _CURRENT.get() or ShardLoad(Ledger(tar_path))


def load_batches(
    tar_path: str,
    decode: Callable[..., torch.Tensor],
    batch_size: int,
    threads: int | None,
    with_metadata: bool = False,
) -> Iterator[tuple[torch.Tensor, list[dict]]]:
    """Read, decode and stack the samples of a shard.

    Within `ShardLoad.run` this uses that load. Otherwise it only logs the samples that fail.

    Args:
        tar_path: The shard.
        decode: Turns an encoded image into a tensor; called on several threads at once.
        batch_size: Images in a batch.
        threads: Decoding threads; `None` takes one for each core.
        with_metadata: Whether `decode` takes the metadata of the sample as a second argument.

    Returns:
        Pairs of a tensor of shape (n, ...) with n = `batch_size`, or fewer at the end, and n dicts of metadata.

    Raises:
        ShardError: The shard is missing or damaged.
        EmbedderError: `batch_size` or `threads` is no such number, or `decode` returns images of different shapes.
    """
    for name, number in (("batch_size", batch_size), ("num_threads_per_worker", 1 if threads is None else threads)):
        if not isinstance(number, Integral) or number < 1:
            raise EmbedderError(f"{tar_path}: {name}: {number!r}; expected a whole number of at least 1; set it")
    take = decode if with_metadata else lambda image, metadata: decode(image)
    return _load(tar_path, take, batch_size, threads or len(os.sched_getaffinity(0)), find_load(tar_path))


def _load(
    tar_path: str, decode: Callable[[bytes, dict], torch.Tensor], batch_size: int, threads: int, load: ShardLoad
) -> Iterator[tuple[torch.Tensor, list[dict]]]:
    tensors, metadata = [], []

    def decode_noted(sample: Sample) -> tuple[torch.Tensor, dict] | FailedSample:
        remarks = collect_remarks()
        outcome = decode_sample(decode, sample, load.fields, load.image_suffix)
        if remarks and not isinstance(outcome, FailedSample):
            load.ledger.remark(sample.key, remarks)
        return outcome

    def decode_timed(samples: list[Sample]) -> list[tuple[torch.Tensor, dict] | FailedSample]:
        with load.timings.time("decoding"):
            return [decode_noted(sample) for sample in samples]

    pending = map_ordered(
        decode_timed,
        load.timings.time_items(open_samples(tar_path, load), "reading"),
        threads,
        ahead=2 * batch_size,  # one batch fills while the model runs on the other
        weigh=count_bytes,
        max_weight=MAX_BYTES_AHEAD,
        task_weight=BYTES_PER_TASK,
        initializer=compute_alone,
    )
    for outcome in pending:
        if isinstance(outcome, FailedSample):
            load.ledger.fail(outcome)
            continue
        tensors.append(outcome[0])
        metadata.append(outcome[1])
        if len(tensors) == batch_size:
            yield stack_images(tensors, metadata, tar_path), metadata
            tensors, metadata = [], []
    if tensors:
        yield stack_images(tensors, metadata, tar_path), metadata


def compute_alone() -> None:
    """Make torch use one thread in a decoding thread: cores are used better by decoding many images in parallel.

    This affects only threads that use torch for the first time afterwards, and so not the model's thread.
    """
    torch.set_num_threads(1)


def select_members(load: ShardLoad) -> Callable[[str], bool]:
    """Return what tells by a member's name whether the default loader reads it: images and metadata."""
    images = [load.image_suffix] if load.image_suffix else IMAGE_SUFFIXES
    suffixes = (*(f".{suffix}" for suffix in images), *list_suffixes(load.fields))
    return lambda name: name.lower().endswith(suffixes)


def open_samples(tar_path: str, load: ShardLoad, wants: Callable[[str], bool] | None = None) -> Iterator[Sample]:
    """Read the samples of a shard, open an account for each, and yield those that can be used.

    Args:
        tar_path: The shard.
        load: The account, and what is asked for.
        wants: As in `read_samples`; by default the images and the metadata that is needed.
    """
    for sample in read_samples(tar_path, accept_damage=load.accept_damage, wants=wants or select_members(load)):
        load.offset = sample.offset
        if load.only is not None and sample.account not in load.only:
            continue
        if not load.is_counted:
            load.ledger.open(sample.account)
        if sample.problem is None:
            yield sample
        else:
            load.ledger.fail(fail_sample(sample, *sample.problem))


def count_bytes(sample: Sample) -> int:
    """Return the size of a sample in memory, in bytes."""
    return sum(len(content) for content in sample.members.values() if content is not None)


def fail_sample(sample: Sample, kind: FailureKind, message: str) -> FailedSample:
    """Return the record of a sample that failed."""
    return FailedSample(sample.account, kind, message, sample.name, sample.offset)


def decode_sample(
    decode: Callable[[bytes, dict], torch.Tensor],
    sample: Sample,
    fields: Mapping[str, str] | None = None,
    image_suffix: str = "",
) -> tuple[torch.Tensor, dict] | FailedSample:
    """Decode the image of one sample and read its metadata; on any error, only this sample fails."""
    try:
        suffix, image = select_image(sample, image_suffix)
        metadata = read_metadata(sample, fields)
    except SampleError as error:
        return fail_sample(sample, error.kind, str(error))
    try:
        return decode(image, metadata), metadata
    except ImageError as error:
        return fail_sample(sample, error.kind, f".{suffix}: {error}")
    except SampleError as error:
        return fail_sample(sample, error.kind, str(error))
    except MemoryError:
        raise
    except Exception as error:
        return fail_sample(sample, FailureKind.PREPROCESS_ERROR, describe_error(error))
