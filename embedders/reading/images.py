"""Decoder of images. Owns what counts as an image and how each kind becomes 8-bit RGB; not resizing, not torch.

Orientation: the EXIF flag is not applied, because timm's own evaluation (`Image.open(...).convert("RGB")`)
does not apply it either, and vectors must equal timm's. A subclass can call `PIL.ImageOps.exif_transpose`.
"""

import ctypes
import io
import logging
from collections.abc import Collection
from contextlib import suppress

import numpy as np
import PIL._imaging
from PIL import Image, ImageFile, UnidentifiedImageError

from embedders.output.failed import FailureKind, SampleError

log = logging.getLogger(__name__)

Image.init()
# libtiff writes errors to stderr, without the name of the sample. Silence it: Pillow raises too, and that is reported
# with the name.
with suppress(OSError, AttributeError):  # a Pillow without libtiff, or with libtiff linked into its own file
    ctypes.CDLL(PIL._imaging.__file__).TIFFSetErrorHandler(None)
# Only these are accepted, so that no rarely used parser of Pillow (EPS starts Ghostscript) gets untrusted bytes.
FORMATS: list[str] = [
    name
    for name in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "JPEG2000", "AVIF", "PPM")
    if name in Image.OPEN  # AVIF is not in every build of Pillow
]

# Most scans of a JPEG. Encoders write about ten. A scan may have only 10 bytes, but takes a pass over all pixels.
MAX_SCANS = 100
JPEGS = ("JPEG", "MPO")  # MPO: a JPEG followed by further pictures
_PNG = b"\x89PNG\r\n\x1a\n"
# Chunks that Pillow decompresses although no pixel depends on them; it refuses the image if they exceed 1 MB.
_PNG_TEXTS, _PNG_PROFILE = (b"tEXt", b"zTXt", b"iTXt"), (b"iCCP",)
_BAND = 1024  # rows


class ImageError(SampleError):
    """One image cannot be decoded: only its sample fails, and the job continues with the next one."""

    def __init__(self, message: str):
        super().__init__(FailureKind.UNDECODABLE, message)


def open_image(encoded: bytes) -> ImageFile.ImageFile:
    """Read the header of an encoded image, without decoding its pixels.

    The texts of a PNG are removed, and so is a colour profile of more than 1 MB.

    Raises:
        ImageError: It is not an image of `FORMATS`, or has more pixels than Pillow's limit.
    """
    _refuse_truncated_images()
    try:
        image = _open_png(encoded) if encoded.startswith(_PNG) else _open(encoded)
    except UnidentifiedImageError:  # its text names an address in memory
        raise ImageError(_explain_unidentified(encoded)) from None
    except Image.DecompressionBombError as error:
        raise ImageError(f"too many pixels: {error}") from error
    except Exception as error:
        raise ImageError(f"bad image header: {describe_reason(error)}") from error
    # Pillow stops after the marker of the first scan; before it, application data may hold any bytes.
    if image.format in JPEGS and image.fp and count_scans(encoded, image.fp.tell()) > MAX_SCANS:
        raise ImageError(f"a JPEG of more than {MAX_SCANS} scans")
    return image


def convert_to_rgb(image: Image.Image, background: str = "white") -> Image.Image:
    """Decode an opened image to 8-bit RGB: the first frame, with `background` behind transparent pixels.

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


def count_scans(encoded: bytes, start: int = 0) -> int:
    """Count the markers that start a scan, from an offset in the file on, including those of embedded pictures."""
    # With numpy, because bytes.count takes six times as long and holds the GIL.
    data = np.frombuffer(encoded, np.uint8)[start:]
    return int(np.count_nonzero((data[:-1] == 0xFF) & (data[1:] == 0xDA)))


def is_bomb(pixels: int) -> bool:
    """Return whether an image has more pixels than Pillow's limit, which a user's file may have set or removed."""
    return Image.MAX_IMAGE_PIXELS is not None and pixels > Image.MAX_IMAGE_PIXELS


def describe_reason(error: Exception) -> str:
    """Return one line about what a decoder raised."""
    text = str(error).strip()
    return text.splitlines()[0] if text else repr(error)


def _open(encoded: bytes) -> ImageFile.ImageFile:
    return Image.open(io.BytesIO(encoded), formats=FORMATS)


def _open_png(encoded: bytes) -> ImageFile.ImageFile:
    encoded = _leave_out(_PNG_TEXTS, encoded)
    try:
        return _open(encoded)
    except ValueError:
        return _open(_leave_out(_PNG_PROFILE, encoded))


def _leave_out(kinds: Collection[bytes], png: bytes) -> bytes:
    """Return a PNG without its chunks of these kinds."""
    kept, start, at = [], 0, len(_PNG)
    while at < len(png):
        end = at + 12 + int.from_bytes(png[at : at + 4], "big")
        if png[at + 4 : at + 8] in kinds:
            kept.append(png[start:at])
            start = end
        at = end
    return b"".join([*kept, png[start:]]) if kept else png


def _explain_unidentified(encoded: bytes) -> str:
    """Return which format the bytes begin as, if it is known, and why Pillow cannot read them."""
    if not encoded:
        return "the file is empty"
    for name in FORMATS:
        parse, accept = Image.OPEN[name]
        if accept and accept(encoded[:16]) is True:
            try:
                parse(io.BytesIO(encoded), "")
            except Exception as error:
                return f"a {name} that Pillow cannot read: {describe_reason(error)}"
    return "not an image of a known format"


def _refuse_truncated_images() -> None:
    """Unset a flag that a user's file may have set, since it would affect only some formats and sizes."""
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        ImageFile.LOAD_TRUNCATED_IMAGES = False
        log.warning("ImageFile.LOAD_TRUNCATED_IMAGES was set and is now unset: truncated images fail")


def _lay_on(background: str, image: Image.Image) -> Image.Image:
    canvas = Image.new("RGB", image.size, background)
    # In bands, because all at once would take the memory of five images, each with gigabytes if it is a bomb.
    for top in range(0, image.height, _BAND):
        band = image.crop((0, top, image.width, min(top + _BAND, image.height))).convert("RGBA")
        ground = Image.new("RGBA", band.size, background)
        canvas.paste(Image.alpha_composite(ground, band).convert("RGB"), (0, top))
    return canvas
