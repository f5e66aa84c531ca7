"""Description of the first bytes of a file, for messages about files that are not what their names say."""

import string
from pathlib import Path

_STARTS = {
    b"PK\x03\x04": "a zip archive",
    b"PK\x05\x06": "an empty zip archive",
    b"\x1f\x8b": "gzip data",
    b"BZh": "bzip2 data",
    b"\xfd7zXZ\0": "xz data",
    b"\x28\xb5\x2f\xfd": "zstd data",
    b"\x04\x22\x4d\x18": "lz4 data",
    b"\x1f\x9d": "data of compress (.Z)",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"Rar!\x1a\x07": "a RAR archive",
    b"version https://git-lfs": "a pointer of Git LFS instead of the file (git lfs pull fetches it)",
    b"PAR1": "a Parquet file",
    b"ARROW1": "an Arrow file",
    b"\x89HDF\r\n": "an HDF5 file",
    b"\x93NUMPY": "a NumPy array",
    b"GGUF": "a GGUF file",
    b"%PDF": "a PDF",
    b"\xff\xd8\xff": "a JPEG",
    b"\x89PNG\r\n": "a PNG",
    b"\x7fELF": "a program",
    **{bytes([0x80, protocol]): "a pickle" for protocol in range(2, 6)},
}
_MARKUP = {
    b"<!doctype html": "an HTML page",
    b"<html": "an HTML page",
    b"<?xml": "an XML document",
    b"<error": "an XML document",
}
_TEXT = set(string.printable.encode())
_SHOWN = 40


def describe_start(path: str | Path) -> str:
    """Return the second half of a sentence about how a file begins: "begins as a zip archive".

    Raises:
        OSError: The file cannot be read.
    """
    with Path(path).open("rb") as file:
        start = file.read(512)
    if not start:
        return "is empty"
    if not start.strip(b"\0"):
        return "begins with zeros"
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip()
    known = [what for prefix, what in _STARTS.items() if start.startswith(prefix)]
    known += [what for prefix, what in _MARKUP.items() if text.lower().startswith(prefix)]
    if start[257:262] == b"ustar":
        known.append("a tar")
    elif start[8:9] == b"{" and not any(start[5:8]):  # the length of the JSON header that follows
        known.append("a safetensors file")
    if known:
        return f"begins as {known[0]}"
    if _TEXT.issuperset(text[:_SHOWN]):
        return f"begins with the text {' '.join(text[:_SHOWN].decode().split())!r}"
    return f"begins with the bytes {start[:8].hex(' ')}"
