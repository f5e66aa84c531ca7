import base64
import io

from PIL import Image
from support.tools import encode, make_image, make_tar

from embedders.report import thumbnails
from embedders.report.subset import SampleName
from embedders.report.thumbnails import SMALL_SIDE, Thumbnails, draw_thumbnail


def open_address(address):
    form, _, encoded = address.partition(",")
    assert form == "data:image/webp;base64"
    return Image.open(io.BytesIO(base64.b64decode(encoded)))


def read(tar, *names, side=100):
    pictures = Thumbnails({"a": str(tar)})
    pictures.read(dict.fromkeys(names, side))
    return pictures


def test_a_picture_is_small_keeps_its_shape_and_shows_the_image():
    picture = open_address(draw_thumbnail(make_image(size=(800, 200)), 160))
    assert picture.size == (160, 40)
    red = open_address(draw_thumbnail(encode(Image.new("RGBA", (30, 30), (255, 0, 0, 255))), 160))
    assert red.size == (30, 30)
    assert red.getpixel((15, 15))[0] > 240 > 20 > red.getpixel((15, 15))[1]


def test_pictures_are_found_by_key(tmp_path):
    members = [(f"{number}.png", encode(Image.new("RGB", (40, 40), (number * 60, 0, 0)))) for number in range(4)]
    tar = make_tar(tmp_path / "a.tar", members)
    pictures = read(tar, SampleName("a", "3"), SampleName("a", "1"), SampleName("a", "none"))
    assert abs(open_address(pictures.get(SampleName("a", "3"))).getpixel((9, 9))[0] - 180) < 9
    assert abs(open_address(pictures.get(SampleName("a", "1"))).getpixel((9, 9))[0] - 60) < 9
    assert pictures.get(SampleName("a", "none")) is None


def test_of_two_samples_of_one_key_the_one_at_the_offset_is_shown(tmp_path):
    black, white = (encode(Image.new("RGB", (40, 40), color)) for color in ("black", "white"))
    tar = make_tar(tmp_path / "a.tar", [("x.png", black), ("y.png", black), ("x.png", white)])
    embedded, failed = SampleName("a", "x"), SampleName("a", "x (again at byte 2048)", 2048)
    pictures = read(tar, embedded, failed)
    assert open_address(pictures.get(embedded)).getpixel((9, 9)) == (0, 0, 0)
    assert open_address(pictures.get(failed)).getpixel((9, 9)) == (255, 255, 255)


def test_a_failed_sample_shows_what_can_be_shown_of_it(tmp_path):
    tar = make_tar(
        tmp_path / "a.tar",
        [("two.jpg", b"no image"), ("two.png", make_image(form="PNG")), ("cut.jpg", make_image()[:300])],
    )
    offset = 512 * 2
    two, cut = (
        SampleName("a", "two", 0),
        SampleName("a", "cut", offset + 512 + 512 * -(-len(make_image(form="PNG")) // 512)),
    )
    pictures = read(tar, two, cut)
    assert open_address(pictures.get(two)).size == (40, 30)
    assert pictures.get(cut) is None


def test_a_shard_that_has_gone_costs_its_pictures_only(tmp_path):
    pictures = Thumbnails({"a": make_tar(tmp_path / "a.tar", {"0.jpg": make_image()}), "b": "gone.tar"})
    pictures.read({SampleName("b", "0"): 50, SampleName("a", "0"): 50})
    assert pictures.lost_shards == ["b"]
    assert pictures.get(SampleName("a", "0"))


def test_small_pictures_are_left_out_when_all_take_too_much(tmp_path, monkeypatch):
    monkeypatch.setattr(thumbnails, "MAX_TOTAL_BYTES", 1500)
    tar = make_tar(tmp_path / "a.tar", {f"{number}.jpg": make_image(number) for number in range(9)})
    small = [SampleName("a", str(number)) for number in range(8)]
    pictures = Thumbnails({"a": tar})
    pictures.read(dict.fromkeys(small, SMALL_SIDE) | {SampleName("a", "8"): 160})
    assert pictures.is_full
    assert 0 < sum(pictures.get(name) is not None for name in small) < 8
    assert pictures.get(SampleName("a", "8"))


def test_of_several_images_the_one_of_the_run_is_shown(tmp_path):
    red, blue = (encode(Image.new("RGB", (20, 20), colour)) for colour in ("red", "blue"))
    tar = make_tar(tmp_path / "a.tar", {"0.left.png": red, "0.right.png": blue})
    wanted = SampleName("a", "0")
    pictures = Thumbnails({"a": tar}, "right.png")
    pictures.read({wanted: 20})
    assert open_address(pictures.get(wanted)).convert("RGB").getpixel((9, 9))[2] > 200
