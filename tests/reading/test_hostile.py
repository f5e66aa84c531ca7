"""Hostile and odd shards: one table of what each is, how it is made, and what must come of it.

All of them go through `embed_shard` in one process, which is watched: its peak memory, what it opens to write, what
it starts, and whether it ever unpickles. What fuzzing and thinking have found is a row here, so that it stays found.
"""

import gzip
import io
import json
import os
import pickle
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path

import pytest
from PIL import Image
from support.tools import encode, leftovers, make_image, run_cli, start_python

# Of the whole run, torch and the code included (700 MB): what stays is a bomb just below Pillow's limit of pixels.
MAX_PEAK_MB = 3000
JPEG, PNG = make_image(0), make_image(0, form="PNG")
END = b"\0" * 1024


class Touch:
    """Unpickled, it leaves a file behind."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


# How they are made.


def member(name="1.jpg", content=b"", form=tarfile.USTAR_FORMAT, **fields) -> bytes:
    """One member of a tar: its headers and its padded content."""
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for field, value in fields.items():
        setattr(info, field, value)
    return info.tobuf(form, "utf-8", "surrogateescape") + content + b"\0" * (-len(content) % 512)


def patch(header: bytes, at: int, content: bytes) -> bytes:
    """Overwrite a part of a header, and mend its checksum."""
    block = bytearray(header)
    block[at : at + len(content)] = content
    block[148:156] = b"%06o\0 " % (256 + sum(block[:148]) + sum(block[156:512]))
    return bytes(block)


def with_size(size: bytes) -> bytes:
    return patch(member(content=JPEG), 124, size)


def extension(kind: bytes, content: bytes, claims: int | None = None) -> bytes:
    """A PAX header or a GNU long name, of any content, which may claim another size."""
    header = patch(member("././@Ext", content), 156, kind)
    return header if claims is None else patch(header, 124, b"\x80" + claims.to_bytes(11, "big"))


def pax(**fields) -> bytes:
    records = b""
    for name, value in fields.items():
        record = b" %s=%s\n" % (name.replace("_", ".").encode(), value)
        length = len(record) + len(str(len(record) + 3))
        records += b"%d" % length + record
    return extension(b"x", records)


def samples(members: dict[str, bytes]) -> bytes:
    return b"".join(member(name, content, tarfile.PAX_FORMAT) for name, content in members.items()) + END


def image(content: bytes, suffix: str = "jpg") -> bytes:
    return samples({f"1.{suffix}": content, "2.jpg": JPEG})


def text(content: bytes, suffix: str = "json") -> bytes:
    return samples({"1.jpg": JPEG, f"1.{suffix}": content, "2.jpg": JPEG})


def odd(header: bytes) -> bytes:
    return header + member("2.jpg", JPEG) + END


def png(width: int, height: int, *chunks: tuple[bytes, bytes], bits=8, color=2) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in parts
    )


def pack_rows(width: int, height: int) -> bytes:
    """Compress blank rows of one bit per pixel."""
    row = b"\0" * (1 + (width + 7) // 8)
    return zlib.compress(row * height, 9)


def edit(content: bytes, at: int, new: bytes) -> bytes:
    return content[:at] + new + content[at + len(new) :]


def huge_jpeg() -> bytes:
    at = JPEG.index(b"\xff\xc0")
    return edit(JPEG, at + 5, struct.pack(">HH", 65_500, 65_500))


def many_scans() -> bytes:
    """A small progressive JPEG whose last scan comes a thousand times: 30 bytes each, a pass over all pixels each."""
    encoded = encode(Image.new("RGB", (64, 64)), "JPEG", progressive=True)
    last, end = encoded.rindex(b"\xff\xda"), encoded.rindex(b"\xff\xd9")
    return encoded[:end] + encoded[last:end] * 1000 + encoded[end:]


def huge_webp() -> bytes:
    simple = make_image(0, form="WEBP")[12:]
    canvas = b"VP8X" + struct.pack("<I", 10) + b"\0" * 4 + (16_383).to_bytes(3, "little") * 2
    return b"RIFF" + struct.pack("<I", 4 + len(canvas) + len(simple)) + b"WEBP" + canvas + simple


def huge_tiff() -> bytes:
    entries = [(256, 4, 1, 100_000), (257, 4, 1, 100_000), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1),
               (273, 4, 1, 8), (277, 3, 1, 1), (278, 4, 1, 100_000), (279, 4, 1, 4)]  # fmt: skip
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + b"".join(
        struct.pack("<HHII", *entry) for entry in entries
    )  # fmt: skip


def huge_jp2() -> bytes:
    encoded = make_image(0, form="JPEG2000")
    at = encoded.index(b"ihdr")
    return edit(encoded, at + 4, struct.pack(">II", 100_000, 100_000))


def ycck() -> bytes:
    cmyk = make_image(0, form="JPEG", mode="CMYK")
    return edit(cmyk, cmyk.index(b"Adobe") + 11, b"\x02")


def frames(form: str) -> bytes:
    first, second = (Image.new("RGB", (9, 9), color) for color in ("red", "blue"))
    return encode(first, form, save_all=True, append_images=[second])


def sparse_gnu() -> bytes:
    # A map of one piece: 512 bytes at 0, of a file that claims a terabyte.
    header = patch(member(content=b"x" * 512), 156, b"S")
    return patch(header, 386, b"%011o\0%011o\0" % (0, 512) + b"\0" * 72 + b"\0" + b"%011o\0" % (1 << 32))


def without_end(*names: str) -> bytes:
    return b"".join(member(name, JPEG) for name in names)


def zip_file() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("1.jpg", JPEG)
    return buffer.getvalue()


GOOD = samples({"1.jpg": JPEG, "2.jpg": JPEG})
PICKLE = pickle.dumps(Touch("pwned"))
TRUNCATED = {
    suffix: make_image(0, (64, 64), form)
    for suffix, form in {
        "jpg": "JPEG", "png": "PNG", "webp": "WEBP", "gif": "GIF", "tif": "TIFF", "bmp": "BMP", "jp2": "JPEG2000",
        "ppm": "PPM",
    }.items()
}  # fmt: skip
LONG_CHAIN = extension(b"x", b"") * 300
ZEROS_GZ = gzip.compress(b"\0" * (1 << 24)) * 8  # 128 MB in 130 KB
EMBEDDED = "embedded"
BOTH = {"1": EMBEDDED, "2": EMBEDDED}


def fails(kind: str) -> dict[str, str]:
    return {"1": kind, "2": EMBEDDED}


# The table: what it is -> the bytes of the shard (a number is so many zeros), and what must come of it: what of each
# sample, or words of the error.
CASES: dict[str, tuple[bytes | list[bytes | int], dict[str, str] | str]] = {
    # Images
    "a PNG of 100,000 x 100,000": (image(png(100_000, 100_000), "png"), fails("undecodable")),
    "a GIF of 65,535 x 65,535": (
        image(edit(make_image(0, form="GIF"), 6, b"\xff" * 4), "gif"),
        fails("undecodable"),
    ),
    "a WebP of 16,384 x 16,384": (image(huge_webp(), "webp"), fails("undecodable")),
    "a TIFF of 100,000 x 100,000": (image(huge_tiff(), "tif"), fails("undecodable")),
    "a JPEG of 65,500 x 65,500": (image(huge_jpeg()), fails("undecodable")),
    "a JPEG 2000 of 100,000 x 100,000": (image(huge_jp2(), "jp2"), fails("undecodable")),
    "a PPM of 100,000 x 100,000": (image(b"P6 100000 100000 255\n", "ppm"), fails("undecodable")),
    "20 KB of PNG that are 13,000 x 13,000, twice": (
        samples(
            {f"{n}.png": png(13_000, 13_000, (b"IDAT", pack_rows(13_000, 13_000)), bits=1, color=0) for n in "12"}
        ),
        BOTH,
    ),
    "a PNG whose text is a bomb": (
        image(png(1, 1, (b"zTXt", b"k\0\0" + zlib.compress(b"\0" * (1 << 26)))), "png"),
        fails("undecodable"),
    ),
    "a PNG whose colour profile is a bomb": (
        image(png(1, 1, (b"iCCP", b"k\0\0" + zlib.compress(b"\0" * (1 << 26)))), "png"),
        fails("undecodable"),
    ),
    "a JPEG of a thousand scans": (image(many_scans()), fails("undecodable")),
    "an empty image": (image(b""), fails("undecodable")),
    "HTML called .jpg": (image(b"<!DOCTYPE html><html>404 Not Found</html>"), fails("undecodable")),
    "SVG called .png": (image(b"<svg xmlns='http://www.w3.org/2000/svg'/>", "png"), fails("undecodable")),
    "PostScript called .jpg": (image(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"), fails("undecodable")),
    **{
        f"a truncated .{suffix}": (image(encoded[: len(encoded) // 2], suffix), fails("undecodable"))
        for suffix, encoded in TRUNCATED.items()
    },
    "a JPEG with garbage behind": (image(JPEG + b"garbage" * 1000), BOTH),
    "a PNG called .jpg": (image(PNG), BOTH),
    "an animated GIF": (image(frames("GIF"), "gif"), BOTH),
    "an animated WebP": (image(frames("WEBP"), "webp"), BOTH),
    "an animated PNG": (image(frames("PNG"), "png"), BOTH),
    "a TIFF of two pages": (image(frames("TIFF"), "tif"), BOTH),
    "a CMYK JPEG": (image(make_image(0, mode="CMYK")), BOTH),
    "a YCCK JPEG": (image(ycck()), BOTH),
    "an image of one pixel": (image(make_image(0, (1, 1))), BOTH),
    "an image of 65,500 x 1": (image(make_image(0, (65_500, 1))), BOTH),
    "an image of 1 x 65,500": (image(make_image(0, (1, 65_500), "PNG"), "png"), BOTH),
    "a PNG of 16 bits": (image(encode(Image.new("I;16", (9, 9), 999), "PNG"), "png"), BOTH),
    "a TIFF of floats": (image(encode(Image.new("F", (9, 9)), "TIFF"), "tif"), fails("undecodable")),
    # What lies beside an image
    "pickles beside the image": (
        samples({"1.jpg": JPEG, "1.pyd": PICKLE, "1.pickle": PICKLE, "1.pkl": PICKLE, "1.pth": PICKLE}),
        {"1": EMBEDDED},
    ),
    "a pickle and no image": (samples({"1.pickle": PICKLE, "2.jpg": JPEG}), fails("no_single_image")),
    "JSON with NaN and 1e999": (text(b'{"a": NaN, "b": -Infinity, "c": 1e999}'), BOTH),
    "JSON with one key twice": (text(b'{"a": 1, "a": 2}'), BOTH),
    "JSON with half a surrogate pair": (text(rb'{"a": "\ud800", "\udfff": 1}'), BOTH),
    "JSON that claims to be another sample": (text(b'{"__key__": "2"}'), BOTH),
    "JSON with an integer of 99,999 digits": (text(b'{"a": ' + b"9" * 99_999 + b"}"), fails("bad_metadata")),
    "JSON that is a list": (text(b"[1, 2]"), fails("bad_metadata")),
    "JSON nested 500,000 deep": (text(b'{"a":' * 500_000), fails("bad_metadata")),
    "JSON nested 500 deep, which Python reads": (text(b'{"a":' * 500 + b"1" + b"}" * 500), fails("bad_metadata")),
    "2 MB of JSON": (text(b'{"a": [' + b"{}," * 700_000 + b"1]}"), fails("bad_metadata")),
    "JSON that is not UTF-8": (text(b'{"a": "\xff"}'), fails("bad_metadata")),
    "empty JSON": (text(b""), fails("bad_metadata")),
    "a caption that is not UTF-8": (text(b"caf\xe9", "txt"), fails("bad_metadata")),
    "2 MB of caption": (text(b"a" * (2 << 20), "txt"), fails("bad_metadata")),
    "a caption that rings and clears the terminal": (text(b"\a\x1b[2J\0", "txt"), BOTH),
    # Names
    "names that lead out of the folder": (
        samples({"../../out.jpg": JPEG, "/etc/out.jpg": JPEG, "a/../../b.jpg": JPEG}),
        {"../../out": EMBEDDED, "/etc/out": EMBEDDED, "a/../../b": EMBEDDED},
    ),
    "a name with NUL": (odd(pax(path=b"a\0b.jpg") + member("x.jpg", JPEG)), {"a\\0b.jpg": "bad_name", "2": EMBEDDED}),
    "a name that is not UTF-8": (
        odd(patch(member("x.jpg", JPEG), 0, b"\xff")),
        {"\\udcff.jpg": "bad_name", "2": EMBEDDED},
    ),
    "a name that is not UTF-8, then damage": (
        patch(member("x.jpg", JPEG), 0, b"\xff") + b"\xff" * 512,
        r"damaged at byte 1536, after member '\udcff.jpg'",
    ),
    "a name that clears the terminal": (odd(member("\x1b[2J\n.jpg", JPEG)), {"\x1b[2J\n": EMBEDDED, "2": EMBEDDED}),
    "such a name of what is no image": (
        odd(member("\x1b[2J\n.jpg", b"")),
        {"\x1b[2J\n": "undecodable", "2": EMBEDDED},
    ),
    "a suffix that clears the terminal": (odd(member("1.jp\n\x1b[2Jg", JPEG)), fails("no_single_image")),
    "a name of 300 characters": (samples({"x" * 296 + ".jpg": JPEG}), {"x" * 296: EMBEDDED}),
    "a name of 5,000 characters": (samples({"x" * 4996 + ".jpg": JPEG}), {"x" * 100 + "...": "bad_name"}),
    "an empty name": (odd(patch(member("x.jpg", JPEG), 0, b"\0" * 100)), {"": "bad_name", "2": EMBEDDED}),
    "a name without suffix": (odd(member("LICENSE", b"text")), {"LICENSE": "bad_name", "2": EMBEDDED}),
    "dots in names": (
        samples({"img_1.2.jpg": JPEG, "img_1.3.jpg": JPEG, "2.jpg": JPEG}),
        {"img_1": "no_single_image", "2": EMBEDDED},
    ),
    "upper case": (samples({"A.JPG": JPEG, "A.JSON": b'{"a": 1}', "b.JpEg": JPEG}), {"A": EMBEDDED, "b": EMBEDDED}),
    "files of macOS": (
        samples({"._1.jpg": b"x", "1.jpg": JPEG, "__MACOSX/._1.jpg": b"x", ".DS_Store": b"x", "2.jpg": JPEG}),
        BOTH,
    ),
    "members of webdataset itself": (
        samples({"__info__": b"x", "__meta__/1.jpg": b"x", "1.jpg": JPEG}),
        {"1": EMBEDDED},
    ),
    "a folder called 1.jpg": (odd(member("1.jpg", type=tarfile.DIRTYPE)), {"2": EMBEDDED}),
    # What is no file
    **{
        f"a {what} to {target}": (odd(member(type=kind, linkname=target)), fails("not_a_file"))
        for what, kind in (("symbolic link", tarfile.SYMTYPE), ("hard link", tarfile.LNKTYPE))
        for target in ("../../../../etc/passwd", "/proc/self/mem", "1.jpg")
    },
    **{
        f"a {what}": (odd(member(type=kind)), fails("not_a_file"))
        for what, kind in (
            ("character device", tarfile.CHRTYPE),
            ("block device", tarfile.BLKTYPE),
            ("fifo", tarfile.FIFOTYPE),
            ("member of unknown type", b"Z"),
        )
    },
    "a sparse member of GNU": (odd(sparse_gnu()), fails("not_a_file")),
    "a sparse member of PAX": (
        odd(pax(GNU_sparse_major=b"1", GNU_sparse_minor=b"0") + member(content=b"1\n0\n512\n".ljust(512, b"\0"))),
        fails("not_a_file"),
    ),
    "a sparse map without an end": (
        pax(GNU_sparse_major=b"1", GNU_sparse_minor=b"0") + member(content=b"999999999\n" + b"0\n" * 2_000_000),
        "bytes of header",
    ),
    # Sizes
    "a size beyond the tar": (odd(with_size(b"77777777777\0")), "the data of member '1.jpg' are cut short"),
    "a size of 2**70": (odd(with_size(b"\x80" + (1 << 70).to_bytes(11, "big"))), "absurd size"),
    "a negative size": (odd(with_size(b"\xff" * 11 + b"\0")), "absurd size"),
    "a size that is no number": (odd(with_size(b"not a number")), "bad member header"),
    "a size in PAX of 2**70": (odd(pax(size=b"%d" % (1 << 70)) + member(content=JPEG)), "absurd size"),
    "a negative size in PAX": (odd(pax(size=b"-1024") + member(content=JPEG)), "absurd size"),
    "a size in PAX that is too small": (odd(pax(size=b"1") + member(content=os.urandom(2000))), "bad member header"),
    "a member of 4 GB": (
        [with_size(b"%011o\0" % (1 << 32))[:512], 1 << 32, member("2.jpg", JPEG) + END],
        fails("too_large"),
    ),
    "200 members of 2 MB under one key": (
        [part for n in range(200) for part in (patch(member(f"1.{n}.jpg"), 124, b"%011o" % (2 << 20)), 2 << 20)]
        + [member("2.jpg", JPEG) + END],
        fails("too_large"),
    ),
    # Extensions of headers
    "a long name of 8 GB": (odd(extension(b"L", b"x.jpg\0", 1 << 33) + member(content=JPEG)), "bytes of header"),
    "a long name of -1,000 bytes": (
        odd(patch(extension(b"L", b""), 124, b"\xff" * 10 + (-1000).to_bytes(2, "big", signed=True))),
        "bytes of header",
    ),
    "a PAX header of 8 GB": (odd(extension(b"x", b"", 1 << 33) + member(content=JPEG)), "bytes of header"),
    "300 PAX headers in a row": (odd(LONG_CHAIN + member(content=JPEG)), "bytes of header"),
    "a PAX field of length 0": (odd(extension(b"x", b"0 path=x\n") + member(content=JPEG)), "bad member header"),
    "a PAX header of 500,000 digits": (
        odd(extension(b"x", b"1" * 500_000) + member(content=JPEG)),
        "more than 127 digits",
    ),
    "a PAX header that is cut": (extension(b"x", b"x" * 5000)[:2000], "bad member header (cut short)"),
    "a global PAX path for all": (
        extension(b"g", b"15 path=1.jpg\n"[:14].replace(b"15", b"14"))
        + member("a.jpg", JPEG)
        + member("b.jpg", JPEG)
        + END,
        {"1": "repeated_member"},
    ),
    "two MB of global PAX fields": (
        b"".join(
            extension(b"g", b"900000 %d=" % n + b"x" * 899_989 + b"\n") + member("2.jpg", JPEG) for n in range(3)
        ),
        "of global PAX fields",
    ),
    # Whole shards
    "two tars, one behind the other": (
        GOOD + samples({"3.jpg": JPEG, "4.jpg": JPEG}),
        "data after the end-of-archive",
    ),
    "a tar in a tar": (samples({"inner.tar": GOOD, "2.jpg": JPEG}), {"inner": "no_single_image", "2": EMBEDDED}),
    "a tar without its end": (without_end("1.jpg", "2.jpg"), "end-of-archive blocks are missing"),
    "a tar cut in a header": (
        without_end("1.jpg", "2.jpg")[: 512 + -(-len(JPEG) // 512) * 512 + 100],
        "bad member header",
    ),
    "a tar cut in an image": (without_end("1.jpg", "2.jpg")[:-600], "the data of member '2.jpg' are cut short"),
    "an overwritten header": (member("1.jpg", JPEG) + b"\xff" * 512 + member("2.jpg", JPEG) + END, "bad checksum"),
    "a zeroed header": (
        member("1.jpg", JPEG) + b"\0" * 512 + member("2.jpg", JPEG)[512:] + member("3.jpg", JPEG) + END,
        "data after the end-of-archive",
    ),
    "a compressed tar": (gzip.compress(GOOD), BOTH),
    "a compressed tar with garbage behind": (gzip.compress(GOOD) + b"garbage", "bad gzip data"),
    "a compressed tar that is cut": (gzip.compress(GOOD)[:-200], "bad gzip data"),
    "a compressed tar with a wrong checksum": (
        edit(gzip.compress(GOOD), len(gzip.compress(GOOD)) - 8, b"\0\0\0\0"),
        "bad gzip data",
    ),
    "a compressed tar with an overwritten header": (
        gzip.compress(member("1.jpg", JPEG) + b"\xff" * 512 + member("2.jpg", JPEG) + END),
        "bad checksum",
    ),
    "a compressed tar with damage, then cut": (gzip.compress(b"\xff" * 5000 + GOOD)[:-200], "bad member header"),
    "130 KB of gzip that are 128 MB of zeros": (ZEROS_GZ, "zeros from here to the end, 134217728 bytes"),
    "gzip of an image of 512 MB of zeros": (
        gzip.compress(with_size(b"%011o\0" % (1 << 29))[:512])
        + ZEROS_GZ * 4
        + gzip.compress(member("2.jpg", JPEG) + END),
        fails("too_large"),
    ),
    "gzip of four images of 128 MB of zeros": (
        b"".join(gzip.compress(patch(member(f"{n}.jpg"), 124, b"%011o\0" % (1 << 27))) + ZEROS_GZ for n in range(4))
        + gzip.compress(END),
        dict.fromkeys("0123", "undecodable"),
    ),
    "a zip called .tar": (zip_file(), "damaged at byte 0"),
    "text called .tar": (b"not a tar\n" * 200, "damaged at byte 0"),
    "an empty file": (b"", "damaged at byte 0"),
    "a tar of nothing": (END, {}),
    "one block of zeros": (END[:512], {}),
}

RUN = """
import json, os, sys, warnings
from pathlib import Path
warnings.simplefilter("ignore")
os.environ["HOME"] = os.environ["TMPDIR"] = f"{sys.argv[1]}/home"
import torch
from mean_color import MeanColor
from embedders import embed_shard
from embedders.errors import TarquetError
from embedders.job.meter import read_peak_memory
from embedders.output.parquet import read_ledger, read_vectors

