"""Compares Tarquet end to end on a GPU with its limits, which are the model alone and the reader alone.

    python benchmarks/gpu.py [--shards 'FOLDER/*.tar'] [--repeat N] [--models NAME ...] [--batch-size N] [--runs N]
                             [--compile] [--peer]

Without `--shards`, the shards are cut from photographs, which needs Debian; elsewhere, use shards that
`photographs.py` wrote. Each is embedded `--repeat` times, so that a run takes seconds. The weights are random, which
does not affect the time; a GPU computes in bfloat16. Measured in turn, after a warm-up round, as medians:

- model alone: the model on batches that are already in GPU memory;
- reader alone: batches of the default loader, without a model;
- ours: `embed_shards`, files included;
- 2 jobs: the same work by two processes that share the GPU, as with `jobs_per_gpu: 2`;
- plain loop, with `--peer`: WebDataset's loader with a worker process per core, timm's transform, the same model.

The slower of model and reader limits one job; the table shows which one. The last columns are the time until a call
of the model returns, in ms: alone, and beside the reader's threads. A call only launches the model's kernels, so a
longer time means that the threads slow the launches down. Use `--device cpu` to try the script.
"""

import argparse
import glob
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
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

MODELS = [
    "vit_base_patch32_clip_224",
    "vit_base_patch16_clip_224",
    "vit_large_patch14_clip_224",
    "resnet50",
]
MODEL, READER, OURS, JOBS, PLAIN = "model alone", "reader alone", "ours", "2 jobs", "plain loop"
COLUMNS = (MODEL, READER, OURS, JOBS, PLAIN)
PROCESSES = 2


class TimedEmbedder(TimmImageEmbedder):
    """Records how long each call of the model takes to return, in seconds."""

    def load_embedding_model(self, device: str) -> Callable[[torch.Tensor], torch.Tensor]:
        """Load the model, and record its calls in `calls`."""
        model = super().load_embedding_model(device)
        self.calls: list[float] = []

        def run(batch: torch.Tensor) -> torch.Tensor:
            start_s = time.perf_counter()
            vectors = model(batch)
            self.calls.append(time.perf_counter() - start_s)
            return vectors

        return run

    def take_call_ms(self) -> float:
        """Return the median of the recorded calls in ms, and forget them."""
        median = statistics.median(self.calls)
        self.calls.clear()
        return median * 1e3


def describe_machine(device: str) -> str:
    """Return a description of the device."""
    name = torch.cuda.get_device_name() if device == "cuda" else "no GPU"
    versions = f"torch {torch.__version__}, torchvision {torchvision.__version__}, timm {timm.__version__}"
    return (
        f"{time.strftime('%Y-%m-%d')}, {name}, {len(os.sched_getaffinity(0))} cores; {versions}, "
        f"CUDA {torch.version.cuda}, Python {platform.python_version()}"
    )


def embed(embedder: TimmImageEmbedder, device: str, paths: Sequence[str]) -> int:
    """Embed shards into a folder that is removed, and return the number of images."""
    with TemporaryDirectory() as folder:
        jobs = [
            ShardJob(path, f"{folder}/{number}.parquet", f"{folder}/{number}.ledger.parquet")
            for number, path in enumerate(paths)
        ]
        return sum(ledger.embedded for _, ledger in embed_shards(embedder, jobs, device=device))


