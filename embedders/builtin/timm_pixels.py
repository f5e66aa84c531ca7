"""Encoded image -> the pixels that a model of timm takes, as timm's own evaluation makes them, but faster."""

from typing import Any

import torch
from PIL import ImageColor
from torch.nn.functional import interpolate

from embedders.builtin.light_torch import leave_out_compiler
from embedders.errors import EmbedderError
from embedders.reading import jpeg
from embedders.reading.images import ImageError, is_bomb
from embedders.reading.pixels import decode_image

with leave_out_compiler():
    from timm.data import create_transform

# Up to here every Pillow resizes the width first, as torch always does; from 13 on, not that of taller images.
_MAX_HEIGHT_BY_WIDTH = 2


class TimmPixels:
    """timm's evaluation transform, up to its division and normalisation, which a device does faster.

    Attributes:
        short_side: What the short side is resized to where torch's resize takes the place of Pillow's; else `None`.

    Args:
        config: timm's data configuration.
        background: What transparency is laid on.

    Raises:
        EmbedderError: The background is no colour.
    """

    def __init__(self, config: dict[str, Any], background: str):
        try:
            ImageColor.getrgb(background)
        except ValueError as error:
            raise EmbedderError(f"background {background!r}: expected a colour, as 'white' or '#rrggbb'") from error
        self.config = config
        self.background = background
        self.short_side = _find_short_side(config)
        # use_prefetcher stops timm's transform before the division and normalisation
        self._transform = create_transform(**config, is_training=False, use_prefetcher=True)

    def __call__(self, encoded: bytes) -> torch.Tensor:
        """Turn one encoded image into uint8 of shape (channels, height, width), resized and cropped as timm would.

        The common JPEG takes a third of the time of timm's own transform, and differs from it by 2 of 255 at most.
        Everything else is left to timm's own.
        """
        size = jpeg.find_size(encoded) if self.short_side else None
        if self.short_side and size and size[1] <= _MAX_HEIGHT_BY_WIDTH * size[0]:
            self._check_growth(size)
            pixels = jpeg.decode(encoded)
            if pixels is not None:
                return self._resize(torch.from_numpy(pixels).permute(2, 0, 1), self.short_side)
        image = decode_image(encoded, self.background, self._check_growth)
        return torch.as_tensor(self._transform(image if self.config["input_size"][0] == 3 else image.convert("L")))

    def _check_growth(self, size: tuple[int, int]) -> None:
        """Refuse an image like a thread: timm resizes its short side before it crops, and memory would not do."""
        if self.config["crop_mode"] != "center":
            return
        short_side = int(max(self.config["input_size"][1:]) / self.config["crop_pct"])
        pixels = short_side**2 * max(size) // min(size)
        if is_bomb(pixels):
            raise ImageError(f"too many pixels: {pixels} once its short side is resized to {short_side}")

    def _resize(self, image: torch.Tensor, short_side: int) -> torch.Tensor:
        """Do timm's short-side resize and centre crop on a uint8 tensor, in a third of the time of Pillow's.

        By hand, because torchvision's two functions take longer than a small image, and hold Python's lock meanwhile.
        """
        short = min(image.shape[1:])
        sides = [int(short_side * side / short) for side in image.shape[1:]]
        # A batch in channels_last, which torch would not see in `image[None]`, and would lay out anew.
        batch = image.as_strided((1, *image.shape), (image.numel(), *image.stride()))
        resized = interpolate(batch, sides, mode=self.config["interpolation"], antialias=True)[0]
        height, width = self.config["input_size"][1:]
        top, left = (round((side - kept) / 2) for side, kept in zip(sides, (height, width), strict=True))
        return resized[:, top : top + height, left : left + width]


def _find_short_side(config: dict[str, Any]) -> int | None:
    """Find what the short side is resized to, where torch's resize may take the place of Pillow's.

    `None` where timm squashes the image or adds borders: Pillow then chooses which side to resize first, and the
    two orders differ by up to 30 of 255. And where the model wants grey, which Pillow makes before it resizes.
    """
    height, width = (int(side / config["crop_pct"]) for side in config["input_size"][1:])
    is_known = config["interpolation"] in ("bilinear", "bicubic") and config["input_size"][0] == 3
    is_cut = config["crop_mode"] == "center" and config["crop_pct"] <= 1
    return height if is_known and is_cut and height == width else None