seen, folder = [], Path(sys.argv[1])
WATCHED = ("os.mkdir", "os.rename", "os.remove", "os.symlink", "os.link", "os.system", "os.exec", "os.posix_spawn",
           "subprocess.Popen", "socket.connect", "shutil.rmtree", "pickle.find_class", "ctypes.dlopen")

def watch(event, args):
    if event == "open" and isinstance(args[0], str | bytes) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        seen.append((event, os.fsdecode(args[0])))
    elif event in WATCHED:
        seen.append((event, *map(str, args)))

def embed(shard, accept):
    out = folder / "out" / f"{shard.stem}-{accept}.parquet"
    ledger_path = out.with_suffix(".ledger")
    embedder = MeanColor()
    embedder.num_threads_per_worker = 2
    try:
        ledger = embed_shard(embedder, shard, out, ledger_path=ledger_path, metadata_columns="all", device="cpu",
                             max_failed_fraction=1, accept_damaged_shards=accept)
    except TarquetError as error:
        return {"error": str(error)}
    table, vectors, _ = read_vectors(str(out))
    assert vectors.shape[1] == 3
    for text in table["metadata"].to_pylist():
        json.loads(text, parse_constant=lambda name: sys.exit(f"{name} is no JSON"))
    failed = read_ledger(str(ledger_path))
    return {"samples": ledger.seen, "embedded": table["key"].to_pylist(), "failed": [(f.key, f.kind) for f in failed]}

