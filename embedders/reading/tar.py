"""Tar -> members, by tarfile's own code, with the damage that tarfile (and so webdataset) takes for the end.

Owns headers, offsets and what a damaged tar is; not which members form a sample (`shards`).
"""

import gzip
import logging
import os
import re
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from embedders.errors import ShardError
from embedders.output.failed import FailureKind

log = logging.getLogger(__name__)

# webdataset passes over its own `__name__` members.
_META = re.compile(r"__[^/]*__($|/)")
# No image is as large; a header that says so is damaged or hostile, and would be read into memory.
MAX_MEMBER_BYTES = 1 << 28
# All that tarfile reads into memory for one member before its data: long names, PAX fields, sparse maps.
MAX_HEADER_BYTES = 1 << 20
_MAX_OFFSET = 1 << 60  # beyond any file, and still an offset that can be asked for
_DIGITS = bytes.maketrans(b"123456789", b"0" * 9)


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
    problem: tuple[FailureKind, str] | None = None
    damage: Damage | None = None


class HeaderStream:
    """What tarfile reads one member's header from, extensions included: it never gets more than an honest one has."""

    def __init__(self, stream: BinaryIO):
        self.stream = stream
        self.tell = stream.tell
        self.left = 0

    def go_to(self, offset: int) -> None:
        """Go to the next header."""
        self.left = MAX_HEADER_BYTES
        self.stream.seek(offset)

    def read(self, size: int) -> bytes:
        """Read a block, or an extension of several."""
        is_first = self.left == MAX_HEADER_BYTES
        if not 0 <= size <= self.left:
            raise tarfile.InvalidHeaderError(f"more than {MAX_HEADER_BYTES} bytes of header")
        # A short read has its price, too: extensions of extensions make tarfile call itself.
        self.left -= max(size, MAX_HEADER_BYTES // 64)
        content = self.stream.read(size)
        if len(content) < size and not is_first:  # tarfile itself does not look
            raise tarfile.TruncatedHeaderError("cut short")
        # tarfile takes quadratic time for these before Python 3.11.10 and 3.12.6 (CVE-2024-6232).
        if b"0" * 128 in content.translate(_DIGITS):
            raise tarfile.InvalidHeaderError("a number of more than 127 digits")
        return content


class Archive(tarfile.TarFile):
    """Reads member headers by tarfile's own code, without its loop, which takes a damaged header for the end.

    Attributes:
        start: Position of the header that was read last, or could not be.
        length: Bytes of the tar; `None` if it is compressed, and to go back is to decompress all from the start.
        is_lost: Whether the next header is to be searched for.
    """

    encoding = "utf-8"
    errors = "surrogateescape"

    def __init__(self, stream: BinaryIO):
        self.stream = stream
        self.fileobj = HeaderStream(stream)  # this, `offset` and `pax_headers` are what tarfile works on
        self.offset = 0
        self.pax_headers = {}
        self.start = 0
        self.length = None if isinstance(stream, gzip.GzipFile) else os.fstat(stream.fileno()).st_size
        self.is_lost = False

    def read_header(self) -> tarfile.TarInfo | None:
        """Read the next header; `None` at the end-of-archive blocks."""
        if self.is_lost:
            self.offset = self.find_header(self.start + tarfile.BLOCKSIZE)
            self.is_lost = False
            if self.offset >= self.length:
                return None
        self.start = self.offset
        self.fileobj.go_to(self.start)
        try:
            header = tarfile.TarInfo.fromtarfile(self)
        except tarfile.EOFHeaderError:
            return None
        except tarfile.EmptyHeaderError:
            raise Damage("the end-of-archive blocks are missing: the tar was cut", may_hide_members=False) from None
        except (tarfile.HeaderError, ValueError, OverflowError) as error:
            raise Damage(f"bad member header ({error})") from None
        # A size can be negative or absurd, and the walk would go round for ever or nowhere.
        if header.size < 0 or not self.start < self.offset < _MAX_OFFSET:
            raise Damage(f"bad member header (absurd size {header.size})")
        if sum(map(len, self.pax_headers.values())) > MAX_HEADER_BYTES:
            raise Damage(f"bad member header (more than {MAX_HEADER_BYTES} bytes of global PAX fields)")
        return header

    def read_content(self, header: tarfile.TarInfo) -> bytes:
        """Read the content of a member."""
        self._check_length(header, self.length)
        self.stream.seek(header.offset_data)
        content = self.stream.read(header.size)
        self._check_length(header, header.offset_data + len(content))
        return content

    def pass_over(self, header: tarfile.TarInfo) -> None:
        """See that the content of a member is there, without reading it."""
        self._check_length(header, self.length)
        if self.length is None and header.size:
            self.stream.seek(header.offset_data + header.size - 1)
            self._check_length(header, self.stream.tell() + len(self.stream.read(1)))

    def check_end(self) -> None:
        """Read what follows the first end-of-archive block: zeros, and for gzip the checksum behind them."""
        while block := self.stream.read(1 << 16):
            if block.strip(b"\0"):
                goes_on = self.length is not None and self.find_header(self.start + tarfile.BLOCKSIZE) < self.length
                raise Damage("data after the end-of-archive blocks (two tars in one file?)", may_hide_members=goes_on)

    def find_header(self, start: int) -> int:
        """Find the first block from `start` on that is a valid header, to read on after damage; or the file's end."""
        self.stream.seek(start)
        while block := self.stream.read(tarfile.BLOCKSIZE):
            if block[257:262] == b"ustar":
                try:
                    tarfile.TarInfo.frombuf(block, self.encoding, self.errors)
                    return start
                except tarfile.HeaderError:
                    pass
            start += tarfile.BLOCKSIZE
        return start

    def _check_length(self, header: tarfile.TarInfo, length: int | None) -> None:
        if length is not None and header.offset_data + header.size > length:
            raise Damage(f"the data of member {header.name!r} are cut short; expected {header.size} bytes")


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
        place that is not whole. After it reading goes on at the next valid header, except in a compressed tar.
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
                if header.isdir():
                    continue
                if _META.match(header.name) or header.name.rpartition("/")[2].startswith("."):
                    passed_over += 1
                    continue
                yield _read_member(archive, header, wants)
                last = header.name
            except Damage as damage:
                yield Member(last, archive.start, damage=damage)
                if archive.length is None or not damage.may_hide_members:
                    break
                archive.is_lost = True
            except (EOFError, gzip.BadGzipFile, zlib.error) as error:
                # the checksum comes last: by then every member was read, and nothing says which one is wrong
                yield Member(last, archive.start, damage=Damage(f"bad gzip data ({error})"))
                break
            except OSError as error:  # after BadGzipFile, which is one too
                raise ShardError(f"{tar_path!r}: cannot be read ({error.strerror}); expected a .tar file") from error
    if passed_over:
        log.info("%s: passed over %d hidden or __meta__ files", tar_path, passed_over)


def _read_member(archive: Archive, header: tarfile.TarInfo, wants: Callable[[str], bool]) -> Member:
    member = Member(header.name, header.offset)
    if not header.isreg() or header.issparse():
        member.problem = (FailureKind.NOT_A_FILE, "a link, device or sparse file; expected a regular file")
    elif not wants(header.name):
        archive.pass_over(header)
    elif header.size > MAX_MEMBER_BYTES:
        archive.pass_over(header)
        member.problem = (FailureKind.TOO_LARGE, f"{header.size} bytes; expected at most {MAX_MEMBER_BYTES}")
    else:
        member.content = archive.read_content(header)
    return member
