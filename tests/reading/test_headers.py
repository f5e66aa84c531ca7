"""Headers that are read without tarfile are those that tarfile reads: names, offsets, sizes, and what is damage."""

import random
import tarfile

import pytest

from embedders.reading.headers import Archive, Damage

NAMES = [
    "1.jpg",
    "d/2.json",
    "x" * 100,
    "é.jpg",
    "日本.jpg",
    ".hidden",
    "a.jpg/",
    "b\n.txt",
    "n" * 130,
    "p/" * 60 + "q.jpg",
]
FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}


class Slow(Archive):
    """Reads every header by tarfile."""

    def _read_known(self):
        return None


def make_header(chance: random.Random, form: int, **fields) -> tuple[bytes, int]:
    """Make a header with whatever comes before it, and the size of the data."""
    info = tarfile.TarInfo(chance.choice(NAMES))
    info.size = chance.choice([0, 1, 511, 512, 513, 3000])
    info.mtime = chance.choice([0, 1_700_000_000, 1_700_000_000.25, 1_700_000_000.123456])
    info.mode, info.uid = chance.choice([0o644, 0o600]), chance.choice([0, 1000])
    info.uname = chance.choice(["", "bigdata"])
    for field, value in fields.items():
        setattr(info, field, value)
    try:
        return info.tobuf(form, "utf-8", "surrogateescape"), info.size
    except ValueError:  # a name too long for ustar
        return make_header(chance, form, **fields)


