"""Encoded bytes -> a tensor of pixels."""

import numpy as np
import torch

from embedders.reading import jpeg
from embedders.reading.images import decode_image


def decode_to_tensor(encoded: bytes, background: str = "white") -> torch.Tensor:
    """Decode an image to a uint8 tensor of shape (3, height, width), RGB.

    Raises:
        ImageError: As `decode_image`.
    """
    pixels = jpeg.decode(encoded) if jpeg.find_size(encoded) else None
    if pixels is None:
        pixels = np.array(decode_image(encoded, background))
    return torch.from_numpy(pixels).permute(2, 0, 1)