torch.set_num_threads(1)
shards = sorted((folder / "in").iterdir(), key=lambda path: int(path.stem))
embed(shards[-1], True)  # whatever is imported late
for path in (folder / "out").iterdir():
    path.unlink()
sys.addaudithook(watch)
found = []
for shard in shards:
    strict = embed(shard, False)
    found.append({"strict": strict, "tolerant": embed(shard, True) if "error" in strict else None})
peak_mb = read_peak_memory() >> 20
(folder / "found.json").write_text(json.dumps({"found": found, "seen": seen[:-1], "peak_mb": peak_mb}))
"""


def write_shard(path: Path, content: bytes | list[bytes | int]) -> None:
    with path.open("wb") as file:
        for part in [content] if isinstance(content, bytes) else content:
            if isinstance(part, int):
                file.seek(part, os.SEEK_CUR)
            else:
                file.write(part)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Embed all the shards of the table in one process that is watched."""
    folder = tmp_path_factory.mktemp("hostile")
    for name in ("in", "cwd", "home"):
        (folder / name).mkdir()
    for number, (content, _) in enumerate(CASES.values()):
        write_shard(folder / "in" / f"{number}.tar", content)
    written = {path.name: path.stat().st_mtime_ns for path in (folder / "in").iterdir()}
    (folder / "out").mkdir()
    process = start_python(RUN, folder, cwd=folder / "cwd")
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors[-3000:]
    result = json.loads((folder / "found.json").read_text())
    found = dict(zip(CASES, result["found"], strict=True))
    changed = [path.name for path in (folder / "in").iterdir() if path.stat().st_mtime_ns != written[path.name]]
    return {
        "folder": folder,
        "changed": changed,
        "found": found,
        "log": errors,
        "seen": result["seen"],
        "peak_mb": result["peak_mb"],
    }


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_of_a_hostile_shard_comes_what_the_table_says(run, case):
    expected, found = CASES[case][1], run["found"][case]["strict"]
    if isinstance(expected, str):
        assert "error" in found, found
        assert expected in found["error"]
        assert "\n" not in found["error"]
    else:
        assert "error" not in found, found
        assert dict.fromkeys(found["embedded"], EMBEDDED) | dict(found["failed"]) == expected
        assert len(found["embedded"]) + len(found["failed"]) == found["samples"] == len(expected)


