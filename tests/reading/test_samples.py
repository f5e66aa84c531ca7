import gzip
import io
import json
import os
import tarfile

import pytest
import webdataset
from support.tools import make_image, make_tar

from embedders.errors import ConfigError, ShardError
from embedders.output.failed import FailureKind, SampleError
from embedders.reading.samples import Sample, check_exists, check_suffix, read_samples, select_image

LONG = "a" * 120 + "/" + "b" * 150
WHOLE = {
    "plain": {"0001.jpg": b"one", "0001.json": b"{}", "0002.jpg": b"two", "0002.txt": b"text"},
    "folders": {"a/1.jpg": b"x", "b/1.jpg": b"y", "a/b/c/1.jpg": b"z"},
    "dotted folders": {"v1.0/1.jpg": b"x", "v1.0/1.txt": b"y", "v1.1/1.jpg": b"z"},
    "dots in names": {"img_1.2.jpg": b"x", "img_1.3.jpg": b"y", "a.mask.png": b"m", "a.jpg": b"n"},
    "upper case": {"A.JPG": b"x", "A.Json": b"{}", "a.JPG": b"y"},
    "dot slash": {"./1.jpg": b"x", "./1.json": b"{}", "./d/2.jpg": b"y"},
    "unicode": {"cafe\u0301.jpg": b"x", "日本/写真.jpg": b"y", "new\nline.jpg": b"z", "space in.jpg": b"w"},
    "long names": {LONG + ".jpg": b"x", LONG + ".json": b"{}", "é" * 120 + ".jpg": b"y"},
    "meta": {"__index__": b"m", "__meta__/x.jpg": b"m", "1.jpg": b"x"},
    "odd": {
        "1.": b"empty suffix",
        "2.jpg": b"",
        "3..jpg": b"two dots",
        "4.jpg": b"\0" * 512,
        "5.jpg": os.urandom(3000),
    },
    "empty": {},
}
FORMATS = {"pax": tarfile.PAX_FORMAT, "gnu": tarfile.GNU_FORMAT}


def read_with_webdataset(path):
    samples = webdataset.tariterators.tarfile_samples([{"url": str(path)}])
    return [{key: value for key, value in sample.items() if key != "__url__"} for sample in samples]


def read_with_ours(path):
    return [{"__key__": sample.key, **sample.members} for sample in read_samples(str(path))]


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("content", WHOLE)
@pytest.mark.parametrize("suffix", ["tar", "tar.gz"])
def test_samples_equal_webdatasets_key_for_key_and_byte_for_byte(tmp_path, content, form, suffix):
    mode = "w:gz" if suffix == "tar.gz" else "w"
    path = make_tar(tmp_path / f"s.{suffix}", WHOLE[content], mode, format=FORMATS[form])
    ours, theirs = read_with_ours(path), read_with_webdataset(path)
    assert ours == theirs
    assert [list(sample) for sample in ours] == [list(sample) for sample in theirs]
    assert all(sample.problem is None for sample in read_samples(path))


