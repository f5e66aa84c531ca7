"""The fastest way to decode an image: `jpeg` for the common JPEG, Pillow for everything else."""

from collections.abc import Callable

import numpy as np
import torch
from PIL import Image

from embedders.reading import jpeg
from embedders.reading.images import JPEGS, convert_to_rgb, open_image


def decode_image(
    encoded: bytes, background: str = "white", check_size: Callable[[tuple[int, int]], None] = lambda size: None
) -> Image.Image:
    """Decode an image to 8-bit RGB.

    Args:
        encoded: The file, of any of `images.FORMATS`.
        background: Colour behind transparent pixels.
        check_size: Called with width and height before the pixels are decoded; may raise `ImageError`.

    Raises:
        ImageError: As `open_image` and `convert_to_rgb`.
    """
    image = open_image(encoded)
    check_size(image.size)
    pixels = jpeg.decode(encoded) if image.format in JPEGS and jpeg.find_size(encoded) else None
    if pixels is None:
        decoded = convert_to_rgb(image, background)
        if "exif" in image.info:  # lost where the pixels were blended or scaled
            decoded.info["exif"] = image.info["exif"]
    else:
        decoded = Image.fromarray(pixels)
        decoded.info = image.info
    return decoded  # with the EXIF data, for a subclass that applies the orientation


def decode_to_tensor(encoded: bytes, background: str = "white") -> torch.Tensor:
    """Decode an image to a uint8 tensor of shape (3, height, width), RGB.

    Raises:
        ImageError: As `decode_image`.
    """
    pixels = jpeg.decode(encoded) if jpeg.find_size(encoded) else None
    if pixels is None:
        pixels = np.array(decode_image(encoded, background))
    return torch.from_numpy(pixels).permute(2, 0, 1)
