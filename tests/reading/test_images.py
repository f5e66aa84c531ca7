import io
import struct
import warnings
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile, ImageOps
from support.tools import encode, make_image, start_python

from embedders.reading import jpeg
from embedders.reading.images import FORMATS, MAX_SCANS, ImageError, convert_to_rgb, open_image
from embedders.reading.pixels import decode_image, decode_to_tensor
from embedders.reading.remarks import collect_remarks


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
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"mode": "L"}, {"keep_rgb": True}])
def test_the_fast_decoders_pixels_equal_pillows(subsampling, size, options):
    for quality in (30, 90):
        if not ("mode" in options or "keep_rgb" in options):
            options = options | {"subsampling": subsampling}
        encoded = make_image(quality, size, quality=quality, **options)
        assert jpeg.find_size(encoded) == size  # so that the fast road is taken
        assert np.array_equal(pixels_of(encoded), np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB")))


@pytest.mark.slow
def test_without_the_fast_decoder_pillow_decodes_to_the_same_pixels_and_that_is_said_once(tmp_path):
    (tmp_path / "1.jpg").write_bytes(make_image(0, (60, 40)))
    code = """
import sys
sys.modules["simplejpeg"] = None
from embedders.reading.pixels import decode_image, decode_to_tensor
encoded = open(sys.argv[1], "rb").read()
print(decode_to_tensor(encoded).permute(1, 2, 0).numpy().tobytes() == decode_image(encoded).tobytes())
sys.stdout.buffer.write(decode_image(encoded).tobytes().hex().encode())
"""
    job = start_python(code, tmp_path / "1.jpg")
    output, errors = job.communicate(timeout=60)
    assert output.split() == ["True", pixels_of((tmp_path / "1.jpg").read_bytes()).tobytes().hex()]
    assert errors.count("simplejpeg is not installed") == 1


@pytest.mark.slow
def test_truncated_jpegs_take_no_memory_along(tmp_path):
    (tmp_path / "1.jpg").write_bytes(make_image(0, (2000, 1500))[:-5000])
    code = """
import sys
from embedders.job.meter import read_peak_memory
from embedders.reading.images import ImageError
from embedders.reading.pixels import decode_to_tensor
encoded = open(sys.argv[1], "rb").read()
def decode(times):
    for _ in range(times):
        try:
            decode_to_tensor(encoded)
            sys.exit("not truncated")
        except ImageError:
            pass
    return read_peak_memory() >> 20
before = decode(4)
print(decode(60) - before)
"""
    output, errors = start_python(code, tmp_path / "1.jpg").communicate(timeout=120)
    assert int(output) < 30, f"{output} MB for 60 images of 9 MB each {errors}"  # a leak of their pixels: 540


def test_an_image_that_is_cut_short_fails_whatever_a_users_file_has_set(caplog):
    shapes = {"JPEG": [(64, 64), (20, 90), (0, 0)], "PNG": [(64, 64)], "GIF": [(64, 64)], "TIFF": [(64, 64)]}
    for form, sizes in shapes.items():
        for size in sizes:
            encoded = make_image(0, size, form) if any(size) else make_image(0, form=form, mode="CMYK")
            for road in (decode_image, decode_to_tensor):
                ImageFile.LOAD_TRUNCATED_IMAGES = True
                try:
                    with pytest.raises(ImageError):
                        road(encoded[: len(encoded) * 8 // 10])
                finally:
                    ImageFile.LOAD_TRUNCATED_IMAGES = False
    assert "ImageFile.LOAD_TRUNCATED_IMAGES was set and is now unset: truncated images fail" in caplog.text


def test_a_jpeg_that_libjpeg_fills_in_is_decoded_as_pillow_does_and_said_to_be_patched():
    for size in ((64, 48), (20, 90)):
        whole = make_image(0, size, quality=95)
        patched = whole[: len(whole) * 2 // 3] + b"\xff\xd9"
        for road in (decode_image, decode_to_tensor):
            remarks = collect_remarks()
            road(patched)
            assert [kind for kind, _ in remarks] == ["patched"], remarks
            assert "premature end of data segment" in remarks[0][1]
        remarks = collect_remarks()
        pixels_of(whole)
        assert remarks == []
        assert not np.array_equal(pixels_of(patched), pixels_of(whole))


def test_what_pillow_warns_of_is_kept_for_the_sample_and_not_printed(capfd):
    tiff = make_image(0, (16, 16), "TIFF")
    at = tiff.rindex(struct.pack("<HHI", 284, 3, 1))  # how the planes lie
    odd = tiff[: at + 4] + struct.pack("<I", 100_000) + tiff[at + 8 :]
    with warnings.catch_warnings():
        warnings.resetwarnings()
        for _ in range(2):  # Python itself would show it once
            remarks = collect_remarks()
            decode_image(odd)
            assert [kind for kind, _ in remarks] == ["warned"]
            assert remarks[0][1].startswith("Pillow: Tag data larger than file")
    assert capfd.readouterr().err == ""


def test_what_libtiff_says_of_a_damaged_tiff_is_not_printed_without_a_name(capfd):
    tiff = bytearray(make_image(0, (64, 64), "TIFF", compression="tiff_adobe_deflate"))
    tiff[40:80] = b"\0" * 40
    with pytest.raises(ImageError, match="cannot decode this TIFF"):
        decode_image(bytes(tiff))
    assert capfd.readouterr().err == ""


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


ZEROS = zlib.compress(b"\0" * (2 << 20))
LARGE_CHUNKS = {
    "a colour profile": png_chunk(b"iCCP", b"name\0\0" + ZEROS),
    "a compressed text": png_chunk(b"zTXt", b"name\0\0" + ZEROS),
    "an international text": png_chunk(b"iTXt", b"name\0\1\0\0\0" + ZEROS),
    "many texts": png_chunk(b"zTXt", b"name\0\0" + zlib.compress(b"\0" * 1_000_000)) * 70,
    "a plain text": png_chunk(b"tEXt", b"name\0" + b"x" * (2 << 20)),
}


@pytest.mark.parametrize("what", LARGE_CHUNKS)
def test_a_png_with_a_large_profile_or_text_has_its_pixels(what):
    plain = make_image(0, form="PNG")
    end_of_header, start_of_end = 8 + 25, plain.rindex(b"IEND") - 4
    for at in (end_of_header, start_of_end):
        if at == start_of_end and what == "a colour profile":
            continue  # must stand before the pixels
        assert np.array_equal(pixels_of(plain[:at] + LARGE_CHUNKS[what] + plain[at:]), pixels_of(plain))


def test_a_usual_profile_stays_with_its_image():
    encoded = make_image(0, form="PNG", icc_profile=b"profile" * 99)
    assert decode_image(encoded).info["icc_profile"] == b"profile" * 99


@pytest.mark.parametrize(
    ("form", "options"),
    [
        ("JPEG", {"icc_profile": b"x" * (3 << 20)}),
        ("JPEG", {"exif": b"Exif\0\0" + b"x" * 60_000}),
        ("WEBP", {"icc_profile": b"x" * (3 << 20), "exif": b"Exif\0\0" + b"x" * (3 << 20)}),
        ("TIFF", {"icc_profile": b"x" * (3 << 20), "description": "x" * (3 << 20)}),
        ("AVIF", {"icc_profile": b"x" * (3 << 20)}),
        ("GIF", {"comment": b"x" * (3 << 20)}),
    ],
)
def test_other_formats_with_large_profiles_and_texts_have_their_pixels(form, options):
    if form not in FORMATS:
        pytest.skip(f"this Pillow reads no {form}")
    assert np.array_equal(pixels_of(make_image(0, form=form, **options)), pixels_of(make_image(0, form=form)))


def test_the_orientation_can_be_applied_by_a_subclass():
    exif = Image.Exif()
    exif[0x0112] = 6
    encoded = make_image(1, (40, 20), exif=exif)
    assert jpeg.find_size(encoded)
    assert ImageOps.exif_transpose(decode_image(encoded)).size == (20, 40)
    for mode in ("RGB", "RGBA", "LA", "P", "I;16"):  # some are laid on a background, or scaled to 8 bits
        picture = Image.new(mode, (40, 20))
        assert ImageOps.exif_transpose(decode_image(encode(picture, "PNG", exif=exif))).size == (20, 40), mode


def test_a_size_that_the_caller_refuses_is_refused_before_the_pixels_are_decoded():
    def refuse(size):
        raise ImageError(f"{size}")

    truncated = make_image(0, (64, 48), "PNG")[:-100]
    with pytest.raises(ImageError, match=r"\(64, 48\)"):
        decode_image(truncated, check_size=refuse)


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


def test_a_limit_of_pixels_that_a_users_file_removed_or_changed_is_heeded(monkeypatch):
    encoded = make_image(0, (64, 48))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert jpeg.find_size(encoded) == (64, 48)
    for road in (decode_image, decode_to_tensor):
        road(encoded)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    for road in (decode_image, decode_to_tensor):
        with pytest.raises(ImageError, match="too many pixels"):
            road(encoded)


@pytest.mark.parametrize("encoded", [b"", b"text", b"\xff\xd8", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"])
def test_what_is_no_image_is_an_image_error(encoded):
    for road in (decode_image, decode_to_tensor):
        with pytest.raises(ImageError, match="not an image of a known format" if encoded else "the file is empty"):
            road(encoded)


def test_a_file_of_a_known_format_that_pillow_cannot_read_is_told_as_that():
    doubles = bytearray(encode(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF"))
    at = doubles.index(struct.pack("<HHI", 258, 3, 1)) + 8
    doubles[at : at + 2] = struct.pack("<H", 24)
    for encoded, reason in (
        (bytes(doubles), "a TIFF that Pillow cannot read: unknown pixel mode"),
        (b"\xff\xd8\xff\xd9", "a JPEG that Pillow cannot read: not identified by this driver"),
    ):
        for road in (decode_image, decode_to_tensor):
            with pytest.raises(ImageError, match=reason):
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
        assert jpeg.find_size(encoded) == Image.open(io.BytesIO(encoded)).size


def test_pillow_is_asked_about_every_other_file():
    common = make_image(0, (64, 48))
    frame = common.index(b"\xff\xc0")

    def change(at, new):
        return common[:at] + new + common[at + len(new) :]

    others = {
        "CMYK": make_image(0, mode="CMYK"),
        "PNG": make_image(0, form="PNG"),
        "two colours": change(frame + 9, b"\x02"),
        "no height": change(frame + 5, b"\0\0"),
        "a bomb": change(frame + 5, b"\xff\xff\xff\xff"),
        "a length that leads astray": change(common.index(b"\xff\xdb") + 2, b"\xff\xff"),
        "a side of more than 65,500": change(frame + 5, b"\xff\xff\0\1"),
        "too many scans": make_image(0, progressive=True) + b"\xff\xda" * MAX_SCANS,
    }
    for what, encoded in others.items():
        assert jpeg.find_size(encoded) is None, what
    for end in range(frame + 10):
        assert jpeg.find_size(common[:end]) is None


def test_what_the_fast_decoder_does_not_know_is_left_to_pillow():
    common = make_image(0, (64, 48))
    frame = common.index(b"\xff\xc0")
    bits = common[: frame + 4] + b"\x0c" + common[frame + 5 :]
    assert jpeg.find_size(bits)
    remarks = collect_remarks()
    assert jpeg.decode(bits) is None
    assert remarks == []
    for road in (decode_image, decode_to_tensor):
        with pytest.raises(ImageError, match="a JPEG that Pillow cannot read: cannot handle 12-bit layers"):
            road(bits)


def test_as_many_scans_as_a_bomb_has_are_refused_and_those_in_data_of_an_application_are_none():
    with_scans = {
        "progressive": make_image(0, progressive=True),
        "baseline": make_image(0),
        "odd": make_image(0, comment=b"x"),
    }
    for what, encoded in with_scans.items():
        end = encoded.rindex(b"\xff\xd9")
        scan = encoded[encoded.rindex(b"\xff\xda") : end]
        for road in (decode_image, decode_to_tensor):
            with pytest.raises(ImageError, match="a JPEG of more than 100 scans"):
                road(encoded[:end] + scan * 101 + encoded[end:])
            plain = make_image(0, comment=b"\xff\xda" * 999)
            assert np.array_equal(np.asarray(road(plain)), np.asarray(road(make_image(0)))), what
