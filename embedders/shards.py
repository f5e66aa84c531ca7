"""Tar shard -> samples, by webdataset's rules of keys and grouping, with the integrity that webdataset lacks.

On a whole tar the samples equal webdataset's, key for key and byte for byte (a test says so). On a damaged one
webdataset ends early without a word; here every kind of damage is an error with the member and the offset.
Owns the tar; not the images in it.
"""

import gzip
import json
import logging
import re
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from embedders.errors import ShardError

log = logging.getLogger(__name__)

# webdataset's own rule: the key ends at the first dot of the base name, and keeps the folders.
_KEY = re.compile(r"^((?:.*/|)[^.]+)[.]([^/]*)$", re.DOTALL)
# webdataset passes over its own `__name__` members.
_META = re.compile(r"__[^/]*__($|/)")
IMAGE_SUFFIXES = frozenset(
    [
        "jpg",
        "jpeg",
        "jpe",
        "jfif",
        "png",
        "webp",
        "gif",
        "bmp",
        "tif",
        "tiff",
        "jp2",
        "avif",
        "ppm",
        "pgm",
        "pnm",
    ]
)
SHARD_SUFFIXES = (".tar", ".tar.gz", ".tgz")
# No image is as large; a header that says so is damaged or hostile, and would be read into memory.
MAX_MEMBER_BYTES = 1 << 30


@dataclass(slots=True)
class Sample:
    """The adjacent members of one key.

    Attributes:
        key: The WebDataset key.
        members: Content by suffix (lower case, without the leading dot), in tar order.
        name: Name of the first member, for messages.
        offset: Position of the first member's header in the uncompressed tar, in bytes.
        problem: Kind and message of what makes this sample unusable, if anything does.
    """

    key: str
    name: str
    offset: int
    members: dict[str, bytes] = field(default_factory=dict)
    problem: tuple[str, str] | None = None


class _Damage(Exception):
    """The tar cannot be read on; not a tarfile.HeaderError, which tarfile would swallow."""


