"""JPEG bytes -> pixels by libjpeg-turbo, twice as fast as Pillow and equal to it pixel by pixel.

Owns which JPEGs are decoded so; everything else is left to Pillow, which says what it is, or what is wrong with it.
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
    log.warning("simplejpeg is not installed; Pillow decodes every JPEG, to the same pixels, in twice the time")

_START = b"\xff\xd8"
_DAMAGE = "Corrupt JPEG data"
_COLORS = ("YCbCr", "Gray", "RGB")  # CMYK and YCCK are converted otherwise by Pillow


def find_size(encoded: bytes) -> tuple[int, int] | None:
    """Return width and height of a common JPEG; `None` for every other file."""
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
    """Decode a JPEG that has a size by `find_size`.

    Returns:
        uint8 of shape (height, width, 3), RGB; `None` where libjpeg says that anything is wrong. Pillow then decides:
        an image that is cut short fails, and other damaged parts are filled in by libjpeg.
    """
    try:
        return simplejpeg.decode_jpeg(encoded, "RGB", fastdct=False, fastupsample=False)
    except ValueError as error:
        if str(error).startswith(_DAMAGE):
            remark("patched", f"a damaged JPEG, filled in by libjpeg: {error}")
        return None
