"""What ledger, strict reading, hashes, provenance, checksums and fsync cost, against the same run without them.

    python benchmarks/integrity.py [PAIRS]

A shard of 500 JPEGs of about 80 KB, cut from scikit-image's photographs, is embedded by EfficientNet-Lite0 on the
CPU, and by its mean colour (the reader is all the work: the worst case). Both kinds of run are made in turn in one
process; what counts is the median of the ratios of neighbours, of wall time and of CPU time, which a busy machine
changes less.
"""

import io
import os
import statistics
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image
from skimage import data

from embedders import TimmImageEmbedder, embed_shard
from embedders.job import embed as job
from embedders.job import provenance
from embedders.job.locate import build_embedder
from embedders.output import files as outputs
from embedders.output import ledger, writer
from embedders.output.provenance import EmbedderRecord, FileRecord
from embedders.reading import loader
from embedders.reading.samples import Sample

IMAGES = 500
PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket")


def make_shard(path: Path) -> None:
    """Write a shard of crops of photographs."""
    random = np.random.default_rng(0)
    photographs = [Image.fromarray(getattr(data, name)()) for name in PHOTOGRAPHS]
    with tarfile.open(path, "w") as archive:
        for number in range(IMAGES):
            photograph = photographs[number % len(photographs)]
            width, height = (int(side * random.uniform(0.7, 0.95)) for side in photograph.size)
            left, top = random.integers(photograph.width - width), random.integers(photograph.height - height)
            crop = photograph.crop((left, top, left + width, top + height)).resize(
                (720, 540), Image.Resampling.BICUBIC
            )
            buffer = io.BytesIO()
            crop.save(buffer, "JPEG", quality=93)
            info = tarfile.TarInfo(f"{number:06}.jpg")
            info.size = buffer.tell()
            archive.addfile(info, io.BytesIO(buffer.getvalue()))


class FastMeanColor(TimmImageEmbedder):
    """The fastest reader, and no model."""

    def __init__(self):
        super().__init__("tf_efficientnet_lite0")

    def load_embedding_model(self, device):
        return lambda batch: batch.float().mean(dim=(2, 3))


class NoLedger(ledger.Ledger):
    """Counts, and accounts for nothing."""

    def open(self, key):
        self.seen += 1

    def settle(self, keys):
        self.embedded += len(keys)

    def check(self, max_failed_fraction):
        pass


def read_plainly(tar_path: str, load: loader.ShardLoad) -> Iterator[Sample]:
    """Read samples by tarfile's own loop, grouped by key: what most readers do."""
    sample = None
    with tarfile.open(tar_path, "r|") as archive:
        for member in archive:
            key, _, suffix = member.name.partition(".")
            if sample is None or key != sample.key:
                if sample is not None:
                    load.ledger.open(sample.key)
                    yield sample
                sample = Sample(key, member.name, member.offset)
            sample.members[suffix.lower()] = archive.extractfile(member).read()
    load.ledger.open(sample.key)
    yield sample


def write_plainly(*arguments, **options) -> pq.ParquetWriter:
    """Write Parquet without checksums."""
    return pq.ParquetWriter(*arguments, **options | {"write_page_checksum": False})


class PlainParquet:
    """`pyarrow.parquet`, with a writer that keeps no checksums."""

    def __getattr__(self, name):
        return write_plainly if name == "ParquetWriter" else getattr(pq, name)


NOTHING = EmbedderRecord("", None, "", None, None, {}, "cpu", {})
PIECES = {
    "ledger": [(job, "Ledger", NoLedger)],
    "strict tar": [(loader, "open_samples", read_plainly)],
    "hash of the shard": [(job, "describe_shard", lambda path: FileRecord(path, ""))],
    "provenance": [(job, "describe_embedder", lambda *_: NOTHING), (provenance, "hash_weights", lambda model: None)],
    "fsync": [(outputs.os, "fsync", lambda descriptor: None), (outputs, "sync_folder", lambda folder: None)],
    "checksums": [(writer, "pq", PlainParquet())],
    "changed while read": [(job.ShardReader, "check_unchanged", lambda reader: None)],
}


@contextmanager
def leave_out(pieces: list[str]) -> Iterator[None]:
    """Run the block without some of the pieces."""
    with ExitStack() as stack:
        for piece in pieces:
            for place, name, stub in PIECES[piece]:
                stack.enter_context(patch.object(place, name, stub))
        yield


def measure(embedder, shard: Path, folder: Path, pieces: list[str]) -> tuple[float, float]:
    """Wall and CPU seconds of one run without these pieces."""
    ledger_path = None if "ledger" in pieces else folder / "l.parquet"
    with leave_out(pieces):
        wall, cpu = time.perf_counter(), time.process_time()
        embed_shard(embedder, shard, folder / "s.parquet", ledger_path=ledger_path, device="cpu")
        return time.perf_counter() - wall, time.process_time() - cpu


def compare(embedder, shard: Path, folder: Path, pieces: list[str], runs: int) -> str:
    """Compare runs with all pieces and without these; the order within a pair changes from pair to pair."""
    measure(embedder, shard, folder, [])
    pairs = []
    for run in range(runs):
        order = ([], pieces) if run % 2 else (pieces, [])
        seconds = {bool(left_out): measure(embedder, shard, folder, left_out) for left_out in order}
        pairs.append((seconds[False], seconds[True]))
    costs = [statistics.median(whole[kind] / plain[kind] - 1 for whole, plain in pairs) for kind in (0, 1)]
    rate = IMAGES / statistics.median(whole[0] for whole, _ in pairs)
    return f"{rate:5.0f} images/s; cost {costs[0]:+6.1%} wall, {costs[1]:+6.1%} CPU"


def main() -> None:
    """Print the cost of all the pieces together, and of each alone where the reader is all the work."""
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 9
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shard = folder / "s.tar"
        make_shard(shard)
        print(f"{IMAGES} JPEGs of {shard.stat().st_size // IMAGES >> 10} KB, {runs} pairs, {os.cpu_count()} cores")
        print(f"{'mean colour':20} {compare(FastMeanColor(), shard, folder, list(PIECES), runs)}")
        for piece in PIECES:
            print(f"  {piece:18} {compare(FastMeanColor(), shard, folder, [piece], runs)}")
        lite0 = build_embedder("examples/lite0.py:Lite0Embedder", {})
        print(f"{'Lite0':20} {compare(lite0, shard, folder, list(PIECES), 5)}")


if __name__ == "__main__":
    main()
