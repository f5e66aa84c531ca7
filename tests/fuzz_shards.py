"""Coverage-guided fuzzing of what a stranger's tar meets: headers, grouping, JSON, image decoders.

    pip install atheris
    nice -n 19 python tests/fuzz_shards.py -max_total_time=3600 -rss_limit_mb=2048 -timeout=20 FOLDER_TO_KEEP_FINDS

Not a test of `make test`: atheris has no wheels for every Python, and an hour is an hour. What it found became rows
of `test_hostile.py`. A finding is any exception but `ShardError`, a hang, growing memory, or a broken promise:

- a shard is refused if, and only if, reading on after damage names at least one damaged place;
- of a sample that was let through, every member is there, and it decodes or fails by name.
"""

import io
import logging
import os
import random
import sys
import tarfile
import tempfile
import warnings
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["embedders", "tarfile", "gzip", "json", "PIL"]):
    from mean_color import MeanColor
    from PIL import Image

    from embedders.errors import ShardError
    from embedders.output.failed import FailedSample
    from embedders.output.ledger import Ledger
    from embedders.output.writer import write_ledger
    from embedders.reading.loader import ShardLoad, decode_sample, open_samples
    from embedders.reading.samples import read_samples

from support.tools import make_image, make_tar

warnings.simplefilter("ignore")
logging.disable()
# Smaller than Pillow's own: a limit that the fuzzer's memory limit can hold.
Image.MAX_IMAGE_PIXELS = 1 << 21

EMBEDDER = MeanColor()
SCRATCH = Path(tempfile.mkdtemp(prefix="fuzz-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))


def make_seeds(folder: Path) -> None:
    """Write small tars of every kind, for the fuzzer to start from."""
    images = {
        form.lower(): make_image(1, (9, 7), form)
        for form in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000")
    }
    try:
        images["avif"] = make_image(1, (9, 7), "AVIF")
    except (KeyError, OSError):
        print("this Pillow has no AVIF")
    for suffix, image in images.items():
        suffix = {"jpeg2000": "jp2"}.get(suffix, suffix)
        make_tar(folder / f"{suffix}.tar", {f"1.{suffix}": image, "1.json": {"a": [1, "b"]}, "1.txt": b"text"})
    for name, form in (("pax", tarfile.PAX_FORMAT), ("gnu", tarfile.GNU_FORMAT), ("ustar", tarfile.USTAR_FORMAT)):
        long = "d/" * 40 + "é" * 20 if form != tarfile.USTAR_FORMAT else "d/" * 60 + "x"
        make_tar(folder / f"{name}.tar", {f"{long}.jpg": images["jpeg"], f"{long}.json": b"{}"}, format=form)
    make_tar(folder / "gz.tar", {"1.png": images["png"]}, "w:gz")
    with tarfile.open(folder / "odd.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        for number, kind in enumerate((tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE,
                                       tarfile.DIRTYPE, tarfile.GNUTYPE_SPARSE, tarfile.CONTTYPE)):  # fmt: skip
            info = tarfile.TarInfo(f"{number}.png")
            info.type, info.linkname = kind, "target"
            archive.addfile(info)
        info = tarfile.TarInfo("p.png")
        info.size = len(images["png"])
        info.pax_headers = {"path": "q.png", "GNU.sparse.major": "1", "GNU.sparse.minor": "0", "comment": "c"}
        archive.addfile(info, io.BytesIO(images["png"]))
    for path in folder.glob("*.tar"):  # the end of a tar is 10 KB of zeros, of which two blocks are enough
        content = path.read_bytes()
        if content[:2] != b"\x1f\x8b":
            path.write_bytes(content.rstrip(b"\0") + b"\0" * (1024 + -len(content.rstrip(b"\0")) % 512))


def mutate(content: bytes, max_size: int, seed: int) -> bytes:
    """Mutate, then mend most header checksums: else hardly any mutant gets past the first header."""
    content = bytearray(atheris.Mutate(content, max_size))
    chance = random.Random(seed)
    for at in range(0, len(content) - 511, 512):
        block = content[at : at + 512]
        if block[257:262] == b"ustar" and chance.random() < 0.9:
            content[at + 148 : at + 156] = b"%06o\0 " % (256 + sum(block[:148]) + sum(block[156:]))
    return bytes(content)


def try_shard(content: bytes) -> None:
    """Read a shard in both ways, decode what can be used, and hold the promises."""
    path = SCRATCH / f"{os.getpid()}.tar"
    path.write_bytes(content)
    is_refused = False
    try:
        for _ in read_samples(str(path)):
            pass
    except ShardError:
        is_refused = True
    ledger = Ledger(str(path))
    for sample in open_samples(str(path), ShardLoad(ledger, accept_damage=True)):
        outcome = decode_sample(EMBEDDER, sample)
        if isinstance(outcome, FailedSample):
            assert outcome.kind in ("undecodable", "no_single_image", "bad_metadata"), outcome
            ledger.fail(outcome)
        else:
            assert outcome[0].shape == (3, 224, 224)
            ledger.settle([sample.key])
    ledger.check(1)
    assert not ledger.unsettled()
    write_ledger(io.BytesIO(), ledger.failed, {})  # every text can be stored
    assert all("\n" not in failed.message for failed in ledger.failed), ledger.failed
    assert is_refused == any(failed.key.startswith("(damage at byte ") for failed in ledger.failed)


if __name__ == "__main__":
    seeds = SCRATCH / "seeds"
    seeds.mkdir()
    make_seeds(seeds)
    atheris.Setup([*sys.argv, str(seeds)], try_shard, custom_mutator=mutate)
    atheris.Fuzz()
