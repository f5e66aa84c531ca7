"""Encoded bytes -> a tensor of pixels: the fast way for the common JPEG, that of `images` for everything else."""

import numpy as np
import torch
from PIL import Image

from embedders.images import ImageError, convert_to_rgb, describe_reason, is_jpeg, open_image
from embedders.light_torch import leave_out_compiler

try:
    with leave_out_compiler():
        from torchvision.io import ImageReadMode, decode_jpeg
except ImportError:  # deprecated since torchvision 0.29; Pillow then decodes all, to the same pixels, more slowly
    decode_jpeg = None


def decode_to_tensor(encoded: bytes, background: str = "white") -> torch.Tensor:
    """Decode an image to a uint8 tensor of shape (3, height, width), RGB.

    Raises:
        ImageError: As `decode_image`.
    """
    return convert_to_tensor(open_image(encoded), encoded, background)


def convert_to_tensor(image: Image.Image, encoded: bytes, background: str = "white") -> torch.Tensor:
    """Decode an opened image, whose bytes are `encoded`, as `decode_to_tensor` does.

    The common JPEG goes through torchvision's decoder, twice as fast as Pillow's and equal to it pixel by
    pixel; everything else goes through `convert_to_rgb`.

    Raises:
        ImageError: As `convert_to_rgb`.
    """
    if decode_jpeg is not None and is_jpeg(image) and image.mode in ("RGB", "L"):
        try:
            # frombuffer wants a writable buffer to do without a warning; bytearray copies, which is cheap.
            buffer = torch.frombuffer(bytearray(encoded), dtype=torch.uint8)
            return decode_jpeg(buffer, mode=ImageReadMode.RGB)
        except RuntimeError as error:
            raise ImageError(f"cannot decode this JPEG: {describe_reason(error)}") from error
    pixels = np.array(convert_to_rgb(image, background))
    return torch.from_numpy(pixels).permute(2, 0, 1)
