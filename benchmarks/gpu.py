"""Compares Tarquet end to end on a GPU with the model alone, on batches in GPU memory, and with the reader alone.

    python benchmarks/gpu.py [--shards 'FOLDER/*.tar'] [--repeat N] [--models NAME ...] [--batch-size N] [--runs N]

Without `--shards`, the shards are cut from photographs, which needs Debian; elsewhere, use shards that
`photographs.py` wrote. Each is embedded `--repeat` times, so that a run takes seconds. The weights are random, which
does not affect the time. The three are measured in turn in one process, after a warm-up round; the results are
medians. The slower of model and reader limits the pipeline; the table shows which one. Use `--device cpu` to try the
script.
"""

import argparse
import glob
import os
import platform
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory

import timm
import torch
import torchvision
from photographs import describe_shards, write_shards

from embedders import TimmImageEmbedder
from embedders.gpu.device import keep_freed_memory
from embedders.job.embed import embed_shards
from embedders.job.shard_job import ShardJob

MODEL, READER, OURS = "model alone", "reader alone", "ours"


def describe_machine(device: str) -> str:
    """Return a description of the device."""
    name = torch.cuda.get_device_name() if device == "cuda" else "no GPU"
    versions = f"torch {torch.__version__}, torchvision {torchvision.__version__}, timm {timm.__version__}"
    return (
        f"{time.strftime('%Y-%m-%d')}, {name}, {len(os.sched_getaffinity(0))} cores; {versions}, "
        f"CUDA {torch.version.cuda}, Python {platform.python_version()}"
    )


def make_contestants(embedder: TimmImageEmbedder, device: str, paths: list[str]) -> dict[str, Callable[[], int]]:
    """Return the three functions to time; each returns the number of images that it processed."""
    model = embedder.load_embedding_model(device)
    sides = embedder.describe_preprocessing()["input_size"][1:]
    resident = torch.randint(256, (embedder.batch_size, 3, *sides), dtype=torch.uint8, device=device)

    def run_reader() -> int:
        return sum(len(batch) for path in paths for batch, _ in embedder.load_dataset_shard(path))

    batches = max(1, run_reader() // embedder.batch_size)

    def run_model() -> int:
        for _ in range(batches):
            vectors = model(resident)
        vectors.cpu()  # waits for all of them
        return batches * len(resident)

    def run_ours() -> int:
        with TemporaryDirectory() as folder:
            jobs = [
                ShardJob(path, f"{folder}/{number}.parquet", f"{folder}/{number}.ledger.parquet")
                for number, path in enumerate(paths)
            ]
            return sum(ledger.embedded for _, ledger in embed_shards(embedder, jobs, device=device))

    return {MODEL: run_model, READER: run_reader, OURS: run_ours}


def measure(contestants: dict[str, Callable[[], int]], runs: int) -> dict[str, list[float]]:
    """Measure the functions in turn, and return images per second."""
    rates = {name: [] for name in contestants}
    for run in range(-1, runs):
        for name, contestant in contestants.items():
            start_s = time.perf_counter()
            images = contestant()
            if run >= 0:
                rates[name].append(images / (time.perf_counter() - start_s))
    return rates


def describe_rates(model_name: str, rates: dict[str, list[float]]) -> str:
    """Print a row of the table."""
    medians = {name: statistics.median(measured) for name, measured in rates.items()}
    limit = min((MODEL, READER), key=medians.get)
    ratio = statistics.median(ours / most for ours, most in zip(rates[OURS], rates[limit], strict=True))
    row = "".join(f"{medians[name]:13.0f}" for name in (MODEL, READER, OURS))
    return f"{model_name:24}{row}  {ratio:5.2f} of the {limit}"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", default="")
    parser.add_argument("--repeat", type=int, default=8)
    parser.add_argument("--models", nargs="+", default=["vit_base_patch16_224", "resnet50"])
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--device", default="cuda")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch sees no GPU here; --device cpu only tries the script out")
    if options.device == "cpu":
        keep_freed_memory()
    with nullcontext() if options.shards else TemporaryDirectory() as folder:
        paths = sorted(glob.glob(options.shards)) if options.shards else write_shards(Path(folder), 8, 256)
        if not paths:
            parser.error(f"--shards {options.shards!r} finds no file; expected tar shards of images")
        print(describe_machine(options.device))
        print(
            f"{describe_shards(paths)}, each {options.repeat} times; batches of {options.batch_size}; "
            f"median of {options.runs}"
        )
        print(f"{'images/s':24}{MODEL:>13}{READER:>13}{OURS:>13}  ours is", flush=True)
        for name in options.models:
            embedder = TimmImageEmbedder(name, batch_size=options.batch_size)
            contestants = make_contestants(embedder, options.device, paths * options.repeat)
            print(describe_rates(name, measure(contestants, options.runs)), flush=True)


if __name__ == "__main__":
    main()
