"""Wrappers of timm's models: one that pools the tokens, and one that pads batches for a compiled model."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from embedders.errors import EmbedderError


class PooledModel(nn.Module):
    """A model whose vectors are made of its features: the class token, the mean of the patches, both, or each token.

    Args:
        model: A model of timm.
        pool: One of `pretrained.POOLS`, except `head`.
        name: The model's name, for messages.

    Raises:
        EmbedderError: The model has no class token; and, with the first batch, it has no such features.
    """

    def __init__(self, model: nn.Module, pool: str, name: str):
        super().__init__()
        has_token = getattr(model, "cls_token", None) is not None
        if "cls" in pool and not has_token:
            raise EmbedderError(f"pool {pool!r}: {name!r} has no class token; expected 'head' or 'mean'")
        self.model: Any = model
        self.pool = pool
        self._name = name
        # The class token and registers, which come before the patches and are not parts of the image.
        self._prefix_tokens = getattr(model, "num_prefix_tokens", None if has_token else 0)
        self._sides = (1, 2) if str(getattr(model, "output_fmt", "NCHW")) == "NHWC" else (2, 3)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Embed a normalized batch."""
        features = self.model.forward_features(pixels)
        if isinstance(features, torch.Tensor) and features.ndim == 4 and self.pool in ("mean", "tokens"):
            if self.pool == "mean":
                return features.mean(self._sides)
            places = features.flatten(*self._sides)  # each position of the last feature map
            return places if self._sides == (1, 2) else places.transpose(1, 2)
        if not isinstance(features, torch.Tensor) or features.ndim != 3 or self._prefix_tokens is None:
            raise EmbedderError(
                f"pool {self.pool!r}: {self._name!r} has no tokens that can be pooled; expected 'head'"
            )
        if self.pool == "tokens":
            return features
        parts = {"cls": features[:, 0], "mean": features[:, self._prefix_tokens :].mean(1)}
        return torch.cat([parts[part] for part in self.pool.split("+")], dim=1)


class PaddedModel(nn.Module):
    """Pads batches for a compiled model, because torch compiles it again for each new batch size."""

    def __init__(self, model: Callable[[torch.Tensor], torch.Tensor]):
        super().__init__()
        self.model: Any = model
        self._sizes: set[int] = set()

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Embed a batch; if a larger size was compiled before, pad the batch to it with blank images."""
        images = len(pixels)
        size = min((size for size in self._sizes if size >= images), default=images)
        self._sizes.discard(size)  # until it has worked: after one that was too large for the GPU comes its half
        vectors = self.model(nn.functional.pad(pixels, (0,) * 7 + (size - images,)))[:images]
        self._sizes.add(size)
        return vectors
