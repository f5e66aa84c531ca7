"""The default `load_dataset_shard`: a shard -> batches of decoded images, on threads, in tar order.

Owns how a sample becomes a row of a batch or a failed sample; not the tar (`shards`), the pixels (`images`) or
the model.
"""

import os
from collections.abc import Callable, Iterator

import torch

from embedders.errors import EmbedderError, describe_error
from embedders.output.ledger import FailedSample, Ledger
from embedders.reading.images import ImageError
from embedders.reading.prefetch import map_ordered
from embedders.reading.remarks import collect_remarks
from embedders.reading.samples import IMAGE_SUFFIXES, Sample, read_metadata, read_samples, select_image

# Encoded images that wait to be decoded; most shards never come near, and a hostile one must not fill the memory.
MAX_BYTES_AHEAD = 256 << 20
# Encoded images that a thread decodes in one go, where they are small.
BYTES_PER_TASK = 256 << 10
# What is read of a sample. A video or an array beside the image is passed over.
_READ_SUFFIXES = (*(f".{suffix}" for suffix in IMAGE_SUFFIXES), ".json", ".txt")


def load_batches(
    tar_path: str, decode: Callable[[bytes], torch.Tensor], batch_size: int, threads: int | None, ledger: Ledger
) -> Iterator[tuple[torch.Tensor, list[dict]]]:
    """Read, decode and stack the samples of a shard.

    Args:
        tar_path: The shard.
        decode: Turns an encoded image into a tensor; called on several threads at once.
        batch_size: Images in a batch.
        threads: Decoding threads; `None` takes one for each core.
        ledger: The account in which every sample is opened, and those that fail are named.

    Yields:
        A tensor of shape (n, ...) with n = `batch_size`, or fewer at the end, and n dicts of metadata.

    Raises:
        ShardError: The shard is missing or damaged.
        EmbedderError: `decode` gives images of different shapes.
    """
    threads = threads or len(os.sched_getaffinity(0))
    tensors, metadata = [], []

    def decode_timed(sample: Sample) -> tuple[torch.Tensor, dict] | FailedSample:
        remarks = collect_remarks()
        with ledger.timings.time("decoding"):
            outcome = decode_sample(decode, sample)
        if remarks and not isinstance(outcome, FailedSample):
            ledger.remark(sample.key, remarks)
        return outcome

    pending = map_ordered(
        decode_timed,
        ledger.timings.time_items(open_samples(tar_path, ledger), "reading"),
        threads,
        ahead=2 * batch_size,  # one batch that fills while the other is with the model
        weigh=count_bytes,
        max_weight=MAX_BYTES_AHEAD,
        task_weight=BYTES_PER_TASK,
        initializer=compute_alone,
    )
    for outcome in pending:
        if isinstance(outcome, FailedSample):
            ledger.fail(outcome)
            continue
        tensors.append(outcome[0])
        metadata.append(outcome[1])
        if len(tensors) == batch_size:
            yield stack_images(tensors, metadata, tar_path), metadata
            tensors, metadata = [], []
    if tensors:
        yield stack_images(tensors, metadata, tar_path), metadata


def compute_alone() -> None:
    """Keep torch's own threads out of a decoding thread: many images at once use the cores better than one.

    Holds for threads that compute with torch for the first time from now on; the model's thread is older.
    """
    torch.set_num_threads(1)


def open_samples(tar_path: str, ledger: Ledger) -> Iterator[Sample]:
    """Read the samples of a shard, open an account for each, and let through those that can be used."""
    # A subclass's own loader may call this one: then the job has counted the samples already.
    is_counted = ledger.is_counted
    samples = read_samples(
        tar_path, accept_damage=ledger.accept_damage, wants=lambda name: name.lower().endswith(_READ_SUFFIXES)
    )
    for sample in samples:
        ledger.offset = sample.offset
        if ledger.only is not None and sample.key not in ledger.only:
            continue
        if not is_counted:
            ledger.open(sample.key)
        if sample.problem is None:
            yield sample
        else:
            kind, message = sample.problem
            ledger.fail(FailedSample(sample.key, kind, message, sample.name, sample.offset))


def count_bytes(sample: Sample) -> int:
    """Bytes that a sample holds in memory."""
    return sum(len(content) for content in sample.members.values() if content is not None)


def decode_sample(
    decode: Callable[[bytes], torch.Tensor], sample: Sample
) -> tuple[torch.Tensor, dict] | FailedSample:
    """Decode the image of one sample and read its metadata; whatever is wrong with it fails it alone."""

    def fail(kind: str, message: str) -> FailedSample:
        return FailedSample(sample.key, kind, message, sample.name, sample.offset)

    suffix, image = select_image(sample)
    if suffix is None:
        return fail("no_single_image", image)
    try:
        metadata = read_metadata(sample)
    except ValueError as error:
        return fail("bad_metadata", str(error))
    try:
        return decode(image), metadata
    except ImageError as error:
        return fail("undecodable", f".{suffix}: {error}")
    except MemoryError:
        raise
    except Exception as error:
        return fail("preprocess_error", describe_error(error))


def stack_images(tensors: list[torch.Tensor], metadata: list[dict], tar_path: str) -> torch.Tensor:
    """Stack images of one shape to a batch."""
    for tensor, sample in zip(tensors, metadata, strict=True):
        where = f"{tar_path}: sample {sample['__key__']!r}"
        if not isinstance(tensor, torch.Tensor):
            raise EmbedderError(f"{where}: preprocess gave a {type(tensor).__name__}; expected a torch.Tensor")
        if tensor.shape != tensors[0].shape:
            raise EmbedderError(
                f"{where}: preprocess gave shape {tuple(tensor.shape)}, but {tuple(tensors[0].shape)} before; "
                "expected one shape for every image; resize or crop to a fixed size"
            )
    if tensors[0].dtype == torch.uint8 and tensors[0].ndim == 3 and tensors[0].stride(0) == 1:
        # As decoders lay pixels out: kept so, this takes a quarter of the time, and convolutions want channels_last.
        # `movedim` by hand: that gives Python's lock away, and has to wait for it behind the decoding threads.
        channels, *sides = tensors[0].shape
        rows = [image.as_strided((*sides, channels), (*image.stride()[1:], image.stride(0))) for image in tensors]
        return torch.stack(rows).movedim(-1, 1)
    return torch.stack(tensors)
