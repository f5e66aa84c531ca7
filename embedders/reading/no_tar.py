"""What a file is that should have been a tar and is none, by its first bytes; and what to do about it."""

from embedders.reading.magic import describe_content

_FIXES = {
    (b"PK", b"7z\xbc\xaf", b"Rar!"): "pack what it holds as a tar",
    (b"BZh",): "decompress it: bunzip2",
    (b"\xfd7zXZ\0",): "decompress it: unxz",
    (b"\x28\xb5\x2f\xfd",): "decompress it: unzstd",
    (b"\x04\x22\x4d\x18",): "decompress it: unlz4",
    (b"\x1f\x9d",): "decompress it: uncompress",
    (b"version https://git-lfs",): "fetch the file: git lfs pull",
    (b"<", b"{"): "fetch the file itself",
    (b"PAR1", b"ARROW1"): "name the tar shards",
    (b"\xff\xd8\xff", b"\x89PNG", b"\x89HDF"): "pack the images as a tar",
}


def describe_no_tar(content: bytes) -> tuple[str, str]:
    """Return in words what a file is that begins so, and what to do about it; `content` is its first bytes."""
    text = content.removeprefix(b"\xef\xbb\xbf").lstrip()
    fixes = [fix for starts, fix in _FIXES.items() if content.startswith(starts) or text.startswith(starts)]
    return f"the file {describe_content(content)}", fixes[0] if fixes else "copy or make it again"