@pytest.mark.slow
@pytest.mark.parametrize("case", [case for case, (_, expected) in CASES.items() if isinstance(expected, str)])
def test_where_damage_is_accepted_it_is_named_and_the_sum_comes_out(run, case):
    found = run["found"][case]["tolerant"]
    assert "error" not in found, found
    assert len(found["embedded"]) + len(found["failed"]) == found["samples"]
    assert [key for key, kind in found["failed"] if kind == "damaged_tar" and key.startswith("(damage at byte ")]


def test_reading_goes_on_after_damage(run):
    found = {case: both["tolerant"] for case, both in run["found"].items()}
    # of the neighbours of a gap members may be lost in it
    assert found["an overwritten header"]["failed"] == [
        [f"(damage at byte {len(member('1.jpg', JPEG))})", "damaged_tar"],
        ["1", "damaged_tar"],
        ["2", "damaged_tar"],
    ]
    assert found["a zeroed header"]["failed"][-1] == ["3", "damaged_tar"]
    assert found["two tars, one behind the other"]["embedded"] == ["1", "4"]
    assert found["a compressed tar with an overwritten header"]["samples"] == 2  # the first, and the damage
    assert found["a negative size"]["failed"][-1] == ["2", "damaged_tar"]


def test_memory_stays_under_its_bound(run):
    print(f"peak RSS of {len(CASES)} hostile shards: {run['peak_mb']} MB")
    assert run["peak_mb"] < MAX_PEAK_MB


