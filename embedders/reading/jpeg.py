"""Decoder of JPEGs by libjpeg-turbo, twice as fast as Pillow and with exactly the same pixels.

Owns which JPEGs are decoded in this way. Pillow decodes all other images, and reports what is wrong with them.
"""

import logging

import numpy as np

from embedders.reading.images import MAX_SCANS, count_scans, is_bomb
from embedders.reading.remarks import remark

log = logging.getLogger(__name__)

try:
    import simplejpeg
except ImportError:
    simplejpeg = None
    log.warning("simplejpeg is not installed; Pillow decodes JPEGs to the same pixels, but takes twice as long")

_START = b"\xff\xd8"
_DAMAGE = "Corrupt JPEG data"
_COLORS = ("YCbCr", "Gray", "RGB")  # Pillow converts CMYK and YCCK in another way


def find_size(encoded: bytes) -> tuple[int, int] | None:
    """Return the width and height of a common JPEG; `None` for every other file."""
    if simplejpeg is None or not encoded.startswith(_START):
        return None
    try:
        height, width, colors, _ = simplejpeg.decode_jpeg_header(encoded)
    except ValueError:
        return None
    if colors not in _COLORS or is_bomb(width * height) or count_scans(encoded) > MAX_SCANS:
        return None
    return width, height


def decode(encoded: bytes) -> np.ndarray | None:
    """Decode a JPEG for which `find_size` returns a size.

    Returns:
        A uint8 array of shape (height, width, 3), RGB; `None` if libjpeg reports any problem. Pillow then decides: a
        truncated image fails, and libjpeg fills in other damaged parts.
    """
    try:
        return simplejpeg.decode_jpeg(encoded, "RGB", fastdct=False, fastupsample=False)
    except ValueError as error:
        if str(error).startswith(_DAMAGE):
            remark("patched", f"a damaged JPEG, filled in by libjpeg: {error}")
        return None
