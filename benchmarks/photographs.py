"""The pictures of the benchmarks: JPEGs cut from real photographs, in tar shards of the WebDataset form.

    python benchmarks/photographs.py FOLDER [SHARDS] [IMAGES_PER_SHARD]

The photographs are from Debian's package `plasma-workspace-wallpapers`, 94 MB, which is downloaded once, unpacked to
a cache folder and never installed. Crops differ in position, scale, aspect ratio and size, and are the same in every
run.
"""

import io
import os
import random
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

from PIL import Image

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tarquet-benchmarks"
PACKAGE = "plasma-workspace-wallpapers"
# The package's other pictures are drawn or rendered.
PHOTOGRAPHS = (
    *("BytheWater", "ColdRipple", "ColorfulCups", "DarkestHour", "EveningGlow", "FallenLeaf", "Grey", "Kite"),
    *("OneStandsOut", "Path", "summer_1am"),
)
CROPS = 660  # different ones; after that, they repeat
MEGAPIXELS = (0.2, 0.7)
FORMS = (4 / 3, 3 / 2, 1, 3 / 4)  # width / height
QUALITY = 88  # makes 80 KB on average


def find_photographs() -> list[Path]:
    """Return the photographs, and download the package first if necessary."""
    folder = CACHE / "wallpapers"
    if not folder.is_dir():
        fetch_package(folder)
    found = {path.parts[-4]: path for path in folder.rglob("2560x1600.jpg")}
    missing = [name for name in PHOTOGRAPHS if name not in found]
    if missing:
        sys.exit(
            f"{folder}: {missing[0]!r} is not among the photographs; remove the folder, to fetch {PACKAGE} again"
        )
    return [found[name] for name in PHOTOGRAPHS]


def fetch_package(folder: Path) -> None:
    """Download Debian's package and unpack its pictures."""
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            sys.exit(f"the benchmarks' photographs come from Debian's {PACKAGE}; expected {tool}, as Debian has it")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as name:
        download = subprocess.run(["apt-get", "download", PACKAGE], cwd=name, capture_output=True, text=True)
        if download.returncode:
            reason = (download.stderr.strip().splitlines() or ["no reason given"])[-1]
            sys.exit(f"apt-get download {PACKAGE}: {reason}; expected Debian's package lists; try: apt-get update")
        (package,) = Path(name).glob("*.deb")
        subprocess.run(["dpkg-deb", "-x", package, Path(name) / "unpacked"], check=True)
        (Path(name) / "unpacked/usr/share/wallpapers").rename(folder)


@cache
def cut_crops(count: int) -> list[bytes]:
    """Return JPEGs of 0.2 to 0.7 megapixels, with the crops of one photograph far apart."""
    chance = random.Random(0)
    photographs = [Image.open(path).convert("RGB") for path in find_photographs()]
    return [cut_crop(photographs[number % len(photographs)], chance) for number in range(count)]


def cut_crop(photograph: Image.Image, chance: random.Random) -> bytes:
    """Return one crop from a random position, reduced by a random factor that is possible with its size."""
    pixels, form = chance.uniform(*MEGAPIXELS) * 1e6, chance.choice(FORMS)
    width, height = round((pixels * form) ** 0.5), round((pixels / form) ** 0.5)
    factor = chance.uniform(1, min(photograph.width / width, photograph.height / height))
    left = chance.uniform(0, photograph.width - factor * width)
    top = chance.uniform(0, photograph.height - factor * height)
    box = (left, top, left + factor * width, top + factor * height)
    buffer = io.BytesIO()
    photograph.resize((width, height), Image.Resampling.LANCZOS, box=box).save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()


def write_shards(folder: Path, shards: int, images: int) -> list[str]:
    """Write shards of `images` pictures each, and return their paths."""
    crops = cut_crops(min(CROPS, shards * images))
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for shard in range(shards):
        paths.append(str(folder / f"{shard:05d}.tar"))
        with tarfile.open(paths[-1], "w") as archive:
            for number in range(shard * images, (shard + 1) * images):
                member = tarfile.TarInfo(f"{number:08d}.jpg")
                content = crops[number % len(crops)]
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return paths


def read_pictures(paths: Iterable[str]) -> Iterator[bytes]:
    """Return all pictures of some shards."""
    for path in paths:
        with tarfile.open(path) as archive:
            for member in archive:
                if member.name.endswith(".jpg"):
                    yield archive.extractfile(member).read()


def describe_shards(paths: list[str]) -> str:
    """Return the number of pictures and their average size as text."""
    count = total_bytes = total_pixels = 0
    for content in read_pictures(paths):
        width, height = Image.open(io.BytesIO(content)).size
        count, total_bytes, total_pixels = count + 1, total_bytes + len(content), total_pixels + width * height
    return (
        f"{count} JPEGs in {len(paths)} shards, {min(count, CROPS)} different ones, on average "
        f"{total_bytes / count / 1e3:.0f} KB and {total_pixels / count / 1e6:.2f} megapixels"
    )


if __name__ == "__main__":
    numbers = [int(argument) for argument in sys.argv[2:]]
    print(describe_shards(write_shards(Path(sys.argv[1]), *(numbers + [8, 250][len(numbers) :]))))
