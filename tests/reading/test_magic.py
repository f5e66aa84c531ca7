import gzip
import io
import pickle
import tarfile
import zipfile

import pytest
import torch
from safetensors.torch import save_file
from support.tools import make_image

from embedders.reading.magic import describe_start


def zip_of(content: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a", content)
    return buffer.getvalue()


def tar_of(form: int) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
        archive.addfile(tarfile.TarInfo("a"))
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"\0" * 5000, "begins with zeros"),
        (zip_of(b"x"), "begins as a zip archive"),
        (b"<Error><Code>AccessDenied", "begins as an XML document"),
        (gzip.compress(b"x", mtime=0), "begins as gzip data"),
        (tar_of(tarfile.USTAR_FORMAT), "begins as a tar"),
        (tar_of(tarfile.GNU_FORMAT), "begins as a tar"),
        (pickle.dumps({"a": 1}), "begins as a pickle"),
        (make_image(), "begins as a JPEG"),
        (b"\n<!DOCTYPE html>\n<html><body>404", "begins as an HTML page"),
        (b"\xef\xbb\xbf<HTML>", "begins as an HTML page"),
        (b'<?xml version="1.0"?><Error><Code>NoSuchKey', "begins as an XML document"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
            "begins as a pointer of Git LFS instead of the file (git lfs pull fetches it)",
        ),
        (b'{"error":\n "Not found"}', 'begins with the text \'{"error": "Not found"}\''),
        (b"\x01\x02\x03 \xff\x1b[2J", "begins with the bytes 01 02 03 20 ff 1b 5b 32"),
        (b"\x1b[2J", "begins with the bytes 1b 5b 32 4a"),
    ],
)
def test_what_a_file_begins_with_is_told(tmp_path, content, said):
    (tmp_path / "f").write_bytes(content)
    assert describe_start(tmp_path / "f") == said


def test_checkpoints_are_told_as_what_they_are(tmp_path):
    torch.save({"a": torch.ones(2)}, tmp_path / "w.pt")
    save_file({"a": torch.ones(2)}, tmp_path / "w.safetensors")
    assert describe_start(tmp_path / "w.pt") == "begins as a zip archive"
    assert describe_start(tmp_path / "w.safetensors") == "begins as a safetensors file"
