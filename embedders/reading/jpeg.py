"""JPEG bytes -> pixels by libjpeg-turbo, twice as fast as Pillow and equal to it pixel by pixel.

Owns which JPEGs are decoded so; everything else is left to Pillow, which says what it is, or what is wrong with it.
"""

import logging

import numpy as np
from PIL import Image

from embedders.reading.remarks import remark

log = logging.getLogger(__name__)

try:
    import simplejpeg
except ImportError:
    simplejpeg = None
    log.warning("simplejpeg is not installed; Pillow decodes every JPEG, to the same pixels, in twice the time")

# The most scans of a JPEG. Encoders write about ten; each costs a pass over all the pixels, and may have 10 bytes.
MAX_SCANS = 100
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
    if colors not in _COLORS or width * height > Image.MAX_IMAGE_PIXELS or count_scans(encoded) > MAX_SCANS:
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


def count_scans(encoded: bytes, start: int = 0) -> int:
    """Count the markers that start a scan, from a place in the file on; those of other pictures in it too."""
    # By numpy, because bytes.count takes six times as long, and holds Python's lock meanwhile.
    data = np.frombuffer(encoded, np.uint8)[start:]
    return int(np.count_nonzero((data[:-1] == 0xFF) & (data[1:] == 0xDA)))
