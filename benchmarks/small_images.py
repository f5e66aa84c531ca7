"""What one job does at most, however many cores it has: images per second where decoding and model are nearly free.

    python benchmarks/small_images.py [RUNS] [IMAGES ...]

JPEGs of 32 x 32 pixels, read by the default loader, and a model that returns their first pixel. What is left is what
Python does with each image, which one thread of a process can do at a time. By number of decoding threads, medians.
With several lengths of the shard it also shows whether time per image and memory grow with the length.
"""

import json
import resource
import statistics
import subprocess
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
PICTURES = 1000  # different ones; a longer shard repeats them


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
    pictures = []
    for _ in range(min(images, PICTURES)):
        encoded = BytesIO()
        Image.fromarray(random.integers(256, size=(SIDE, SIDE, 3), dtype=np.uint8)).save(encoded, "JPEG")
        pictures.append(encoded.getvalue())
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for number in range(images):
            content = pictures[number % PICTURES]
            header = tarfile.TarInfo(f"{number:09d}.jpg")
            header.size = len(content)
            tar.addfile(header, BytesIO(content))


def measure(path: str, runs: int) -> dict[str, float]:
    """Images per second by number of threads, and peak memory in MB, of this process."""
    embedder = FirstPixel()
    rates = {threads: [] for threads in THREADS}
    for _ in range(runs + 1):
        for threads in THREADS:
            embedder.num_threads_per_worker = threads
            start = time.perf_counter()
            ledger = embed_shard(embedder, path, f"{path}.parquet", ledger_path=f"{path}.ledger", device="cpu")
            rates[threads].append(ledger.embedded / (time.perf_counter() - start))
    # The first run warms up.
    measured = {f"{threads} threads": statistics.median(rates[threads][1:]) for threads in THREADS}
    return measured | {"peak MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def main(runs: int = 5, *lengths: int) -> None:
    """Print a line for each length; each is measured in a process of its own."""
    for images in lengths or (10_000,):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "small.tar"
            write_shard(path, images)
            command = [sys.executable, __file__, "--measure", path, str(runs)]
            measured = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        print(f"{images:8} images:", ", ".join(f"{what} {value:.0f}" for what, value in measured.items()), flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        print(json.dumps(measure(sys.argv[2], int(sys.argv[3]))))
    else:
        main(*map(int, sys.argv[1:]))
