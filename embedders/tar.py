"""Tar -> members, by tarfile's own code, with the damage that tarfile (and so webdataset) takes for the end.

Owns headers, offsets and what a damaged tar is; not which members form a sample (`shards`).
"""

import gzip
import logging
import re
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from embedders.errors import ShardError

log = logging.getLogger(__name__)

# webdataset passes over its own `__name__` members.
_META = re.compile(r"__[^/]*__($|/)")
# No image is as large; a header that says so is damaged or hostile, and would be read into memory.
MAX_MEMBER_BYTES = 1 << 30
# The same for what tarfile itself reads into memory: long names and PAX fields.
MAX_EXTENSION_BYTES = 1 << 20
_PAX_TYPES = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE)


class Damage(Exception):
    """The tar is not whole here.

    Attributes:
        may_hide_members: Whether members of the samples on either side may be lost in it.
    """

    def __init__(self, message: str, may_hide_members: bool = True):
        super().__init__(message)
        self.may_hide_members = may_hide_members


@dataclass(slots=True)
class Member:
    """One member of a tar, or one place where the tar is damaged.

    Attributes:
        name: Name of the member; for a damaged place, of the last member that was whole.
        offset: Position of its header in the uncompressed tar, in bytes.
        content: Its bytes; `None` where they were not wanted or cannot be had.
        problem: Kind and message of what makes it unusable, if anything does.
        damage: Set if this is a damaged place and no member.
    """

    name: str
    offset: int
    content: bytes | None = None
    problem: tuple[str, str] | None = None
    damage: Damage | None = None


class Header(tarfile.TarInfo):
    """A member's header, with the sizes that no honest tar has refused before anything is read by them."""

    @classmethod
    def frombuf(cls, buf: bytes, encoding: str, errors: str) -> tarfile.TarInfo:
        header = super().frombuf(buf, encoding, errors)
        extends = header.type in (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, *_PAX_TYPES)
        if header.size < 0 or (extends and header.size > MAX_EXTENSION_BYTES):
            raise tarfile.InvalidHeaderError(f"absurd size {header.size}")
        return header


class Archive(tarfile.TarFile):
    """Reads member headers by tarfile's own code, without its loop, which takes a damaged header for the end."""

    tarinfo = Header
    encoding = "utf-8"
    errors = "surrogateescape"

    def __init__(self, stream: BinaryIO):
        self.fileobj = stream
        self.offset = 0  # of the next header; tarfile moves it on
        self.pax_headers = {}

    def read_header(self) -> tarfile.TarInfo | None:
        """Read the next header; `None` at the end-of-archive blocks."""
        start = self.offset
        self.fileobj.seek(start)
        try:
            header = Header.fromtarfile(self)
        except tarfile.EOFHeaderError:
            return None
        except tarfile.EmptyHeaderError:
            raise Damage("the end-of-archive blocks are missing: the tar was cut", may_hide_members=False) from None
        except (tarfile.HeaderError, ValueError, OverflowError) as error:
            raise Damage(f"bad member header ({error})") from None
        if self.offset <= start:  # a size in a PAX header can be negative: the walk would go round for ever
            raise Damage("bad member header (it points backwards)")
        return header

    def find_header(self, start: int) -> int | None:
        """Find the first block from `start` on that is a valid header, to read on after damage."""
        self.fileobj.seek(start)
        while block := self.fileobj.read(tarfile.BLOCKSIZE):
            if block[257:262] == b"ustar":
                try:
                    Header.frombuf(block, self.encoding, self.errors)
                    return start
                except tarfile.HeaderError:
                    pass
            start += tarfile.BLOCKSIZE
        return None


def open_tar(tar_path: str) -> BinaryIO:
    """Open a tar, decompressed if it is compressed by gzip.

    Raises:
        ShardError: The file cannot be read.
    """
    try:
        # By content, not by name: files are renamed more often than they are recompressed.
        with Path(tar_path).open("rb") as stream:
            is_gzip = stream.read(2) == b"\x1f\x8b"
        return gzip.open(tar_path) if is_gzip else Path(tar_path).open("rb")
    except OSError as error:
        raise ShardError(f"{tar_path!r}: cannot be read ({error.strerror}); expected a .tar file") from error


def read_members(tar_path: str, wants: Callable[[str], bool]) -> Iterator[Member]:
    """Read the members that could belong to a sample.

    Args:
        tar_path: Path of a tar, plain or compressed by gzip.
        wants: Says by a member's name whether its content is to be read.

    Yields:
        Members in tar order, without folders, hidden files and `__name__` members; and one with `damage` for each
        place that is not whole, after which reading goes on at the next valid header.
    """
    passed_over, last = 0, ""
    with open_tar(tar_path) as stream:
        archive = Archive(stream)
        while True:
            start = archive.offset
            try:
                header = archive.read_header()
                if header is None:
                    _check_end(stream)
                    break
                if header.isdir():
                    continue
                if _META.match(header.name) or header.name.rpartition("/")[2].startswith("."):
                    passed_over += 1
                    continue
                yield _read_member(stream, header, wants)
                last = header.name
            except Damage as damage:
                yield Member(last, start, damage=damage)
                resume = archive.find_header(start + tarfile.BLOCKSIZE) if damage.may_hide_members else None
                if resume is None:
                    break
                archive.offset = resume
            except (EOFError, gzip.BadGzipFile, zlib.error) as error:
                # the checksum comes last: by then every member was read, and nothing says which one is wrong
                yield Member(last, start, damage=Damage(f"bad gzip data ({error})"))
                break
            except OSError as error:  # after BadGzipFile, which is one too
                raise ShardError(f"{tar_path!r}: cannot be read ({error.strerror}); expected a .tar file") from error
    if passed_over:
        log.info("%s: passed over %d hidden or __meta__ files", tar_path, passed_over)


def _read_member(stream: BinaryIO, header: tarfile.TarInfo, wants: Callable[[str], bool]) -> Member:
    member = Member(header.name, header.offset)
    if not header.isreg() or header.issparse():
        member.problem = ("not_a_file", "a link, device or sparse file; expected a regular file")
        return member
    if header.size > MAX_MEMBER_BYTES:
        member.problem = ("too_large", f"{header.size} bytes; expected at most {MAX_MEMBER_BYTES}")
    elif wants(header.name):
        stream.seek(header.offset_data)
        member.content = stream.read(header.size)
    if member.content is not None:
        is_cut = len(member.content) < header.size
    else:
        stream.seek(max(header.offset_data + header.size - 1, 0))
        is_cut = header.size > 0 and not stream.read(1)
    if is_cut:
        raise Damage(f"the data of member {header.name!r} are cut short; expected {header.size} bytes")
    return member


def _check_end(stream: BinaryIO) -> None:
    """Read what follows the first end-of-archive block: zeros, and for gzip the checksum behind them."""
    while block := stream.read(1 << 16):
        if block.strip(b"\0"):
            raise Damage("data after the end-of-archive blocks (two tars in one file?)", may_hide_members=False)