class _StrictTarInfo(tarfile.TarInfo):
    """Makes tarfile raise where, by itself, it takes a damaged header for the end of the archive."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> tarfile.TarInfo:
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # a block of zeros: the end, as it should be
            raise
        except tarfile.EmptyHeaderError:
            raise _Damage("the end-of-archive blocks are missing: the tar was cut") from None
        except tarfile.HeaderError as error:
            raise _Damage(f"bad member header ({error})") from None


def check_exists(tar_path: str) -> None:
    """See that a shard is there.

    Raises:
        ShardError: It is not, or is no file.
    """
    if not Path(tar_path).is_file():
        raise ShardError(f"{tar_path!r}: no such shard; expected a .tar file; check the path")


def read_samples(tar_path: str, wants: Callable[[str], bool] = lambda name: True) -> Iterator[Sample]:
    """Read the samples of a shard, in tar order.

    A sample that cannot be used comes with its `problem` set. So does every member that webdataset would drop
    without a word, as a sample of its own; except folders, hidden files and webdataset's own `__name__` members.

    Args:
        tar_path: Path of a `.tar`, or of one compressed by gzip.
        wants: Says by a member's name whether its content is to be read; a content not read is `None`.

    Raises:
        ShardError: The file is missing, is no tar, or is damaged; names the member and the offset.
    """
    seen_keys: set[int] = set()
    for sample in _group_members(_read_members(tar_path, wants)):
        # Hashes, not keys: a shard of millions is to cost little memory. A false alarm takes 2^64 luck.
        fingerprint = hash(sample.key)
        if sample.problem is None and fingerprint in seen_keys:
            sample.problem = (
                "repeated_key",
                "this key came earlier in the tar; the members of a sample must be adjacent, and keys unique",
            )
        if sample.members:  # one without is a file whose name gives no key
            seen_keys.add(fingerprint)
        yield sample


def select_image(sample: Sample) -> tuple[str, bytes] | tuple[None, str]:
    """Find the one image of a sample.

    A plain suffix (`jpg`) goes before one with dots (`mask.png`), as in webdataset.

    Returns:
        The suffix and the encoded image; or `None` and the reason why there is not exactly one.
    """
    images = [suffix for suffix in sample.members if suffix.rpartition(".")[2] in IMAGE_SUFFIXES]
    plain = [suffix for suffix in images if "." not in suffix]
    candidates = plain or images
    if len(candidates) == 1:
        return candidates[0], sample.members[candidates[0]]
    if not candidates:
        return None, f"no image among its members ({', '.join(sample.members)})"
    dots = "" if plain else "; a key ends at the first dot of the name, so dots in names merge samples"
    return None, f"{len(candidates)} images under one key ({', '.join(candidates)}){dots}"


def read_metadata(sample: Sample) -> dict:
    """Gather what a sample says of itself: the fields of its `.json`, `caption` from its `.txt`, `__key__`.

    A member that was not read counts as absent.

    Raises:
        ValueError: The `.json` or `.txt` cannot be read.
    """
    metadata = {}
    if sample.members.get("json") is not None:
        try:
            metadata = json.loads(sample.members["json"])
        except RecursionError:
            raise ValueError("its .json is nested too deeply") from None
        except ValueError as error:
            raise ValueError(f"its .json cannot be read: {error}") from error
        if not isinstance(metadata, dict):
            raise ValueError(f"its .json holds a {type(metadata).__name__}, expected an object")
    if sample.members.get("txt") is not None:
        try:
            metadata["caption"] = sample.members["txt"].decode("utf-8").strip()
        except UnicodeDecodeError as error:
            raise ValueError(f"its .txt is not UTF-8: {error}") from error
    metadata["__key__"] = sample.key
    return metadata


@dataclass(slots=True)
class _Member:
    name: str
    offset: int
    content: bytes | None
    problem: tuple[str, str] | None = None


def _open_shard(tar_path: str) -> BinaryIO:
    # By content, not by name: files are renamed more often than they are recompressed.
    with Path(tar_path).open("rb") as stream:
        is_gzip = stream.read(2) == b"\x1f\x8b"
    return gzip.open(tar_path) if is_gzip else Path(tar_path).open("rb")


def _read_members(tar_path: str, wants: Callable[[str], bool]) -> Iterator[_Member]:
    """Yield the members that could belong to a sample; raise ShardError at the first damage."""
    name, offset, passed_over = None, 0, 0
    try:
        with (
            _open_shard(tar_path) as stream,
            tarfile.open(fileobj=stream, mode="r:", tarinfo=_StrictTarInfo, errors="surrogateescape") as archive,
        ):
            while (info := archive.next()) is not None:
                archive.members.clear()  # else tarfile keeps the headers of the whole shard
                name, offset = info.name, info.offset
                if info.isdir():
                    continue
                if _META.match(name) or name.rpartition("/")[2].startswith("."):
                    passed_over += 1
                    continue
                yield _read_member(archive, info, wants)
            name, offset = None, archive.offset
            _check_end(stream)
            if passed_over:
                log.info("%s: passed over %d hidden or __meta__ files", tar_path, passed_over)
    except (_Damage, tarfile.TarError, EOFError, gzip.BadGzipFile, zlib.error) as error:
        after = f" in or after member {name!r}" if name else ""
        raise ShardError(
            f"{tar_path!r}: damaged{after}, from byte {offset}: {error}; expected a whole tar; copy or make it again"
        ) from error
    except OSError as error:  # after BadGzipFile, which is one too
        raise ShardError(f"{tar_path!r}: cannot be read ({error.strerror}); expected a .tar file") from error


def _read_member(archive: tarfile.TarFile, info: tarfile.TarInfo, wants: Callable[[str], bool]) -> _Member:
    member = _Member(info.name, info.offset, None)
    if not info.isreg() or info.issparse():
        member.problem = ("not_a_file", "a link, device or sparse file; expected a regular file")
    elif info.size > MAX_MEMBER_BYTES:
        member.problem = ("too_large", f"{info.size} bytes; expected at most {MAX_MEMBER_BYTES}")
    elif wants(info.name):
        member.content = archive.extractfile(info).read()  # raises where the data are cut short
    return member


def _check_end(stream: BinaryIO) -> None:
    """Read what follows the first end-of-archive block: zeros, and for gzip the checksum behind them."""
    while block := stream.read(1 << 16):
        if block.strip(b"\0"):
            raise _Damage("data after the end-of-archive blocks (two tars in one file?)")


def _group_members(members: Iterator[_Member]) -> Iterator[Sample]:
    sample = None
    for member in members:
        match = _KEY.match(member.name)
        if match is None or not _is_text(member.name):
            # No sample can take it: it becomes a sample of its own, so that it is counted and named.
            name = member.name.encode("utf-8", "backslashreplace").decode().replace("\0", "\\0")
            problem = member.problem or ("bad_name", "expected a name in UTF-8 with a suffix, as 0001.jpg")
            yield Sample(name, name, member.offset, problem=problem)
            continue
        key, suffix = match.group(1), match.group(2).lower()
        if sample is None or key != sample.key:
            if sample is not None:
                yield sample
            sample = Sample(key, member.name, member.offset)
        if suffix in sample.members:
            sample.problem = ("repeated_member", f"member {member.name!r} is there twice")
        sample.members[suffix] = member.content
        sample.problem = sample.problem or member.problem
    if sample is not None:
        yield sample


def _is_text(name: str) -> bool:
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:  # bytes that were not UTF-8 come as lone surrogates
        return False
    return "\0" not in name