def test_a_tar_made_by_gnu_tar_reads_as_webdatasets(tmp_path):
    for name in ("d/1.jpg", "d/1.json", f"{'n' * 150}.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(os.urandom(700))
    os.system(f"cd {tmp_path} && tar -cf s.tar --sort=name ./d ./n*")
    samples = read_with_ours(tmp_path / "s.tar")
    assert samples == read_with_webdataset(tmp_path / "s.tar")
    assert [sample["__key__"] for sample in samples] == ["./d/1", f"./{'n' * 150}"]


def test_a_gzipped_shard_is_known_by_its_content(tmp_path):
    path = make_tar(tmp_path / "named.tar", {"1.jpg": b"x"}, "w:gz")
    assert read_with_ours(path) == [{"__key__": "1", "jpg": b"x"}]


# Where we differ on purpose: webdataset drops these without a word, or gives up.


def read_problems(path):
    return {sample.key: sample.problem and sample.problem[0] for sample in read_samples(str(path))}


def test_a_file_without_suffix_is_a_failed_sample_of_its_own(tmp_path):
    path = make_tar(tmp_path / "s.tar", {"1.jpg": b"x", "LICENSE": b"y", "1.json": b"{}"})
    assert read_problems(path) == {"1": None, "LICENSE": "bad_name"}
    assert [sample for sample in read_with_ours(path) if len(sample) > 1] == read_with_webdataset(path)


def test_a_file_without_suffix_takes_no_key_from_a_sample(tmp_path):
    path = make_tar(tmp_path / "s.tar", {"cover": b"y", "cover.jpg": b"x"})
    assert [sample.problem and sample.problem[0] for sample in read_samples(path)] == ["bad_name", None]


def test_hidden_files_are_passed_over_and_folders_are_no_samples(tmp_path):
    # macOS packs a `._` file beside each; webdataset makes a sample with the key "d/" of those in a folder
    path = make_tar(tmp_path / "s.tar", {"._1.jpg": b"h", "d/._1.jpg": b"h", "d/1.jpg": b"x", ".DS_Store": b"h"})
    with tarfile.open(path, "a") as archive:
        folder = tarfile.TarInfo("d.jpg")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
    assert read_with_ours(path) == [{"__key__": "d/1", "jpg": b"x"}]
    assert "d/" in [sample["__key__"] for sample in read_with_webdataset(path)]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_fail_by_name_and_are_never_followed(tmp_path, kind):
    with tarfile.open(tmp_path / "s.tar", "w") as archive:
        info = tarfile.TarInfo("1.jpg")
        info.type, info.linkname = kind, "/etc/passwd"
        archive.addfile(info)
        archive.addfile(tarfile.TarInfo("2.jpg"))
    assert read_problems(tmp_path / "s.tar") == {"1": "not_a_file", "2": None}


def test_a_repeated_member_fails_its_sample(tmp_path):
    path = make_tar(tmp_path / "s.tar", [("1.jpg", b"x"), ("1.JPG", b"y"), ("2.jpg", b"z")])
    assert read_problems(path) == {"1": "repeated_member", "2": None}
    with pytest.raises(ValueError, match="duplicate"):
        read_with_webdataset(path)


def test_a_key_that_comes_back_later_fails_the_second_time(tmp_path):
    path = make_tar(tmp_path / "s.tar", [("1.jpg", b"x"), ("2.jpg", b"y"), ("1.json", b"{}")])
    problems = [(sample.key, sample.problem and sample.problem[0]) for sample in read_samples(path)]
    assert problems == [("1", None), ("2", None), ("1", "repeated_key")]


def test_a_name_that_is_not_utf8_or_holds_nul_fails_by_an_escaped_name(tmp_path):
    path = make_tar(tmp_path / "s.tar", {"ok.jpg": b"x", "xxx.jpg": b"y"}, format=tarfile.USTAR_FORMAT)
    content = bytearray((tmp_path / "s.tar").read_bytes())
    at = content.index(b"xxx.jpg")
    content[at : at + 3] = b"x\xff\xfe"
    fix_checksum(content, at)
    (tmp_path / "s.tar").write_bytes(content)
    assert read_problems(path) == {"ok": None, "x\\udcff\\udcfe.jpg": "bad_name"}
    path = make_tar(tmp_path / "pax.tar", [])
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        info = tarfile.TarInfo("z.jpg")
        info.pax_headers = {"path": "a\0b.jpg"}
        archive.addfile(info)
    assert read_problems(path) == {"a\\0b.jpg": "bad_name"}


def test_a_member_that_claims_to_be_huge_fails_without_being_read(tmp_path, monkeypatch):
    monkeypatch.setattr("embedders.reading.tar.MAX_MEMBER_BYTES", 100)
    path = make_tar(tmp_path / "s.tar", {"1.jpg": b"x" * 101, "2.jpg": b"y" * 100})
    assert read_problems(path) == {"1": "too_large", "2": None}


def fix_checksum(content: bytearray, header: int) -> None:
    block = content[header : header + 512]
    total = 256 + sum(block[:148]) + sum(block[156:])
    content[header + 148 : header + 156] = b"%06o\0 " % total


# Damage: an error that names the place, never a silent loss.


def assert_damaged(path, *words):
    with pytest.raises(ShardError) as caught:
        list(read_samples(str(path)))
    message = str(caught.value)
    assert "\n" not in message
    for word in (str(path), *words):
        assert word in message, message


@pytest.fixture
def small_tar(tmp_path):
    return make_tar(tmp_path / "s.tar", {f"{n}.jpg": bytes([n + 1]) * (300 + 400 * n) for n in range(4)})


def test_a_tar_cut_at_any_block_is_never_a_silent_loss(tmp_path, small_tar):
    content = (tmp_path / "s.tar").read_bytes()
    whole = read_with_ours(small_tar)
    end = len(content.rstrip(b"\0")) + 511 & ~511  # where the zero blocks of the end start
    silent = 0
    for cut in range(0, len(content) + 1, 512):
        (tmp_path / "cut.tar").write_bytes(content[:cut])
        try:
            samples = read_with_ours(tmp_path / "cut.tar")
        except ShardError:
            assert cut <= end
            continue
        assert samples == whole and cut > end, f"cut at {cut} of {len(content)}: {len(samples)} samples, no error"
        silent += 1
    assert silent  # the cuts within the end's own zeros


@pytest.mark.parametrize("cut", [1, 100, 511, 513, 600, 811, 812, 1023, 1025, 3000])
def test_a_cut_inside_a_header_or_inside_data_is_an_error(tmp_path, small_tar, cut):
    content = (tmp_path / "s.tar").read_bytes()
    (tmp_path / "cut.tar").write_bytes(content[:cut])
    assert_damaged(tmp_path / "cut.tar")


def test_the_error_names_the_member_and_the_offset(tmp_path, small_tar):
    content = (tmp_path / "s.tar").read_bytes()
    (tmp_path / "cut.tar").write_bytes(content[: 1024 + 512 + 100])  # in the data of the second
    assert_damaged(tmp_path / "cut.tar", "1.jpg", "byte 1024", "cut short")
    (tmp_path / "cut.tar").write_bytes(content[:1024])
    assert_damaged(tmp_path / "cut.tar", "0.jpg", "end-of-archive")


@pytest.mark.parametrize("member", range(4))
def test_an_overwritten_header_is_an_error(tmp_path, small_tar, member):
    content = bytearray((tmp_path / "s.tar").read_bytes())
    header = content.index(b"%d.jpg" % member)
    for damage in (b"\xff" * 512, b"\0" * 512, b"garbage " * 64):
        damaged = content.copy()
        damaged[header : header + 512] = damage
        (tmp_path / "bad.tar").write_bytes(damaged)
        assert_damaged(tmp_path / "bad.tar")


def test_webdataset_loses_silently_what_we_report(tmp_path, small_tar):
    # Should this ever fail, webdataset has learned to see damage, and the strict reader may not be needed.
    content = bytearray((tmp_path / "s.tar").read_bytes())
    header = content.index(b"2.jpg")
    content[header : header + 512] = b"\xff" * 512
    (tmp_path / "bad.tar").write_bytes(content)
    assert len(read_with_webdataset(tmp_path / "bad.tar")) == 2
    assert_damaged(tmp_path / "bad.tar", "1.jpg")


def test_trailing_garbage_and_a_second_tar_behind_the_end_are_errors(tmp_path, small_tar):
    content = (tmp_path / "s.tar").read_bytes()
    for extra in (b"x", content, b"\0" * 70000 + b"x"):
        (tmp_path / "bad.tar").write_bytes(content + extra)
        assert_damaged(tmp_path / "bad.tar", "after the end-of-archive")


def test_gzip_damage_is_an_error_wherever_it_is(tmp_path):
    path = make_tar(tmp_path / "s.tar.gz", {"1.jpg": os.urandom(2000), "2.jpg": os.urandom(2000)}, "w:gz")
    content = (tmp_path / "s.tar.gz").read_bytes()
    assert len(read_with_ours(path)) == 2
    for place in (-8, -4, len(content) // 2):  # the checksum, the length, the data
        damaged = bytearray(content)
        damaged[place] ^= 0x55
        (tmp_path / "bad.tar.gz").write_bytes(damaged)
        assert_damaged(tmp_path / "bad.tar.gz")
    for cut in (5, 100, len(content) // 2, len(content) - 9, len(content) - 1):
        (tmp_path / "bad.tar.gz").write_bytes(content[:cut])
        assert_damaged(tmp_path / "bad.tar.gz")
    (tmp_path / "bad.tar.gz").write_bytes(content + b"garbage")
    assert_damaged(tmp_path / "bad.tar.gz")


@pytest.mark.parametrize("content", [b"", b"not a tar", b"P" * 5000, gzip.compress(b"no tar in here" * 100, mtime=0)])
def test_what_is_no_tar_is_an_error(tmp_path, content):
    (tmp_path / "s.tar").write_bytes(content)
    assert_damaged(tmp_path / "s.tar")


def test_a_shard_that_is_missing_or_cannot_be_read_is_an_error(tmp_path):
    for path in (tmp_path / "none.tar", tmp_path, tmp_path / ("n" * 300)):
        with pytest.raises(ShardError, match="no such shard"):
            check_exists(str(path))
        assert_damaged(path)
    assert_damaged("/proc/self/mem")  # a file that opens and then answers with an I/O error


def test_a_reader_left_half_way_closes_its_files(tmp_path):
    def count_open(path):
        # By path, not in all: another test's files may be collected meanwhile.
        return sum(os.path.realpath(f"/proc/self/fd/{number}") == path for number in os.listdir("/proc/self/fd"))

    for suffix, mode in (("tar", "w"), ("tar.gz", "w:gz")):
        path = make_tar(tmp_path / f"s.{suffix}", WHOLE["plain"], mode)
        reader = read_samples(path)
        next(reader)
        assert count_open(path) == 1
        reader.close()
        assert count_open(path) == 0


def test_only_what_is_wanted_is_read(tmp_path):
    path = make_tar(tmp_path / "s.tar", WHOLE["plain"])
    members = [sample.members for sample in read_samples(path, wants=lambda name: name.endswith(".json"))]
    assert members == [{"jpg": None, "json": b"{}"}, {"jpg": None, "txt": None}]


# What a sample holds.


def sample_of(**members):
    return Sample("k", "k.jpg", 0, {name.replace("__", "."): content for name, content in members.items()})


def test_the_image_is_the_one_with_a_plain_suffix():
    assert select_image(sample_of(jpg=b"x", json=b"{}", mask__png=b"m")) == ("jpg", b"x")
    assert select_image(sample_of(thumb__jpg=b"x", txt=b"t")) == ("thumb.jpg", b"x")
    assert select_image(sample_of(webp=b"x", jpgx=b"y")) == ("webp", b"x")


def find_reason(**members):
    with pytest.raises(SampleError) as caught:
        select_image(sample_of(**members))
    assert caught.value.kind == FailureKind.NO_SINGLE_IMAGE
    return str(caught.value)


def test_none_or_several_images_are_told_with_the_reason():
    assert find_reason(json=b"{}", txt=b"t") == "no image among its members (json, txt)"
    assert find_reason(jpg=b"x", png=b"y") == "2 images under one key (jpg, png); image_suffix chooses one"
    reason = find_reason(**{"2__jpg": b"x", "3__jpg": b"y"})
    assert "dots in names merge samples" in reason


def test_image_suffix_chooses_one_image_of_several():
    several = sample_of(seg__png=b"s", image__jpg=b"i", jpg=b"x", json=b"{}", scan=b"y")
    for suffix, content in {"seg.png": b"s", "image.jpg": b"i", "jpg": b"x", "scan": b"y"}.items():
        assert select_image(several, suffix) == (suffix, content)
    with pytest.raises(SampleError, match=r"no \.png \(image_suffix\) .*\(seg.png, image.jpg, jpg, json, scan\)"):
        select_image(several, "png")
    assert check_suffix("Left.PNG") == "left.png"
    with pytest.raises(ConfigError, match=r"image_suffix: '\.jpg'; expected a suffix without the dot"):
        check_suffix(".jpg")


def test_a_whole_pipeline_of_webdataset_sees_the_same_images(tmp_path):
    members = {f"{n}.{suffix}": content for n in range(3) for suffix, content in
               (("jpg", make_image(n)), ("json", json.dumps({"n": n}).encode()))}  # fmt: skip
    path = make_tar(tmp_path / "s.tar", members)
    theirs = list(webdataset.WebDataset(path, shardshuffle=False).to_tuple("__key__", "jpg", "json"))
    ours = [(sample.key, sample.members["jpg"], sample.members["json"]) for sample in read_samples(path)]
    assert ours == [tuple(row) for row in theirs]
    assert io.BytesIO(ours[0][1]).read(2) == b"\xff\xd8"
