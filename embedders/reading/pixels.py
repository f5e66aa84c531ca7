"""Encoded bytes -> a tensor of pixels: the fast way for the common JPEG, that of `images` for everything else."""

import struct

import numpy as np
import torch
from PIL import Image

from embedders.reading.images import MAX_SCANS, ImageError, decode_image, describe_reason
from embedders.reading.light_torch import leave_out_compiler

try:
    with leave_out_compiler():
        import torchvision.io
    # What torchvision.io.decode_jpeg calls: that one warns each time, and gives Python's lock away once more.
    _decode_jpeg = torch.ops.image.decode_jpeg.default
    _RGB = torchvision.io.ImageReadMode.RGB.value
except (ImportError, AttributeError):
    _decode_jpeg = None  # it is deprecated since 0.29; Pillow then decodes all, to the same pixels, more slowly

_START, _BASELINE, _PROGRESSIVE = b"\xff\xd8", (0xC0, 0xC1), 0xC2
# What may stand before the frame: tables, comments, restart intervals and application data, each with its length.
_PASSED_OVER = frozenset([0xC4, 0xDB, 0xDD, *range(0xE0, 0xF0), 0xFE])


def decode_to_tensor(encoded: bytes, background: str = "white") -> torch.Tensor:
    """Decode an image to a uint8 tensor of shape (3, height, width), RGB.

    The common JPEG goes through torchvision's decoder, which is faster than Pillow's and equal to it pixel by pixel;
    everything else through `decode_image`.

    Raises:
        ImageError: As `decode_image`.
    """
    if _decode_jpeg is None or find_jpeg_size(encoded) is None:
        return torch.from_numpy(np.array(decode_image(encoded, background))).permute(2, 0, 1)
    try:
        # frombuffer wants a writable buffer to do without a warning; bytearray copies, which is cheap.
        return _decode_jpeg(torch.frombuffer(bytearray(encoded), dtype=torch.uint8), _RGB, False)
    except RuntimeError as error:
        raise ImageError(f"cannot decode this JPEG: {describe_reason(error)}") from error


def find_jpeg_size(encoded: bytes) -> tuple[int, int] | None:
    """Find width and height in the header of a common JPEG: 8 bits, grey or three colours, no excess of pixels.

    Pillow tells as well, but takes ten times as long, which is as long as a small image takes to decode, and holds
    Python's lock meanwhile.

    Returns:
        `None` for everything else: Pillow then says what it is, or what is wrong with it.
    """
    if not encoded.startswith(_START):
        return None
    at, end = 2, len(encoded) - 10
    while at < end and encoded[at] == 0xFF:
        marker = encoded[at + 1]
        if marker in _BASELINE or (marker == _PROGRESSIVE and encoded.count(b"\xff\xda") <= MAX_SCANS):
            bits, height, width, colors = struct.unpack_from(">BHHB", encoded, at + 4)
            is_usual = bits == 8 and colors in (1, 3) and 0 < width * height <= Image.MAX_IMAGE_PIXELS
            return (width, height) if is_usual else None
        if marker not in _PASSED_OVER:
            return None
        at += 2 + int.from_bytes(encoded[at + 2 : at + 4], "big")
    return None
