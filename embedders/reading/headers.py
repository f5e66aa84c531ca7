"""Reader of the headers of a tar, by tarfile, but with the damage that tarfile and webdataset take for the end.

Owns headers and offsets; not which members are read (`tar`), nor how many zeros an end has (`end`).
"""

import gzip
import os
import re
import tarfile
import zlib
from typing import BinaryIO, NamedTuple

from embedders.reading.end import BLOCK, is_end

# Limit of what tarfile reads into memory for one member before its data: long names, PAX fields, sparse maps.
MAX_HEADER_BYTES = 1 << 20
_MAX_OFFSET = 1 << 60  # larger than any file, but still a valid argument of seek
_DIGITS = bytes.maketrans(b"123456789", b"0" * 9)
# Size, time and checksum of a header, as nearly all programs write them.
_NUMBERS = re.compile(rb"([0-7]{11})[\0 ][0-7]{11}[\0 ]([0-7]{6})(?:\0 | \0)")
# A PAX record that can be ignored; Python and webdataset write one for each member, since their times are floats.
_TIME_RECORD = re.compile(rb"([1-9][0-9]{0,2}) [mac]time=-?[0-9]+(?:\.[0-9]+)?\n")
_MAX_KNOWN = 64


class Damage(Exception):
    """The tar is damaged at this place.

    Attributes:
        may_hide_members: Whether members of the samples before and after it may be lost.
    """

    def __init__(self, message: str, may_hide_members: bool = True):
        super().__init__(message)
        self.may_hide_members = may_hide_members


class Header(NamedTuple):
    """The header of a member: its name, the offsets of it and of its data in the uncompressed tar, and its type."""

    name: str
    offset: int
    offset_data: int
    size: int
    is_file: bool = True
    is_folder: bool = False


