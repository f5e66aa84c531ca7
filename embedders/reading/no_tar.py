"""What a file is that should have been a tar and is none, by its first bytes; and what to do about it."""

# First bytes -> what such a file is, and what to do.
_KINDS = {
    b"PK\x03\x04": ("a zip archive", "pack what it holds as a tar"),
    b"PK\x05\x06": ("an empty zip archive", "pack the images as a tar"),
    b"7z\xbc\xaf\x27\x1c": ("a 7-Zip archive", "pack what it holds as a tar"),
    b"Rar!": ("a RAR archive", "pack what it holds as a tar"),
    b"BZh": ("bzip2", "decompress it: bunzip2"),
    b"\xfd7zXZ\0": ("xz", "decompress it: unxz"),
    b"\x28\xb5\x2f\xfd": ("zstd", "decompress it: unzstd"),
    b"\x04\x22\x4d\x18": ("lz4", "decompress it: unlz4"),
    b"\x1f\x9d": ("compress (.Z)", "decompress it: uncompress"),
    b"version https://git-lfs": ("a pointer of Git LFS, without the file itself", "fetch the file: git lfs pull"),
    b"<!doctype html": ("an HTML page, as of an error or a login", "fetch the file itself"),
    b"<html": ("an HTML page, as of an error or a login", "fetch the file itself"),
    b"<?xml": ("an XML text, as a storage service's error", "fetch the file itself"),
    b"<error>": ("an XML text, as a storage service's error", "fetch the file itself"),
    b"{": ("JSON text, as a server's error", "fetch the file itself"),
    b"PAR1": ("a Parquet file", "name the tar shards"),
    b"ARROW1": ("an Arrow file", "name the tar shards"),
    b"\x89HDF": ("an HDF5 file", "pack the images as a tar"),
    b"\xff\xd8\xff": ("a JPEG", "pack the images as a tar"),
    b"\x89PNG": ("a PNG", "pack the images as a tar"),
}
_OTHERS = "copy or make it again"


def describe_start(content: bytes) -> tuple[str, str]:
    """Return in words what a file is that begins so, and what to do about it; `content` is its first bytes."""
    if not content:
        return "the file is empty", _OTHERS
    if not content.strip(b"\0"):
        return "the file begins with zeros", _OTHERS
    start = content.removeprefix(b"\xef\xbb\xbf").lstrip()
    for first, (kind, fix) in _KINDS.items():
        if content.startswith(first) or (first.isascii() and start.lower().startswith(first)):
            return f"the file is {kind} ({content[:16]!r})", fix
    return f"the file begins with {content[:16]!r}", _OTHERS
