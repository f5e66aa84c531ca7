"""Runs of a few tiny shards in a folder of their own, here or on a cluster, and what they left."""

import ctypes
import json
import re
import shlex
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

from support.tools import MEAN_COLOR, make_shard
from support.workflow import ROOT, snakemake_command, snakemake_environment
from support.workflow import read_results as read_results

PROFILE = ROOT / "workflow/profiles/slurm"
# The profile looks seldom, as is due to a real cluster.
ON_SLURM = ("--profile", str(PROFILE), "--slurm-init-seconds-before-status-checks", "1", "--latency-wait", "10")


def make_project(folder: Path, shards: int, **config: object) -> Path:
    """Make a folder with tiny shards and a configuration; the same number gives the same shards."""
    (folder / "data").mkdir(parents=True)
    for number in range(shards):
        make_shard(folder / f"data/{number:05}.tar", 3 + number)
    settings = {
        "shards": "data/*.tar",
        "embedder": {"class": MEAN_COLOR},
        "device": "cpu",
        "threads": 1,
        "report": False,
    }
    (folder / "config.yaml").write_text(json.dumps(settings | {"mem_mb": 1000} | config))
    return folder


def start_snakemake(project: Path, *options: str, before: Sequence[str] = (), **environment: str) -> subprocess.Popen:
    """Start the workflow in a project; its output is in the project's `printed.txt`."""
    with (project / "printed.txt").open("w") as printed:
        return subprocess.Popen(
            [*before, *snakemake_command(*options)], cwd=project, env=snakemake_environment() | environment,
            stdin=subprocess.DEVNULL, stdout=printed, stderr=printed, preexec_fn=end_with_parent,
        )  # fmt: skip


def end_with_parent() -> None:
    """Have this process killed when the tests are, which may be killed too."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def submit_snakemake(project: Path, *options: str, allocation: tuple[str, ...], part: str = "1/1") -> str:
    """Submit the workflow of a project as one job of SLURM's, which needs no plugin, and return the job's number.

    The part may have a variable that SLURM sets in the job.
    """
    command = ["sbatch", "--parsable", "--output=printed.txt", *allocation]
    return subprocess.run(
        [*command, "--wrap", f"exec {shlex.join(snakemake_command(*options))} --config part={part}"],
        cwd=project, env=snakemake_environment(), check=True, capture_output=True, text=True,
    ).stdout.strip()  # fmt: skip


def finish(run: subprocess.Popen, project: Path, timeout_s: float = 300) -> str:
    """Wait for a run that is to succeed, and return what it printed."""
    code = run.wait(timeout_s)
    printed = (project / "printed.txt").read_text()
    assert code == 0, printed
    return printed


def select(results: dict, shards: int) -> dict:
    """Choose the vectors and ledgers of the first shards, of a run of as many or more."""
    names = tuple(f"{number:05}.parquet" for number in range(shards))
    return {path: content for path, content in results.items() if path.endswith(names)}


def read_job_ids(project: Path) -> dict[str, list[str]]:
    """Read the numbers of the jobs that each shard was submitted as, from what Snakemake has printed."""
    ids: dict[str, list[str]] = {}
    printed = (project / "printed.txt").read_text()
    for job, log in re.findall(r"submitted with SLURM jobid (\d+) \(log: (\S+)/\d+\.log\)", printed):
        ids.setdefault(log.rpartition("/")[2], []).append(job)
    return ids


def read_inodes(project: Path) -> set[int]:
    """Return the inodes of the finished vectors and ledgers of a project, which change if a file is written again."""
    return {path.stat().st_ino for path in project.glob("results/[el]*/*.parquet")}
