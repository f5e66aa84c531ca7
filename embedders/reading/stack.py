"""Stacks decoded images to a batch, and keeps the memory layout of their decoder."""

import torch

from embedders.errors import EmbedderError


def stack_images(tensors: list[torch.Tensor], metadata: list[dict], tar_path: str) -> torch.Tensor:
    """Stack images to a batch.

    Raises:
        EmbedderError: An image is not a tensor, or differs in shape from the first one.
    """
    first = tensors[0]
    for tensor, sample in zip(tensors, metadata, strict=True):
        if not isinstance(tensor, torch.Tensor):
            raise EmbedderError(
                f"{tar_path}: sample {sample['__key__']!r}: preprocess gave a {type(tensor).__name__}; expected a "
                "torch.Tensor"
            )
        if tensor.shape != first.shape:
            raise EmbedderError(
                f"{tar_path}: sample {sample['__key__']!r}: preprocess gave shape {tuple(tensor.shape)}, but "
                f"{tuple(first.shape)} before; expected one shape for every image; resize or crop to a fixed size"
            )
    if first.dtype == torch.uint8 and first.ndim == 3 and first.stride(0) == 1:
        # The images are in the memory layout of decoders, channels last. Keeping it takes a quarter of the time, and
        # convolutions need it anyway. `as_strided` replaces `movedim` for single images, because that releases the
        # GIL and then waits for it behind the decoding threads.
        channels, *sides = first.shape
        rows = [image.as_strided((*sides, channels), (*image.stride()[1:], image.stride(0))) for image in tensors]
        return torch.stack(rows).movedim(-1, 1)
    return torch.stack(tensors)