class HeaderStream:
    """Limits what tarfile reads for the header of one member, extensions included, to `MAX_HEADER_BYTES`.

    Without a limit, a hostile header could fill the memory.
    """

    def __init__(self, stream: BinaryIO):
        self.stream = stream
        self.tell = stream.tell
        self.left = 0

    def go_to(self, offset: int) -> None:
        """Go to the header at `offset`, and reset the limit."""
        self.left = MAX_HEADER_BYTES
        self.stream.seek(offset)

    def read(self, size: int) -> bytes:
        """Read one block, or an extension of several blocks."""
        is_first = self.left == MAX_HEADER_BYTES
        if not 0 <= size <= self.left:
            raise tarfile.InvalidHeaderError(f"more than {MAX_HEADER_BYTES} bytes of header")
        # A short read counts as a longer one: tarfile recurses into extensions of extensions.
        self.left -= max(size, MAX_HEADER_BYTES // 64)
        content = self.stream.read(size)
        if len(content) < size and not is_first:  # tarfile itself does not check
            raise tarfile.TruncatedHeaderError("cut short")
        # Before Python 3.11.10 and 3.12.6, tarfile takes quadratic time for these (CVE-2024-6232).
        if b"0" * 128 in content.translate(_DIGITS):
            raise tarfile.InvalidHeaderError("a number of more than 127 digits")
        return content


class Archive(tarfile.TarFile):
    """Reads member headers with tarfile's own code, but without its loop, which takes a damaged header for the end.

    Headers of plain files differ only in name, size and time. Once tarfile has read one, similar headers are parsed
    here, in a tenth of the time.

    Attributes:
        start: Position of the header that was read last, or that could not be read.
        length: Bytes of the tar; `None` if it is compressed, since going back would mean to decompress it again.
        is_lost: Whether the next header must be searched for.
    """

    encoding = "utf-8"
    errors = "surrogateescape"

    def __init__(self, stream: BinaryIO):
        self.stream = stream
        self.fileobj = HeaderStream(stream)  # tarfile uses this, `offset` and `pax_headers`
        self.offset = 0
        self.pax_headers = {}
        self.start = 0
        self.length = None if isinstance(stream, gzip.GzipFile) else os.fstat(stream.fileno()).st_size
        self.is_lost = False
        # The common parts of headers that tarfile has read: of plain files, and of the PAX fields before them.
        self._plain: set[bytes] = set()
        self._extended: set[bytes] = set()

    def read_header(self) -> Header | None:
        """Return the next header; `None` at the end-of-archive blocks."""
        if self.is_lost:
            self.offset = self.find_header(self.start + BLOCK)
            self.is_lost = False
            if self.offset >= self.length:
                return None
        self.start = self.offset
        return self._read_known() or self._read_any()

    def _read_known(self) -> Header | None:
        """Return the header of a plain file that is similar to one that tarfile has read; `None` for any other."""
        if self.pax_headers:  # global fields, which apply to all members that follow
            return None
        self.stream.seek(self.start)
        block = self.stream.read(BLOCK)
        offset_data = self.start + BLOCK
        if _take_alike(block) in self._extended:
            if not _holds_times_only(self.stream.read(BLOCK), _read_size(block)):
                return None
            block = self.stream.read(BLOCK)
            offset_data += 2 * BLOCK
        if _take_alike(block) not in self._plain:
            return None
        size = _read_size(block)
        if size is None:
            return None
        self.offset = offset_data + (size + BLOCK - 1) // BLOCK * BLOCK
        name = block[:100].partition(b"\0")[0].decode(self.encoding, self.errors)
        return Header(name, self.start, offset_data, size)

    def _read_any(self) -> Header | None:
        """Read a header with tarfile."""
        self.fileobj.go_to(self.start)
        try:
            found = tarfile.TarInfo.fromtarfile(self)
        except tarfile.EOFHeaderError:
            return None
        except tarfile.EmptyHeaderError:
            raise Damage("the end-of-archive blocks are missing: the tar was cut", may_hide_members=False) from None
        except (tarfile.HeaderError, ValueError, OverflowError) as error:
            raise Damage(f"bad member header ({error})") from None
        # With a negative or absurd size, the reader would loop for ever or seek beyond any file.
        if found.size < 0 or not self.start < self.offset < _MAX_OFFSET:
            raise Damage(f"bad member header (absurd size {found.size})")
        if sum(map(len, self.pax_headers.values())) > MAX_HEADER_BYTES:
            raise Damage(f"bad member header (more than {MAX_HEADER_BYTES} bytes of global PAX fields)")
        is_file = found.isreg() and not found.issparse()
        if is_file and len(self._plain) + len(self._extended) < _MAX_KNOWN:
            self._learn(found.offset_data - BLOCK)
        return Header(found.name, found.offset, found.offset_data, found.size, is_file, found.isdir())

    def _learn(self, last: int) -> None:
        """Note the common parts of the header that tarfile has just read, and whose last block is at `last`."""
        for offset, kind, known in ((self.start, b"x", self._extended), (last, b"0", self._plain)):
            self.stream.seek(offset)
            block = self.stream.read(BLOCK)
            # Without a link and a prefix, the sum of its bytes is below 65521: see `_read_size`.
            if block[156:157] == kind and not block[157:257].strip(b"\0") and not block[345:].strip(b"\0"):
                known.add(_take_alike(block))

    def read_content(self, header: Header) -> bytes:
        """Read the content of a member."""
        self._check_length(header, self.length)
        self.stream.seek(header.offset_data)
        content = self.stream.read(header.size)
        self._check_length(header, header.offset_data + len(content))
        return content

    def pass_over(self, header: Header) -> None:
        """Check that the content of a member is complete, without reading it."""
        self._check_length(header, self.length)
        if self.length is None and header.size:
            self.stream.seek(header.offset_data + header.size - 1)
            self._check_length(header, self.stream.tell() + len(self.stream.read(1)))

    def check_end(self) -> None:
        """Check that only zeros follow the first end-of-archive block, and for gzip the checksum after them."""
        length = self.start + BLOCK
        while block := self.stream.read(1 << 16):
            if block.strip(b"\0"):
                goes_on = self.length is not None and self.find_header(self.start + BLOCK) < self.length
                raise Damage("data after the end-of-archive blocks (two tars in one file?)", may_hide_members=goes_on)
            length += len(block)
        if not is_end(self.start, length):
            raise Damage(f"zeros from here to the end, {length - self.start} bytes, more than a program writes")

    def find_header(self, start: int) -> int:
        """Return the offset of the next valid header, to continue after damage; or the file's end."""
        self.stream.seek(start)
        while block := self.stream.read(BLOCK):
            if block[257:262] == b"ustar":
                try:
                    tarfile.TarInfo.frombuf(block, self.encoding, self.errors)
                    return start
                except tarfile.HeaderError:
                    pass
            start += BLOCK
        return start

    def _check_length(self, header: Header, length: int | None) -> None:
        if length is not None and header.offset_data + header.size > length:
            raise Damage(f"the data of member {header.name!r} are cut short; expected {header.size} bytes")


def _take_alike(block: bytes) -> bytes:
    """Return what headers of one kind have in common: all but name, size, time and checksum."""
    return block[100:124] + block[156:]


def _read_size(block: bytes) -> int | None:
    """Return the size in a header; `None` if a number is written in another format, or the checksum is wrong."""
    numbers = _NUMBERS.match(block, 124)
    if numbers is None:
        return None
    # The checksum counts its own field as spaces. Adler-32's lower half is 1 + the sum of the bytes, modulo 65521.
    total = int(numbers[2], 8) - 8 * 32 + sum(block[148:156])
    return int(numbers[1], 8) if zlib.adler32(block) & 0xFFFF == 1 + total else None


def _holds_times_only(block: bytes, size: int | None) -> bool:
    """Return whether these PAX fields are only times, which do not matter here."""
    records = block.rstrip(b"\0")
    if len(records) != size:
        return False
    while record := _TIME_RECORD.match(records):
        if record.end() != int(record[1]):
            return False
        records = records[record.end() :]
    return not records
