import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from support.tools import encode, make_image

from embedders.reading.images import FORMATS, MAX_SCANS, ImageError, convert_to_rgb, decode_image, open_image
from embedders.reading.pixels import decode_to_tensor, find_jpeg_size


def pixels_of(encoded: bytes, background: str = "white") -> np.ndarray:
    """Decode by both roads, which must agree."""
    pixels = np.asarray(decode_image(encoded, background))
    tensor = decode_to_tensor(encoded, background)
    assert pixels.dtype == np.uint8
    assert tensor.dtype == torch.uint8
    assert np.array_equal(pixels, tensor.permute(1, 2, 0).numpy())
    return pixels


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_every_format_decodes_to_what_pillow_makes_of_it(form, mode):
    encoded = make_image(3, (41, 29), form, mode)
    expected = np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"))
    assert np.array_equal(pixels_of(encoded), expected)
    assert expected.shape == (29, 41, 3)


@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("size", [(1, 1), (7, 9), (16, 16), (333, 222)])
@pytest.mark.parametrize("progressive", [False, True])
def test_torchvisions_jpeg_pixels_equal_pillows(subsampling, size, progressive):
    for quality in (30, 90):
        options = {"quality": quality, "subsampling": subsampling, "progressive": progressive}
        encoded = make_image(quality, size, **options)
        assert find_jpeg_size(encoded) == size  # so that the fast road is taken
        pixels_of(encoded)


def test_cmyk_is_converted_as_timm_would():
    for form in ("JPEG", "TIFF"):
        encoded = make_image(1, form=form, mode="CMYK")
        assert np.array_equal(pixels_of(encoded), np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB")))


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_16_bit_grey_keeps_its_range(form):
    grey = np.array([[0, 257, 128 * 257, 65535]], np.uint16)
    assert pixels_of(encode(Image.fromarray(grey), form))[0, :, 0].tolist() == [0, 1, 128, 255]


def test_16_bit_colour_is_reduced():
    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0))
    rows = chunk(b"IDAT", zlib.compress(b"\0" + struct.pack(">HHH", 0, 32896, 65535)))
    encoded = b"\x89PNG\r\n\x1a\n" + header + rows + chunk(b"IEND", b"")
    assert pixels_of(encoded).tolist() == [[[0, 128, 255]]]


def test_pixels_without_an_8_bit_range_are_refused():
    for values in (np.float32, np.int32):
        with pytest.raises(ImageError, match="no defined 8-bit range"):
            pixels_of(encode(Image.fromarray(np.ones((4, 4), values)), "TIFF"))


def test_transparency_is_laid_on_the_background():
    clear_to_red = Image.new("RGBA", (2, 1), (255, 0, 0, 0))
    clear_to_red.putpixel((1, 0), (255, 0, 0, 255))
    half_grey = Image.new("LA", (1, 1), (0, 128))
    for form in ("PNG", "WEBP", "TIFF"):
        encoded = encode(clear_to_red, form, **({"lossless": True} if form == "WEBP" else {}))
        assert pixels_of(encoded).tolist() == [[[255, 255, 255], [255, 0, 0]]]
        assert pixels_of(encoded, "#0000ff").tolist() == [[[0, 0, 255], [255, 0, 0]]]
    assert pixels_of(encode(half_grey, "PNG")).tolist() == [[[127, 127, 127]]]
    assert pixels_of(encode(half_grey, "PNG"), "black").tolist() == [[[0, 0, 0]]]


def test_palettes_and_single_clear_colours_are_laid_on_the_background_too():
    palette = Image.new("P", (2, 1))
    palette.putpalette([9, 8, 7, 255, 0, 0])
    palette.putpixel((1, 0), 1)
    assert pixels_of(encode(palette, "PNG")).tolist() == [[[9, 8, 7], [255, 0, 0]]]
    for form in ("PNG", "GIF"):
        assert pixels_of(encode(palette, form, transparency=0)).tolist() == [[[255, 255, 255], [255, 0, 0]]]
    clear_black = encode(Image.new("RGB", (1, 1), "black"), "PNG", transparency=(0, 0, 0))
    assert pixels_of(clear_black).tolist() == [[[255, 255, 255]]]
    assert pixels_of(encode(Image.new("L", (1, 1), 5), "PNG", transparency=5)).tolist() == [[[255, 255, 255]]]
    assert pixels_of(encode(Image.new("1", (1, 1), 1), "PNG")).tolist() == [[[255, 255, 255]]]


