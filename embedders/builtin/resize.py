"""The resize and crop of a library, done on tensors of 8-bit pixels. Owns no file format and no normalization."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import interpolate

from embedders.reading import jpeg
from embedders.reading.images import ImageError, is_bomb
from embedders.reading.pixels import decode_to_tensor

_shared = threading.local()

# Up to this ratio, every version of Pillow resizes the width first, as torch always does. From version 13 on, Pillow
# resizes the height of taller images first. The two orders differ by up to 30 of 255.
_MAX_HEIGHT_BY_WIDTH = 2
_MAX_SQUASHED_HEIGHT_BY_WIDTH = 1


@dataclass(frozen=True)
class Resize:
    """Resizes an image and crops its centre.

    Attributes:
        target: Length that the short side is resized to, or the height and width that the image is squashed to.
        size: Height and width of the crop.
        interpolation: `bilinear` or `bicubic`.
        round_start: Rounds the position of the crop as the library does.
    """

    target: int | tuple[int, int]
    size: tuple[int, int]
    interpolation: str
    round_start: Callable[[float], int] = round

    def equals_pillow(self, width: int, height: int) -> bool:
        """Return whether Pillow resizes the width of an image of this size first, and so gives the same pixels."""
        is_squashed = isinstance(self.target, tuple)
        return height <= width * (_MAX_SQUASHED_HEIGHT_BY_WIDTH if is_squashed else _MAX_HEIGHT_BY_WIDTH)

    def check_growth(self, size: Sequence[int]) -> None:
        """Check that an image of this size does not become too large, as the function `check_growth` does."""
        if isinstance(self.target, int):
            check_growth(size, self.target)

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        """Resize and crop uint8 of shape (3, height, width), in a third of the time that Pillow takes.

        It does not use torchvision's two functions: for a small image their overhead is longer than the work, and
        they hold Python's lock.
        """
        if isinstance(self.target, int):
            sides = [int(self.target * side / min(image.shape[1:])) for side in image.shape[1:]]
        else:
            sides = list(self.target)
        # As a batch in channels_last: torch does not recognize `image[None]` as one, and would copy it.
        batch = image.as_strided((1, *image.shape), (image.numel(), *image.stride()))
        resized = interpolate(batch, sides, mode=self.interpolation, antialias=True)[0]
        top, left = (self.round_start((side - kept) / 2) for side, kept in zip(sides, self.size, strict=True))
        return resized[:, top : top + self.size[0], left : left + self.size[1]]


def resize_jpeg(encoded: bytes, resize: Resize) -> torch.Tensor | None:
    """Decode and resize a common JPEG; the pixels differ from those of Pillow by at most 2 of 255.

    Returns:
        uint8 of shape (3, height, width); `None` if the image must go through Pillow.

    Raises:
        ImageError: As `check_growth`.
    """
    size = jpeg.find_size(encoded)
    if size is None or not resize.equals_pillow(*size):
        return None
    resize.check_growth(size)
    pixels = _make_once("jpeg", lambda: jpeg.decode(encoded))
    return None if pixels is None else _make_once(resize, lambda: resize(torch.from_numpy(pixels).permute(2, 0, 1)))


def resize_any(encoded: bytes, background: str, resize: Resize) -> torch.Tensor:
    """Decode an image of any format, and resize it with torch even if Pillow would give other pixels.

    Raises:
        ImageError: As `decode_to_tensor` and `check_growth`.
    """
    pixels = _make_once("jpeg", lambda: jpeg.decode(encoded)) if jpeg.find_size(encoded) else None
    if pixels is None:
        image = _make_once(("any", background), lambda: decode_to_tensor(encoded, background))
    else:
        image = torch.from_numpy(pixels).permute(2, 0, 1)
    resize.check_growth(image.shape[1:])
    return _make_once((background, resize), lambda: resize(image))


@contextmanager
def share_pixels() -> Iterator[None]:
    """Decode one image only once and resize it only once in each way, while the block handles it on this thread."""
    _shared.made = {}
    try:
        yield
    finally:
        _shared.made = None


def _make_once(name: Any, make: Callable[[], Any]) -> Any:
    made = getattr(_shared, "made", None)
    if made is None:
        return make()
    if name not in made:
        made[name] = make()
    return made[name]


def check_growth(size: Sequence[int], short_side: int) -> None:
    """Check that a very long image does not become too large when its short side is resized, before the crop.

    Raises:
        ImageError: It would have more pixels than Pillow's limit.
    """
    pixels = short_side**2 * max(size) // min(size)
    if is_bomb(pixels):
        raise ImageError(f"too many pixels: {pixels} once its short side is resized to {short_side}")