class Jobs:
    """Processes that share the GPU and embed the shards between them."""

    def __init__(self, arguments: Sequence[str], paths: Sequence[str]):
        threads = max(1, len(os.sched_getaffinity(0)) // PROCESSES)
        command = [sys.executable, __file__, "--serve", str(threads), *arguments]
        self.parts = [paths[part::PROCESSES] for part in range(PROCESSES)]
        self.processes = [
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in self.parts
        ]

    def run(self) -> int:
        """Embed all the shards once, and return the number of images."""
        for process, part in zip(self.processes, self.parts, strict=True):
            process.stdin.write("\t".join(part) + "\n")
            process.stdin.flush()
        return sum(int(process.stdout.readline()) for process in self.processes)

    def close(self) -> None:
        """End the processes."""
        for process in self.processes:
            process.stdin.close()
            process.wait()


def serve(embedder: TimmImageEmbedder, device: str, threads: int) -> None:
    """Embed the shards of each line on stdin, and print the number of images."""
    embedder.num_threads_per_worker = threads
    for line in sys.stdin:
        print(embed(embedder, device, line.rstrip("\n").split("\t")), flush=True)


def run_plain_loop(embedder: TimmImageEmbedder, model: Callable, device: str, paths: list[str]) -> int:
    """Embed with WebDataset's loader and timm's transform."""
    import webdataset as wds
    from timm.data import create_transform, resolve_data_config

    config = resolve_data_config(pretrained_cfg=timm.get_pretrained_cfg(embedder.model_name).to_dict())
    transform = create_transform(**config, is_training=False)
    images = wds.WebDataset(paths, shardshuffle=False).decode("pil").to_tuple("jpg").map_tuple(transform)
    workers = min(len(paths), len(os.sched_getaffinity(0)))
    batches = wds.WebLoader(
        images.batched(embedder.batch_size), batch_size=None, num_workers=workers, pin_memory=True
    )
    autocast = torch.autocast(device, torch.bfloat16) if device == "cuda" else nullcontext()
    with torch.inference_mode(), autocast:
        return sum(len(model(batch.to(device, non_blocking=True)).float().cpu()) for (batch,) in batches)


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


def measure_model(name: str, options: argparse.Namespace, paths: list[str]) -> str:
    """Measure one model, and return its row of the table."""
    device = options.device
    embedder = TimedEmbedder(name, batch_size=options.batch_size, compile=options.compile)
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

    # One call at a time: the launches of many would wait for room in the queue of the GPU.
    for _ in range(20):
        model(resident).cpu()
    alone_ms = embedder.take_call_ms()
    arguments = ["--models", name, "--batch-size", str(options.batch_size), "--device", device]
    jobs = Jobs([*arguments, *(["--compile"] if options.compile else [])], paths)
    contestants = {
        MODEL: run_model,
        READER: run_reader,
        OURS: lambda: embed(embedder, device, paths),
        JOBS: jobs.run,
    }
    if options.peer:
        bare = timm.create_model(name, num_classes=0).eval().to(device)
        contestants[PLAIN] = lambda: run_plain_loop(embedder, bare, device, paths)
    rates = measure(contestants, options.runs)
    jobs.close()
    embedder.calls.clear()
    embed(embedder, device, paths)
    medians = {contestant: statistics.median(measured) for contestant, measured in rates.items()}
    limit = min((MODEL, READER), key=medians.get)
    ratio = statistics.median(ours / most for ours, most in zip(rates[OURS], rates[limit], strict=True))
    row = "".join(f"{medians.get(contestant, 0):13.0f}" for contestant in COLUMNS)
    return f"{name:26}{row}  {alone_ms:6.1f} {embedder.take_call_ms():6.1f}  {ratio:5.2f} of the {limit}"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", default="")
    parser.add_argument("--repeat", type=int, default=8)
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--peer", action="store_true")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--serve", type=int, metavar="THREADS", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch sees no GPU here; --device cpu only tries the script out")
    if options.device == "cpu":
        keep_freed_memory()
    if options.serve:
        embedder = TimmImageEmbedder(options.models[0], batch_size=options.batch_size, compile=options.compile)
        return serve(embedder, options.device, options.serve)
    with nullcontext() if options.shards else TemporaryDirectory() as folder:
        paths = sorted(glob.glob(options.shards)) if options.shards else write_shards(Path(folder), 8, 256)
        if not paths:
            parser.error(f"--shards {options.shards!r} finds no file; expected tar shards of images")
        print(describe_machine(options.device))
        print(
            f"{describe_shards(paths)}, each {options.repeat} times; batches of {options.batch_size}; "
            f"{'compiled; ' if options.compile else ''}median of {options.runs}"
        )
        columns = "".join(f"{name:>13}" for name in COLUMNS)
        print(f"{'images/s':26}{columns}  call alone, beside  ours is", flush=True)
        for name in options.models:
            print(measure_model(name, options, paths * options.repeat), flush=True)


if __name__ == "__main__":
    main()
