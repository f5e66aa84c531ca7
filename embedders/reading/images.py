"""Encoded bytes -> pixels. Owns what counts as an image and how each kind becomes 8-bit RGB; not resizing, not torch.

Orientation: the EXIF flag is not applied, because timm's own evaluation (`Image.open(...).convert("RGB")`)
does not apply it either, and vectors are to equal timm's. A subclass can call `PIL.ImageOps.exif_transpose`.
"""

import io

import numpy as np
from PIL import Image, UnidentifiedImageError

from embedders.output.failed import FailureKind, SampleError

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


class ImageError(SampleError):
    """One image cannot be turned into pixels: its sample fails, the shard goes on."""

    def __init__(self, message: str):
        super().__init__(FailureKind.UNDECODABLE, message)


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
        raise ImageError(f"bad image header: {describe_reason(error)}") from error
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
        raise ImageError(f"cannot decode this {image.format}: {describe_reason(error)}") from error
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


def describe_reason(error: Exception) -> str:
    """Say in a line what a decoder raised."""
    # torchvision names its own source file first: only what follows the last comma is for the user
    text = str(error).strip().rpartition(".cpp:")[2] if ".cpp:" in str(error) else str(error).strip()
    return text.partition(", ")[2] if ".cpp:" in str(error) else text.splitlines()[0] if text else repr(error)


def _lay_on(background: str, image: Image.Image) -> Image.Image:
    canvas = Image.new("RGB", image.size, background)
    # In bands, because at once it takes five images' memory, and a bomb has gigabytes of each.
    for top in range(0, image.height, _BAND):
        band = image.crop((0, top, image.width, min(top + _BAND, image.height))).convert("RGBA")
        ground = Image.new("RGBA", band.size, background)
        canvas.paste(Image.alpha_composite(ground, band).convert("RGB"), (0, top))
    return canvas