def test_nothing_is_written_outside_the_output_folder_and_nothing_is_started_or_unpickled(run):
    out = str(run["folder"] / "out")
    strange = [event for event in run["seen"] if not all(path.startswith(out) for path in event[1:2])]
    assert strange == []
    names = {event[0] for event in run["seen"]}
    assert names <= {"open", "os.mkdir", "os.rename", "os.remove"}, names
    assert {"open", "os.rename"} <= names  # the watch does watch
    assert leftovers(run["folder"] / "cwd") == leftovers(run["folder"] / "home") == []
    outputs = leftovers(run["folder"] / "out")
    assert all(name.endswith((".parquet", ".ledger")) for name in outputs)
    found = [found for both in run["found"].values() for found in both.values() if found and "error" not in found]
    assert len(outputs) == 2 * len(found)
    assert run["changed"] == []


def test_no_log_line_holds_what_a_terminal_obeys(run):
    assert "\x1b" not in run["log"]
    assert "\a" not in run["log"]
    assert not [line for line in run["log"].splitlines() if "Traceback" in line]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors", "weights.tar"])
def test_a_checkpoint_that_is_a_malicious_pickle_is_refused_and_never_run(tmp_path, name):
    (tmp_path / name).write_bytes(pickle.dumps({"state_dict": Touch(tmp_path / "pwned")}))
    (tmp_path / "s.tar").write_bytes(GOOD)
    arguments = json.dumps({"model_name": "test_vit", "checkpoint_path": str(tmp_path / name)})
    job = run_cli("embed", tmp_path / "s.tar", tmp_path / "out" / "s.parquet", "--device", "cpu",
                  "--embedder", "embedders:TimmImageEmbedder", "--embedder-args", arguments)  # fmt: skip
    assert job.returncode == 1
    assert f"error: checkpoint_path '{tmp_path / name}' cannot be read" in job.stderr
    assert not (tmp_path / "pwned").exists()
    assert leftovers(tmp_path / "out") == []


def test_a_pickle_of_that_kind_does_run_where_it_is_loaded(tmp_path):
    pickle.loads(pickle.dumps(Touch(tmp_path / "pwned")))
    assert (tmp_path / "pwned").exists()
