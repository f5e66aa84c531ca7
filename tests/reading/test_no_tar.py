"""A file that is no tar: what it is stands in the error, and nobody is told to accept it as a damaged tar."""

import bz2
import gzip
import io
import lzma
import zipfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.tools import MEAN_COLOR, make_image, make_tar, run_cli

from embedders.errors import ShardError
from embedders.reading.samples import read_samples


def make_zip() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("1.jpg", make_image())
    return buffer.getvalue()


def make_parquet() -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table({"url": ["a"]}), buffer)
    return buffer.getvalue()


FILES = {
    "a zip archive": make_zip(),
    "bzip2 data": bz2.compress(b"tar" * 500),
    "xz data": lzma.compress(b"tar" * 500),
    "zstd data": b"\x28\xb5\x2f\xfd" + bytes(range(200)),
    "an HTML page": b"\n<!DOCTYPE html><html>404 Not Found</html>",
    "a pointer of Git LFS": b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
    "an XML document": b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>',
    "a Parquet file": make_parquet(),
    "a JPEG": make_image(),
    "is empty": b"",
    "the text": b'{"message": "rate limit exceeded"}',
    "the bytes": b"\x01\x02\x03" * 300,
    "gzip data": gzip.compress(b"<html>" * 100),
    "begins with zeros": b"\0" * 100_000,
}


@pytest.mark.parametrize("what", FILES)
def test_what_the_file_is_stands_in_the_error_without_advice_to_accept_it(tmp_path, what):
    (tmp_path / "s.tar").write_bytes(FILES[what])
    with pytest.raises(ShardError) as caught:
        list(read_samples(str(tmp_path / "s.tar")))
    message = str(caught.value)
    assert f"{str(tmp_path / 's.tar')!r}: damaged at byte 0: " in message
    assert what in message and "\n" not in message
    assert "accept_damaged_shards" not in message
    place = next(read_samples(str(tmp_path / "s.tar"), accept_damage=True))
    assert place.key == "(damage at byte 0)" and what in place.problem[1]


def test_damage_further_in_may_be_accepted(tmp_path):
    path = make_tar(tmp_path / "s.tar", {"1.jpg": b"x", "2.jpg": b"y"})
    (tmp_path / "s.tar").write_bytes((tmp_path / "s.tar").read_bytes()[:1500])
    with pytest.raises(ShardError, match="or set accept_damaged_shards: true"):
        list(read_samples(path))


def test_check_says_what_the_file_is(tmp_path):
    (tmp_path / "s.tar").write_bytes(FILES["a zip archive"])
    job = run_cli("check", MEAN_COLOR, "--shard", tmp_path / "s.tar", "--device", "cpu")
    assert job.returncode == 1
    lines = [line for line in job.stdout.splitlines() if "the file begins as a zip archive" in line]
    assert lines
    assert "accept_damaged_shards" not in job.stdout, job.stdout
