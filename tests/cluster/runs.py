"""Runs of a few tiny shards in a folder of their own, here or on a cluster, and what they left."""

import json
import subprocess
from pathlib import Path

from test_workflow import ROOT, snakemake_command, snakemake_environment
from tools import MEAN_COLOR, make_shard

PROFILE = ROOT / "workflow/profiles/slurm"
# The profile looks seldom, as is due to a real cluster.
ON_SLURM = ("--profile", str(PROFILE), "--slurm-init-seconds-before-status-checks", "1", "--latency-wait", "10")


def make_project(folder: Path, shards: int, **config: object) -> Path:
    """Make a folder with tiny shards and a configuration; the same number gives the same shards."""
    (folder / "data").mkdir(parents=True)
    for number in range(shards):
        make_shard(folder / f"data/{number:05}.tar", 3 + number)
    settings = {"shards": "data/*.tar", "embedder": {"class": MEAN_COLOR}, "device": "cpu", "threads": 1}
    (folder / "config.yaml").write_text(json.dumps(settings | {"mem_mb": 1000} | config))
    return folder


def start_snakemake(project: Path, *options: str, **environment: str) -> subprocess.Popen:
    """Start the workflow in a project; its output is in the project's `printed.txt`."""
    with (project / "printed.txt").open("w") as printed:
        return subprocess.Popen(
            snakemake_command(*options), cwd=project, env=snakemake_environment() | environment,
            stdin=subprocess.DEVNULL, stdout=printed, stderr=printed, start_new_session=True,
        )  # fmt: skip


def finish(run: subprocess.Popen, project: Path, timeout_s: float = 300) -> str:
    """Wait for a run that is to succeed, and return what it printed."""
    code = run.wait(timeout_s)
    printed = (project / "printed.txt").read_text()
    assert code == 0, printed
    return printed


def read_results(project: Path) -> dict[str, bytes]:
    """Return every result, by its path in the project."""
    paths = [
        *project.glob("results/embeddings/*"),
        *project.glob("results/ledger/*"),
        project / "results/summary.json",
    ]
    return {str(path.relative_to(project)): path.read_bytes() for path in paths}
