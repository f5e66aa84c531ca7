"""Encoded bytes -> pixels. Owns what counts as an image and how each kind becomes 8-bit RGB; not resizing.

Orientation: the EXIF flag is not applied, because timm's own evaluation (`Image.open(...).convert("RGB")`)
does not apply it either, and vectors are to equal timm's. A subclass can call `PIL.ImageOps.exif_transpose`.
"""

import io

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from embedders.light_torch import leave_out_compiler

try:
    with leave_out_compiler():
        from torchvision.io import ImageReadMode, decode_jpeg
except ImportError:  # deprecated since torchvision 0.29; Pillow then decodes all, to the same pixels, more slowly
    decode_jpeg = None

Image.init()
# Named, so that no rarely used parser of Pillow (EPS starts Ghostscript) ever sees a stranger's bytes.
FORMATS = [
    name
    for name in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "JPEG2000", "AVIF", "PPM")
    if name in Image.OPEN  # AVIF is not in every build of Pillow
]


# The most scans of a progressive JPEG. Encoders write about ten; each costs a pass over all the pixels, and 30 bytes.
MAX_SCANS = 100
_BAND = 1024  # rows


class ImageError(Exception):
    """One image cannot be turned into pixels: its sample fails, the shard goes on."""


def open_image(encoded: bytes) -> Image.Image:
    """Read the header of an encoded image; the pixels stay undecoded.

    Raises:
        ImageError: Not an image of `FORMATS`, or one that decodes to more than Pillow's pixel limit.
    """
    try:
        image = Image.open(io.BytesIO(encoded), formats=FORMATS)
    except UnidentifiedImageError:  # its text names an address in memory
        raise ImageError("not an image of a known format") from None
    except Image.DecompressionBombError as error:
        raise ImageError(f"too many pixels: {error}") from error
    except Exception as error:
        raise ImageError(f"bad image header: {_reason(error)}") from error
    if image.info.get("progressive") and encoded.count(b"\xff\xda") > MAX_SCANS:
        raise ImageError(f"a progressive JPEG of more than {MAX_SCANS} scans")
    return image


def convert_to_rgb(image: Image.Image, background: str = "white") -> Image.Image:
    """Decode an opened image to 8-bit RGB: first frame, transparency laid on `background`.

    16-bit grey is scaled to 8 bits (65535 becomes 255); Pillow itself reduces 16-bit colour.

    Raises:
        ImageError: The pixels cannot be decoded, or have no defined 8-bit range (32-bit integer and float).
    """
    try:
        image.load()
    except Exception as error:
        raise ImageError(f"cannot decode this {image.format}: {_reason(error)}") from error
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        grey = np.asarray(image).astype(np.float32) / 257
        return Image.fromarray(grey.round().clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ImageError(f"pixels of mode {image.mode!r} have no defined 8-bit range")
    if image.has_transparency_data:
        return _lay_on(background, image)
    return image.convert("RGB")


def decode_image(encoded: bytes, background: str = "white") -> Image.Image:
    """Decode an image of any of `FORMATS` to 8-bit RGB."""
    return convert_to_rgb(open_image(encoded), background)


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
            raise ImageError(f"cannot decode this JPEG: {_reason(error)}") from error
    pixels = np.array(convert_to_rgb(image, background))
    return torch.from_numpy(pixels).permute(2, 0, 1)


def is_jpeg(image: Image.Image) -> bool:
    """Whether an opened image is a JPEG; MPO is what many phones write, a JPEG with others behind it."""
    return image.format in ("JPEG", "MPO")


def _lay_on(background: str, image: Image.Image) -> Image.Image:
    canvas = Image.new("RGB", image.size, background)
    # In bands, because at once it takes five images' memory, and a bomb has gigabytes of each.
    for top in range(0, image.height, _BAND):
        band = image.crop((0, top, image.width, min(top + _BAND, image.height))).convert("RGBA")
        ground = Image.new("RGBA", band.size, background)
        canvas.paste(Image.alpha_composite(ground, band).convert("RGB"), (0, top))
    return canvas


def _reason(error: Exception) -> str:
    # torchvision names its own source file first: only what follows the last comma is for the user
    text = str(error).strip().rpartition(".cpp:")[2] if ".cpp:" in str(error) else str(error).strip()
    return text.partition(", ")[2] if ".cpp:" in str(error) else text.splitlines()[0] if text else repr(error)
