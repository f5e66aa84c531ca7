"""Measures the maximum speed of one job, for any number of cores: images per second if decoding and model are cheap.

    python benchmarks/small_images.py [RUNS] [IMAGES] [CHECKOUT ...]

The samples are like those of img2dataset: a JPEG of 32 x 32 pixels, a .json and a .txt. The default loader reads
them, with an id column and two metadata columns, and the model returns the first pixel. The remaining cost is Python
code per image, which only one thread of a process can run at a time. The results are medians of wall and CPU time by
number of decoding threads. Other checkouts of this repository, made by `git worktree add`, are measured in turn,
each in a separate process.
"""

import json
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

SIDE = 32
THREADS = (1, 2, 16)
PICTURES = 1000  # different ones; a longer shard repeats them
OPTIONS = {"id_col": "id", "metadata_columns": {"caption": "string", "width": "int64"}, "device": "cpu"}


def write_shard(path: Path, images: int) -> None:
    """Write a shard of small JPEGs of noise, each with a .json and a .txt."""
    random = np.random.default_rng(0)
    pictures = []
    for _ in range(min(images, PICTURES)):
        encoded = BytesIO()
        Image.fromarray(random.integers(256, size=(SIDE, SIDE, 3), dtype=np.uint8)).save(encoded, "JPEG")
        pictures.append(encoded.getvalue())
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for number in range(images):
            caption, url = f"caption of picture {number}", f"https://example.org/{number}.jpg"
            about = {"id": f"{number:09d}", "url": url, "caption": caption, "width": SIDE, "height": SIDE}
            about |= {"status": "success", "sha256": "0" * 64, "exif": "{}"}
            members = {
                "jpg": pictures[number % PICTURES],
                "json": json.dumps(about).encode(),
                "txt": caption.encode(),
            }
            for suffix, content in members.items():
                header = tarfile.TarInfo(f"{number:09d}.{suffix}")
                header.size = len(content)
                tar.addfile(header, BytesIO(content))


def serve(path: str) -> None:
    """Embed the shard for each number of threads on stdin, and print the seconds of wall and of CPU time."""
    from embedders import ImageEmbedder, embed_shard

    try:
        from embedders.pixels import decode_to_tensor  # where it was at 5e42e26
    except ImportError:
        from embedders.reading.pixels import decode_to_tensor

    class FirstPixel(ImageEmbedder):
        batch_size = 256

        def decode(self, encoded):
            return decode_to_tensor(encoded)

        def load_embedding_model(self, device):
            return lambda batch: batch[:, :, 0, 0].float()

    embedder = FirstPixel()
    output = f"{path}.{os.getpid()}"
    for line in sys.stdin:
        embedder.num_threads_per_worker = int(line)
        wall, cpu = time.perf_counter(), time.process_time()
        embed_shard(embedder, path, f"{output}.parquet", ledger_path=f"{output}.ledger", **OPTIONS)
        print(time.perf_counter() - wall, time.process_time() - cpu, flush=True)


def start(checkout: Path, path: Path) -> subprocess.Popen:
    """Start a process that serves with the code of a checkout."""
    environment = os.environ | {"PYTHONPATH": str(checkout)}
    command = [sys.executable, __file__, "serve", str(path)]
    return subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def measure(process: subprocess.Popen, threads: int) -> tuple[float, float]:
    """Embed one shard in a process, and return the seconds of wall and of CPU time."""
    process.stdin.write(f"{threads}\n")
    process.stdin.flush()
    wall, cpu = map(float, process.stdout.readline().split())
    return wall, cpu


def main(runs: int = 5, images: int = 10_000, *others: str) -> None:
    """Print a line for each checkout and number of threads."""
    checkouts = [Path(__file__).resolve().parent.parent, *map(Path, others)]
    seconds = {(checkout, threads): [] for checkout in checkouts for threads in THREADS}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "small.tar"
        write_shard(path, images)
        processes = {checkout: start(checkout, path) for checkout in checkouts}
        for _ in range(runs + 1):
            for checkout, threads in seconds:
                seconds[checkout, threads].append(measure(processes[checkout], threads))
        for process in processes.values():
            process.stdin.close()
            process.wait()
    for (checkout, threads), measured in seconds.items():
        wall, cpu = (statistics.median(part) for part in zip(*measured[1:], strict=True))  # the first warms up
        rate, cost = images / wall, cpu / images * 1e6
        print(f"{checkout.name:10} {threads:3} decoding threads: {rate:6.0f} images/s, {cost:4.0f} us of CPU each")


if __name__ == "__main__":
    if sys.argv[1:2] == ["serve"]:
        serve(sys.argv[2])
    else:
        main(*map(int, sys.argv[1:3]), *sys.argv[3:])
