"""Measures the cost of planning a run: CPU seconds and peak memory of `snakemake -n`, by the number of shards.

    python benchmarks/plan.py [SHARDS_PER_JOB] [SHARDS ...]

The shards are empty files. The plan is made at the start of a run, and in part by each job on a cluster.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
SHARDS = (1_000, 20_000, 100_000)


def measure(folder: Path, shards: int, shards_per_job: int) -> tuple[float, float]:
    """Return CPU seconds and MB of one dry run."""
    for number in range(shards):
        (folder / f"{number:07}.tar").touch()
    config = {
        "shards": f"{{0000000..{shards - 1:07}}}.tar",
        "embedder": {"class": "embedders:TimmImageEmbedder", "args": {"model_name": "resnet18"}},
        **{"device": "cpu", "gpu": 0, "shards_per_job": shards_per_job},
    }
    (folder / "config.yaml").write_text(json.dumps(config))
    pid = os.fork()
    if pid == 0:  # a separate process, so that the peak memory is that of this run
        command = ["snakemake", "--snakefile", REPOSITORY / "Snakefile", "--cores", "1", "-n", "--quiet", "all"]
        code = subprocess.run(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        (folder / "used").write_text(json.dumps([used.ru_utime + used.ru_stime, used.ru_maxrss / 1024]))
        os._exit(code)
    if os.waitpid(pid, 0)[1]:
        sys.exit(f"the dry run of {shards} shards failed")
    return json.loads((folder / "used").read_text())


def main(shards_per_job: int = 16, *counts: int) -> None:
    """Print a line for each number of shards."""
    for shards in counts or SHARDS:
        with tempfile.TemporaryDirectory() as folder:
            seconds, peak_mb = measure(Path(folder), shards, shards_per_job)
        print(f"{shards:8} shards, {shards_per_job} in a job: {seconds:6.1f} CPU s, {peak_mb:6.0f} MB", flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
