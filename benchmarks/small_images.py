"""What one job does at most, however many cores it has: images per second where decoding and model are nearly free.

    python benchmarks/small_images.py [RUNS] [IMAGES]

JPEGs of 32 x 32 pixels, read by the default loader, and a model that gives their first pixel. What is left is what
Python does with each image, which one thread of a process can do at a time. By number of decoding threads; medians.
"""

import statistics
import sys
import tarfile
import tempfile
import time
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from embedders import ImageEmbedder, embed_shard
from embedders.reading.pixels import decode_to_tensor

SIDE = 32
THREADS = (1, 2, 4, 16)


class FirstPixel(ImageEmbedder):
    """The first pixel of an image as its vector."""

    batch_size = 256

    def decode(self, encoded: bytes) -> torch.Tensor:
        """The pixels as they are."""
        return decode_to_tensor(encoded)

    def load_embedding_model(self, device: str):
        """Three numbers."""
        return lambda batch: batch[:, :, 0, 0].float()


def write_shard(path: Path, images: int) -> None:
    """Write a shard of small JPEGs of noise."""
    random = np.random.default_rng(0)
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for number in range(images):
            encoded = BytesIO()
            Image.fromarray(random.integers(256, size=(SIDE, SIDE, 3), dtype=np.uint8)).save(encoded, "JPEG")
            header = tarfile.TarInfo(f"{number:09d}.jpg")
            header.size = encoded.tell()
            encoded.seek(0)
            tar.addfile(header, encoded)


def main(runs: int = 5, images: int = 10_000) -> None:
    """Print a line for each number of threads."""
    embedder = FirstPixel()
    rates = {threads: [] for threads in THREADS}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "small.tar"
        write_shard(path, images)
        for _ in range(runs + 1):
            for threads in THREADS:
                embedder.num_threads_per_worker = threads
                start = time.perf_counter()
                embed_shard(embedder, path, f"{path}.parquet", ledger_path=f"{path}.ledger", device="cpu")
                rates[threads].append(images / (time.perf_counter() - start))
    for threads, measured in rates.items():
        print(f"{threads:3} decoding threads: {statistics.median(measured[1:]):6.0f} images/s")  # the first warms up


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
