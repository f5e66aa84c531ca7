"""Compares a whole Snakemake run with one warm process: the cost of starting jobs, by shards_per_job.

    python benchmarks/whole_run.py [MODEL] [RUNS] [SHARDS] [IMAGES_PER_SHARD] [SHARDS_PER_JOB ...]

Makes shards of crops of photographs, and embeds them with a model of timm on the CPU, with random weights, which do
not affect the time: EfficientNet-Lite0, or `test_vit.r160_in1k`, which is so small that the cost of starting shows.
The warm process has loaded its model and embedded one shard before the measurement starts. A Snakemake run is timed
from the command to its end, with planning and summary, without the report. Both run in turn; the results are
medians.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import timm
import torch
import yaml
from photographs import describe_shards, write_shards

REPOSITORY = Path(__file__).resolve().parent.parent
THREADS = 2
PER_JOB = (1, 16, 64)
WARM = """
import sys, time, torch
sys.path.insert(0, sys.argv[1])
from embedders import TimmImageEmbedder
from embedders.gpu.device import keep_freed_memory
from embedders.job.embed import embed_shards
from embedders.job.shard_job import ShardJob
keep_freed_memory()
torch.set_num_threads(int(sys.argv[2]))
embedder = TimmImageEmbedder(sys.argv[3], checkpoint_path="weights.pth", num_threads_per_worker=int(sys.argv[2]))
jobs = [ShardJob(path, f"warm/{n}.parquet", f"warm/{n}.ledger.parquet") for n, path in enumerate(sys.argv[4:])]
list(embed_shards(embedder, jobs[:1], device="cpu"))
start = time.perf_counter()
list(embed_shards(embedder, jobs, device="cpu"))
print(time.perf_counter() - start)
"""


def time_warm(folder: Path, model: str, paths: list[str]) -> float:
    """Return the seconds of the warm process."""
    command = [sys.executable, "-c", WARM, REPOSITORY, str(THREADS), model, *paths]
    return float(subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout)


def time_run(folder: Path, model: str, shards_per_job: int, number: int) -> float:
    """Return the seconds of a Snakemake run."""
    config = {
        "shards": "data/*.tar",
        "output_dir": f"results-{shards_per_job}-{number}",
        "embedder": {
            "class": "embedders:TimmImageEmbedder",
            "args": {"model_name": model, "checkpoint_path": "weights.pth"},
        },
        **{"device": "cpu", "gpu": 0, "threads": THREADS, "shards_per_job": shards_per_job, "report": False},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    command = ["snakemake", "--snakefile", REPOSITORY / "Snakefile", "--cores", str(THREADS), "--quiet", "all"]
    start = time.perf_counter()
    subprocess.run(command, cwd=folder, capture_output=True, check=True)
    return time.perf_counter() - start


def main(
    model: str = "tf_efficientnet_lite0", runs: int = 5, shards: int = 64, images: int = 250, *per_job: int
) -> None:
    """Print the table."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = write_shards(folder / "data", shards, images)
        print(f"{model}; {describe_shards(paths)}; median of {runs}", flush=True)
        per_job = per_job or PER_JOB
        # The same in each process: a run whose shards have different weights is refused.
        torch.save(timm.create_model(model).state_dict(), folder / "weights.pth")
        seconds = {"warm process": [], **{f"shards_per_job: {number}": [] for number in per_job}}
        for run in range(runs):
            seconds["warm process"].append(time_warm(folder, model, paths))
            for number in per_job:
                seconds[f"shards_per_job: {number}"].append(time_run(folder, model, number, run))
            print("  ", {what: round(measured[-1], 1) for what, measured in seconds.items()}, file=sys.stderr)
    for what, measured in seconds.items():
        median = statistics.median(measured)
        ratio = statistics.median(warm / own for warm, own in zip(seconds["warm process"], measured, strict=True))
        print(f"{what:20} {median:7.1f} s {shards * images / median:6.0f} images/s  {ratio:5.2f} of warm")


if __name__ == "__main__":
    main(*sys.argv[1:2], *map(int, sys.argv[2:]))
