"""Reader of the members of a tar: decides which are read, and which cannot be used.

Owns the loop over a tar; not its headers (`headers`), nor which members form a sample (`samples`).
"""

import gzip
import logging
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from embedders.errors import ShardError
from embedders.output.failed import FailureKind
from embedders.reading.headers import Archive, Damage, Header

log = logging.getLogger(__name__)

# webdataset skips its own `__name__` members.
_META = re.compile(r"__[^/]*__($|/)")
# No image is this large: such a header is damaged or hostile, and the content would be read into memory.
MAX_MEMBER_BYTES = 1 << 28
# Bytes that are read at once: a few members of a typical shard.
_BUFFER_BYTES = 1 << 18
_GZIP_ERRORS = (EOFError, gzip.BadGzipFile, zlib.error)


@dataclass(slots=True)
class Member:
    """One member of a tar, or one place where the tar is damaged.

    Attributes:
        name: Name of the member; for a damaged place, of the last intact member.
        offset: Position of its header in the uncompressed tar, in bytes.
        content: Its bytes; `None` if they were not wanted or cannot be read.
        problem: Why it cannot be used, as kind and message; `None` if it can.
        damage: Set if this is a damaged place and not a member.
    """

    name: str
    offset: int
    content: bytes | None = None
    problem: tuple[FailureKind, str] | None = None
    damage: Damage | None = None


def open_tar(tar_path: str) -> BinaryIO:
    """Open a tar, and decompress it if it is compressed by gzip.

    Raises:
        ShardError: The file cannot be read.
    """
    try:
        # By content, not by name: files are renamed more often than they are recompressed.
        with Path(tar_path).open("rb") as stream:
            is_gzip = stream.read(2) == b"\x1f\x8b"
        return cast(BinaryIO, gzip.open(tar_path)) if is_gzip else Path(tar_path).open("rb", _BUFFER_BYTES)
    except OSError as error:
        raise ShardError(f"{tar_path!r}: cannot be read ({error.strerror}); expected a .tar file") from error


def read_members(tar_path: str, wants: Callable[[str], bool]) -> Iterator[Member]:
    """Read the members that could belong to a sample.

    Args:
        tar_path: Path of a tar, plain or compressed by gzip.
        wants: Returns for a member's name whether to read its content.

    Yields:
        Members in tar order, without folders, hidden files and `__name__` members; and for each damaged place, one
        with `damage` set. After damage, reading continues at the next valid header, except in a compressed tar.
    """
    passed_over, last = 0, ""
    with open_tar(tar_path) as stream:
        archive = Archive(stream)
        while True:
            try:
                header = archive.read_header()
                if header is None:
                    archive.check_end()
                    break
                if header.is_folder:
                    continue
                if _is_hidden(header.name):
                    passed_over += 1
                    continue
                yield _read_member(archive, header, wants)
                last = header.name
            except Damage as damage:
                yield Member(last, archive.start, damage=damage)
                if archive.length is None or not damage.may_hide_members:
                    break
                archive.is_lost = True
            except _GZIP_ERRORS as error:
                # The checksum comes last: by then every member was read, and any of them may be wrong.
                yield Member(last, archive.start, damage=Damage(f"bad gzip data ({error})"))
                break
            except OSError as error:  # after BadGzipFile, which is one too
                raise ShardError(f"{tar_path!r}: cannot be read ({error.strerror}); expected a .tar file") from error
    if passed_over:
        log.info("%s: skipped %d hidden or __meta__ files", tar_path, passed_over)


def _is_hidden(name: str) -> bool:
    if name.startswith("__"):
        return _META.match(name) is not None or name.rpartition("/")[2].startswith(".")
    return (name.startswith(".") or "/." in name) and name.rpartition("/")[2].startswith(".")


def _read_member(archive: Archive, header: Header, wants: Callable[[str], bool]) -> Member:
    if not header.is_file:
        problem = (FailureKind.NOT_A_FILE, "a link, device or sparse file; expected a regular file")
        return Member(header.name, header.offset, problem=problem)
    if not wants(header.name):
        archive.pass_over(header)
        return Member(header.name, header.offset)
    if header.size > MAX_MEMBER_BYTES:
        archive.pass_over(header)
        problem = (FailureKind.TOO_LARGE, f"{header.size} bytes; expected at most {MAX_MEMBER_BYTES}")
        return Member(header.name, header.offset, problem=problem)
    return Member(header.name, header.offset, archive.read_content(header))
