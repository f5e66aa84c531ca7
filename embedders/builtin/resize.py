"""A library's resize and crop, done on a tensor of 8-bit pixels. Owns no file format and no normalisation."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from PIL import Image
from torch.nn.functional import interpolate

from embedders.reading.images import ImageError

# Up to here every Pillow resizes the width first, as torch always does; from 13 on, not that of taller images.
MAX_HEIGHT_BY_WIDTH = 2
# The same where an image is squashed.
MAX_SQUASHED_HEIGHT_BY_WIDTH = 1


@dataclass(frozen=True)
class Resize:
    """Resizes the short side and crops the centre; or resizes both sides, whatever the shape was.

    Attributes:
        short_side: What the short side is resized to; `None` squashes the image to `size`.
        size: Height and width of what comes out.
        interpolation: `bilinear` or `bicubic`.
        round_start: Makes a whole number of the place where the crop begins, as the library does.
    """

    short_side: int | None
    size: tuple[int, int]
    interpolation: str
    round_start: Callable[[float], int] = round

    def find_sides(self, sides: tuple[int, int]) -> tuple[int, int]:
        """Return what two sides become before the crop, whichever of them is the height."""
        if self.short_side is None:
            return self.size
        first, second = (int(self.short_side * side / min(sides)) for side in sides)
        return first, second

    def check_growth(self, size: tuple[int, int]) -> None:
        """Refuse an image like a thread: its short side is resized before the crop, and memory would not do.

        Raises:
            ImageError: It would have more pixels than Pillow's limit.
        """
        first, second = self.find_sides(size)
        if first * second > Image.MAX_IMAGE_PIXELS:
            raise ImageError(f"too many pixels: {first * second} once its short side is resized to {self.short_side}")

    def equals_pillow(self, width: int, height: int) -> bool:
        """Return whether Pillow makes the same of an image of this size: it then resizes the sides in this order."""
        return height <= width * (MAX_SQUASHED_HEIGHT_BY_WIDTH if self.short_side is None else MAX_HEIGHT_BY_WIDTH)

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        """Resize and crop uint8 of shape (3, height, width), in a third of the time of Pillow's.

        By hand, because torchvision's two functions take longer than a small image, and hold Python's lock meanwhile.
        """
        sides = self.find_sides(image.shape[1:])
        # A batch in channels_last, which torch would not see in `image[None]`, and would lay out anew.
        batch = image.as_strided((1, *image.shape), (image.numel(), *image.stride()))
        resized = interpolate(batch, sides, mode=self.interpolation, antialias=True)[0]
        top, left = (self.round_start((side - kept) / 2) for side, kept in zip(sides, self.size, strict=True))
        return resized[:, top : top + self.size[0], left : left + self.size[1]]
