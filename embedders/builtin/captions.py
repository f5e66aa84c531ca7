"""Captions of images as tokens, for models that also embed texts. Owns the row of bytes of pixels and tokens."""

import math
import threading
from collections.abc import Callable, Mapping
from typing import Any

import torch

from embedders.builtin.pixel_model import PixelModel
from embedders.reading.metadata import require_text


class Captions:
    """Reads the caption of a sample as tokens, which follow the pixels in its row of bytes.

    Args:
        field: The metadata field of the caption.
        tokenizer: Turns a text into integers of shape (1, length).
    """

    def __init__(self, field: str, tokenizer: Callable[[str], torch.Tensor]):
        self.field = field
        self._tokenizer = tokenizer
        self._lock = threading.Lock()  # tokenizers of Hugging Face refuse to work on two threads at once

    def read(self, metadata: Mapping[str, Any]) -> torch.Tensor:
        """Return the tokens of a sample's caption, as bytes.

        Raises:
            SampleError: It has none.
        """
        text = require_text(metadata, self.field, "text_field")
        with self._lock:
            return self._tokenizer(text)[0].to(torch.int32).view(torch.uint8)


class CaptionedModel:
    """Turns a batch of bytes into the vectors of images and of captions, by their columns.

    Args:
        images: Embeds pixels.
        model: Has the weights of both halves.
        encode_texts: Embeds tokens.
        shape: Shape of the pixels of an image.
        columns: Names of the columns of images and of captions.
    """

    def __init__(
        self,
        images: PixelModel,
        model: torch.nn.Module,
        encode_texts: Callable[[torch.Tensor], torch.Tensor],
        shape: tuple[int, ...],
        columns: tuple[str, str],
    ):
        self.images = images
        self.model = model  # where a job looks for the weights
        self.encode_texts = encode_texts
        self.shape = shape
        self.columns = columns

    def __call__(self, batch: torch.Tensor) -> dict[str, torch.Tensor]:
        size = math.prod(self.shape)
        # A copy, because a view as int32 of a part of a row must begin at a multiple of four bytes.
        tokens = batch[:, size:].clone(memory_format=torch.contiguous_format)
        tokens = tokens.view(torch.int32).to(self.images.device, torch.int64)
        vectors = self.images(batch[:, :size].unflatten(1, self.shape))
        return dict(zip(self.columns, (vectors, self.images.compute(self.encode_texts, tokens)), strict=True))