def test_of_an_animation_the_first_frame_counts():
    frames = [Image.new("RGB", (3, 3), colour) for colour in ("red", "blue")]
    for form in ("GIF", "WEBP", "TIFF", "PNG"):
        options = {"lossless": True} if form == "WEBP" else {}
        encoded = encode(frames[0], form, save_all=True, append_images=frames[1:], **options)
        assert pixels_of(encoded)[0, 0].tolist() == [255, 0, 0]


def test_exif_orientation_is_ignored_exactly_as_timms_own_evaluation_does():
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    plain, turned = make_image(1, (40, 20)), make_image(1, (40, 20), exif=exif)
    assert Image.open(io.BytesIO(turned)).getexif()[0x0112] == 6
    assert np.array_equal(pixels_of(plain), pixels_of(turned))
    assert np.array_equal(pixels_of(turned), np.asarray(Image.open(io.BytesIO(turned)).convert("RGB")))


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_a_truncated_image_is_an_image_error_wherever_it_ends(form):
    encoded = make_image(5, (64, 64), form)
    for part in (0, 0.01, 0.1, 0.3, 0.5, 0.8):
        for road in (decode_image, decode_to_tensor):
            with pytest.raises(ImageError):
                road(encoded[: int(len(encoded) * part)])


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_a_damaged_image_gives_pixels_or_an_image_error_and_nothing_else(form):
    encoded = make_image(6, (48, 48), form)
    random = np.random.default_rng(0)
    for _ in range(60):
        damaged = bytearray(encoded)
        for place in random.integers(0, len(encoded), 3):
            damaged[place] = random.integers(0, 256)
        for road in (decode_image, decode_to_tensor):
            try:
                road(bytes(damaged))
            except ImageError as error:
                assert str(error)
                assert "\n" not in str(error)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_bomb_is_refused_by_its_header_alone():
    bmp = bytearray(make_image(0, form="BMP"))
    bmp[18:26] = struct.pack("<ii", 100_000, 100_000)
    jpeg = bytearray(make_image(0))
    at = jpeg.index(b"\xff\xc0")
    jpeg[at + 5 : at + 9] = struct.pack(">HH", 65_500, 65_500)
    gif = bytearray(make_image(0, form="GIF"))
    gif[6:10] = struct.pack("<HH", 65_535, 65_535)
    for bomb in (bmp, jpeg, gif):
        for road in (decode_image, decode_to_tensor):
            with pytest.raises(ImageError, match="too many pixels"):
                road(bytes(bomb))


@pytest.mark.parametrize(
    "encoded", [b"", b"text", b"\xff\xd8\xff", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"]
)
def test_what_is_no_image_is_an_image_error(encoded):
    for road in (decode_image, decode_to_tensor):
        with pytest.raises(ImageError, match="not an image of a known format"):
            road(encoded)


def test_only_formats_chosen_by_name_are_ever_parsed():
    assert {"JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"} <= set(FORMATS)
    assert not {"EPS", "PSD", "WMF", "FITS"} & set(FORMATS)


def test_converting_leaves_an_rgb_image_as_it_is():
    image = open_image(make_image(2, form="PNG"))
    assert np.array_equal(np.asarray(convert_to_rgb(image)), np.asarray(image))


def test_the_size_of_a_common_jpeg_is_what_pillow_says():
    for number, (mode, progressive) in enumerate([("RGB", False), ("RGB", True), ("L", False)]):
        exif = Image.Exif()
        exif[0x010E] = "a description"
        encoded = make_image(
            number, (333, 20 + number), mode=mode, progressive=progressive, exif=exif, comment=b"x" * 99
        )
        assert find_jpeg_size(encoded) == Image.open(io.BytesIO(encoded)).size


def test_pillow_is_asked_about_every_other_file():
    common = make_image(0, (64, 48))
    frame = common.index(b"\xff\xc0")

    def change(at, new):
        return common[:at] + new + common[at + len(new) :]

    others = {
        "CMYK": make_image(0, mode="CMYK"),
        "PNG": make_image(0, form="PNG"),
        "12 bits": change(frame + 4, b"\x0c"),
        "two colours": change(frame + 9, b"\x02"),
        "no height": change(frame + 5, b"\0\0"),
        "a bomb": change(frame + 5, b"\xff\xff\xff\xff"),
        "arithmetic coding": change(frame + 1, b"\xc9"),
        "a length that leads astray": change(common.index(b"\xff\xdb") + 2, b"\xff\xff"),
        "padding before a marker": common[:frame] + b"\xff" + common[frame:],
        "too many scans": make_image(0, progressive=True) + b"\xff\xda" * MAX_SCANS,
    }
    for what, encoded in others.items():
        assert find_jpeg_size(encoded) is None, what
    for end in range(frame + 10):
        assert find_jpeg_size(common[:end]) is None
