"""Thumbnails of samples, read from their shards, as `data:` URLs for a page.

A picture that cannot be read is left out: its shard may have been moved, and a failed sample may have no image.
Shards with an address are fetched one after the other, up to a limit.
"""

import base64
import io
import logging
import os
from collections.abc import Mapping

from PIL import Image

from embedders.errors import ShardError, TarquetError
from embedders.output.failed import SampleError
from embedders.reading.copies import Copies
from embedders.reading.images import ImageError, convert_to_rgb, open_image
from embedders.reading.remote import is_remote
from embedders.reading.samples import IMAGE_SUFFIXES, Sample, read_chosen, select_image
from embedders.report.subset import SampleName

log = logging.getLogger(__name__)

# Pixels of the longer side: of the many pictures of the map, and of the few in the other sections.
SMALL_SIDE, LARGE_SIDE = 80, 160
# Maximum size of all pictures of a page, as text; beyond it, small ones are left out.
MAX_TOTAL_BYTES = 5 << 20
# Maximum size of the shards that are fetched for a page.
MAX_FETCHED_BYTES = 4 << 30


class Thumbnails:
    """Pictures of samples.

    Args:
        tar_paths: Path of each shard by name.
        image_suffix: Suffix of the images, if a sample has several.

    Attributes:
        lost_shards: Names of the shards that could not be read.
        is_full: Whether some small pictures were left out because of the size limit.
    """

    def __init__(self, tar_paths: Mapping[str, str], image_suffix: str = ""):
        self.lost_shards: list[str] = []
        self.is_full = False
        self._tar_paths = tar_paths
        self._image_suffix = image_suffix
        self._addresses: dict[SampleName, str] = {}
        self._total_bytes = 0
        self._fetched_bytes = 0

    def get(self, wanted: SampleName) -> str | None:
        """Return the picture of a sample as a `data:` URL; `None` if there is none."""
        return self._addresses.get(wanted)

    def read(self, sides: Mapping[SampleName, int]) -> None:
        """Read pictures, in one pass through each shard.

        Args:
            sides: The longer side of each picture, in pixels, by sample.
        """
        by_shard: dict[str, dict[SampleName, int]] = {}
        for wanted, side in sides.items():
            by_shard.setdefault(wanted.shard, {})[wanted] = side
        for shard in sorted(by_shard):
            try:
                if self._fetched_bytes > MAX_FETCHED_BYTES and is_remote(self._tar_paths[shard]):
                    raise ShardError(f"more than {MAX_FETCHED_BYTES} bytes were fetched for pictures; expected fewer")
                with Copies([self._tar_paths[shard]]) as copies:
                    tar_path = copies.find(self._tar_paths[shard])
                    if is_remote(self._tar_paths[shard]):
                        self._fetched_bytes += os.path.getsize(tar_path)
                    self._read_shard(shard, tar_path, by_shard[shard])
            except TarquetError as error:
                if not self.lost_shards:
                    log.warning("no pictures of this shard, and maybe of others: %s", error)
                self.lost_shards.append(shard)

    def _read_shard(self, shard: str, tar_path: str, sides: dict[SampleName, int]) -> None:
        left = set(sides)
        for sample in read_chosen(tar_path, {wanted.key for wanted in sides}):
            names = {SampleName(shard, sample.account, sample.offset)}
            if sample.problem is None:
                names.add(SampleName(shard, sample.key))
            for wanted in names & left:
                left.discard(wanted)
                self._add(wanted, sample, sides[wanted])
            if not left:
                return  # the rest of the tar is not needed

    def _add(self, wanted: SampleName, sample: Sample, side: int) -> None:
        if self._total_bytes > MAX_TOTAL_BYTES and side <= SMALL_SIDE:
            self.is_full = True
            return
        address = draw_sample(sample, side, self._image_suffix)
        if address is not None:
            self._total_bytes += len(address)
            self._addresses[wanted] = address


def draw_sample(sample: Sample, side: int, image_suffix: str = "") -> str | None:
    """Return the thumbnail of a sample or, if it has several images, of the first one that can be decoded."""
    try:
        suffixes = [select_image(sample, image_suffix)[0]]
    except SampleError:
        suffixes = [name for name in sample.members if name.rpartition(".")[2] in IMAGE_SUFFIXES]
    for name in suffixes:
        try:
            return draw_thumbnail(sample.members[name] or b"", side)
        except ImageError:
            continue
    return None


def draw_thumbnail(encoded: bytes, side: int) -> str:
    """Return a picture of at most `side` by `side` pixels as a `data:` URL.

    Raises:
        ImageError: The image cannot be decoded.
    """
    opened = open_image(encoded)
    opened.draft("RGB", (side * 2, side * 2))  # decodes a JPEG at a fraction of its size
    image = convert_to_rgb(opened)
    image.thumbnail((side, side), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=50 if side <= SMALL_SIDE else 70)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"