def mutate(chance: random.Random, header: bytes, is_mended: bool) -> bytes:
    """Change some bytes of the last block, and mend its checksum or leave it wrong."""
    block = bytearray(header)
    at = len(block) - 512 * chance.randint(1, len(block) // 512)
    for _ in range(chance.choice([1, 1, 2, 5])):
        block[at + chance.randrange(512)] = chance.choice(
            [0, 32, 48, 55, 57, 46, 47, 120, 255, chance.randrange(256)]
        )
    if is_mended:
        total = 256 + sum(block[at : at + 148]) + sum(block[at + 156 : at + 512])
        block[at + 148 : at + 156] = chance.choice([b"%06o\0 ", b"%06o \0", b"%07o\0", b"%7o "]) % total
    return bytes(block)


def read_all(kind: type[Archive], path) -> list:
    """Read the headers of a tar, and what is damaged in it."""
    found = []
    with open(path, "rb") as stream:
        archive = kind(stream)
        while True:
            try:
                header = archive.read_header()
            except Damage as damage:
                found.append((archive.start, str(damage)))
                if not damage.may_hide_members:
                    return found
                archive.is_lost = True
                continue
            found.append(header)
            if header is None:
                return found


def write(path, parts) -> None:
    path.write_bytes(b"".join(header + b"d" * size + b"\0" * (-size % 512) for header, size in parts) + b"\0" * 1024)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("seed", range(3))
def test_generated_headers_are_read_as_by_tarfile(tmp_path, form, seed):
    chance = random.Random(seed)
    write(tmp_path / "s.tar", [make_header(chance, FORMATS[form]) for _ in range(300)])
    found = read_all(Archive, tmp_path / "s.tar")
    assert found == read_all(Slow, tmp_path / "s.tar")
    assert len(found) == 301


@pytest.mark.parametrize("is_mended", [False, True], ids=["wrong checksum", "right checksum"])
@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("seed", range(3))
def test_mutated_headers_are_read_as_by_tarfile(tmp_path, form, seed, is_mended):
    chance = random.Random(seed)
    parts = []
    for _ in range(1500):
        header, size = make_header(chance, FORMATS[form], mode=0o644, uid=0, uname="")
        parts.append((mutate(chance, header, is_mended) if chance.random() < 0.5 else header, size))
    write(tmp_path / "s.tar", parts)
    found = read_all(Archive, tmp_path / "s.tar")
    assert found == read_all(Slow, tmp_path / "s.tar")
    assert len(found) > 50  # a changed size may lead far ahead


PAX = [
    b"18 mtime=17000.25\n", b"18 mtime=17000.25\n18 atime=17000.25\n", b"19 mtime=17000.25\n", b"17 mtime=17000.25\n",
    b"14 path=1.jpg\n", b"18 mtime=17000.25\n14 path=1.jpg\n", b"12 size=700\n", b"18 mtime=17000.25\0", b"",
    b"15 mtime=nan  \n", b"20 comment=17000.25\n", b"26 GNU.sparse.major=1\n", b"18 mtime=17000.25\n" + b"\0" * 100,
]  # fmt: skip


@pytest.mark.parametrize("records", PAX)
@pytest.mark.parametrize("behind", [b"", b"14 path=2.jpg\n"])
def test_pax_fields_are_times_only_or_tarfiles(tmp_path, records, behind):
    def extend(content: bytes, padding: bytes = b"") -> bytes:
        header = tarfile.TarInfo("./PaxHeaders/1.jpg")
        header.type, header.size = b"x", len(content)
        return header.tobuf(tarfile.USTAR_FORMAT) + (content + padding).ljust(-(-len(content) // 512) * 512, b"\0")

    plain = tarfile.TarInfo("plain.jpg")
    plain.size = 700
    plain = plain.tobuf(tarfile.USTAR_FORMAT)
    known = [(extend(b"18 mtime=17000.25\n") + plain, 700)] * 3
    write(tmp_path / "s.tar", [*known, (extend(records, behind if records else b"") + plain, 700), *known])
    assert read_all(Archive, tmp_path / "s.tar") == read_all(Slow, tmp_path / "s.tar")


def test_a_checksum_that_differs_by_adlers_modulus_is_wrong(tmp_path):
    # Adler's lower half is the sum modulo 65521; of a header that is read without tarfile the sum stays below.
    plain = tarfile.TarInfo("1.jpg").tobuf(tarfile.USTAR_FORMAT)
    block = bytearray(plain)
    block[:100], block[157:257], block[345:500] = b"\xff" * 100, b"\xff" * 100, b"\xff" * 155
    total = 256 + sum(block[:148]) + sum(block[156:])
    assert total > 65521
    block[148:156] = b"%06o\0 " % (total - 65521)
    write(tmp_path / "s.tar", [(plain, 0), (bytes(block), 0), (plain, 0)])
    found = read_all(Archive, tmp_path / "s.tar")
    assert found == read_all(Slow, tmp_path / "s.tar")
    assert "bad checksum" in found[1][1]


def test_a_global_pax_field_holds_for_headers_that_are_known(tmp_path):
    record = tarfile.TarInfo("./GlobalHead")
    record.type, record.size = b"g", len(b"14 path=9.jpg\n")
    record = record.tobuf(tarfile.USTAR_FORMAT) + b"14 path=9.jpg\n".ljust(512, b"\0")
    plain = tarfile.TarInfo("1.jpg").tobuf(tarfile.USTAR_FORMAT)
    write(tmp_path / "s.tar", [(plain, 0), (plain, 0), (record + plain, 0), (plain, 0)])
    found = read_all(Archive, tmp_path / "s.tar")
    assert [header.name for header in found[:-1]] == ["1.jpg", "1.jpg", "9.jpg", "9.jpg"]
    assert found == read_all(Slow, tmp_path / "s.tar")


def test_most_headers_of_common_tars_are_read_without_tarfile(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(Archive, "_read_any", lambda self, read=Archive._read_any: calls.append(1) or read(self))
    for form in FORMATS.values():
        infos = [tarfile.TarInfo(f"{number}.jpg") for number in range(50)]
        for info in infos:
            info.mtime = 1_700_000_000 + random.random() if form == tarfile.PAX_FORMAT else 1_700_000_000
        write(tmp_path / "s.tar", [(info.tobuf(form), 0) for info in infos])
        assert len(read_all(Archive, tmp_path / "s.tar")) == 51
        assert len(calls) == 2  # the first of its kind, and the end
        calls.clear()
