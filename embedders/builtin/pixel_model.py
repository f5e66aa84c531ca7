"""A model that takes a batch of pixels and returns float32 vectors. Owns normalization and precision."""

from collections.abc import Callable, Sequence

import torch
from torch import nn

AUTOCAST_TYPES = ("bfloat16", "float16")


class PixelModel:
    """Turns a batch of pixels into float32 vectors; `load_embedding_model` returns it.

    Args:
        model: Takes normalized pixels, float32 of shape (n, channels, height, width).
        mean: What is subtracted from each channel, on the scale of the batch: 0 to 255 for uint8.
        std: What each channel is then divided by, on the same scale.
        device: `"cuda"` or `"cpu"`.
        normalize: Whether to scale every vector to norm 1.
        autocast: As in `PretrainedImageEmbedder`.
        memory_format: The memory format in which the model gets the pixels.
    """

    def __init__(
        self,
        model: nn.Module,
        mean: Sequence[float],
        std: Sequence[float],
        device: str,
        normalize: bool,
        autocast: bool | str,
        memory_format: torch.memory_format = torch.contiguous_format,
    ):
        self.model = model
        self.device = torch.device(device)
        self.mean, self.std = (torch.tensor(values).view(1, -1, 1, 1).to(self.device) for values in (mean, std))
        self.normalize = normalize
        self.memory_format = memory_format
        self.autocast = autocast in AUTOCAST_TYPES or (bool(autocast) and self.device.type == "cuda")
        if isinstance(autocast, str):
            self.dtype = getattr(torch, autocast)
        else:
            self.dtype = torch.bfloat16 if self.autocast and torch.cuda.is_bf16_supported() else torch.float16

    def __call__(self, batch: torch.Tensor) -> torch.Tensor:
        pixels = batch.to(self.device, non_blocking=True).float().sub(self.mean).div_(self.std)
        pixels = pixels.contiguous(memory_format=self.memory_format)
        return self.compute(self.model, pixels)

    def compute(self, model: Callable[[torch.Tensor], torch.Tensor], inputs: torch.Tensor) -> torch.Tensor:
        """Return the vectors of a model for a batch, computed and normalized as those of images are."""
        with torch.inference_mode(), torch.autocast(self.device.type, self.dtype, enabled=self.autocast):
            vectors = model(inputs)
        vectors = vectors.float()
        return nn.functional.normalize(vectors, dim=-1) if self.normalize else vectors
