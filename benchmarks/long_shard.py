"""Does the cost of a shard grow with its samples, and no faster? Seconds and peak memory, up to a million samples.

    python benchmarks/long_shard.py [SAMPLES ...]

Images of one pixel and a model that looks at nothing else: what is left is what the project itself does with each
sample. Each shard is embedded in a process of its own. The peak counts what Python and torch take when they start.
"""

import json
import resource
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import torch

from embedders import ImageEmbedder, embed_shard

SAMPLES = (10_000, 100_000, 1_000_000)


class OnePixel(ImageEmbedder):
    """The three bytes of a sample as its vector."""

    batch_size = 256

    def decode(self, encoded: bytes) -> torch.Tensor:
        """Three bytes as three numbers."""
        return torch.frombuffer(bytearray(encoded), dtype=torch.uint8)

    def load_embedding_model(self, device: str):
        """The numbers as they are."""
        return lambda batch: batch.float()


def write_shard(path: Path, samples: int) -> None:
    """Write a shard of samples of three bytes each."""
    header = tarfile.TarInfo()
    header.size = 3
    with path.open("wb") as file:
        for number in range(samples):
            header.name = f"{number:09d}.jpg"
            file.write(header.tobuf(tarfile.USTAR_FORMAT))
            file.write(number.to_bytes(3, "big").ljust(512, b"\0"))
        file.write(bytes(1024))


def measure(path: str) -> dict[str, float]:
    """Embed one shard in this process."""
    start = time.perf_counter()
    ledger = embed_shard(OnePixel(), path, f"{path}.parquet", ledger_path=f"{path}.ledger", device="cpu")
    seconds = time.perf_counter() - start
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"embedded": ledger.embedded, "seconds": seconds, "peak_mb": peak_mb}


def main(*counts: int) -> None:
    """Print a line for each length."""
    with tempfile.TemporaryDirectory() as folder:
        for count in counts or SAMPLES:
            path = Path(folder) / "long.tar"
            write_shard(path, count)
            child = subprocess.run([sys.executable, __file__, path], capture_output=True, text=True, check=True)
            result = json.loads(child.stdout.splitlines()[-1])
            if result["embedded"] != count:
                sys.exit(f"{result['embedded']} of {count} samples were embedded")
            micros = result["seconds"] / count * 1e6
            print(f"{count:9} samples {result['seconds']:7.1f} s {micros:6.0f} µs each {result['peak_mb']:6.0f} MB")


if __name__ == "__main__":
    if sys.argv[1:] and sys.argv[1].endswith(".tar"):
        print(json.dumps(measure(sys.argv[1])))
    else:
        main(*map(int, sys.argv[1:]))
