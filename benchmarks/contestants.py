"""Runs the contestants of a benchmark in turn, each in a separate process, and the peers in a separate environment.

Owns the environment of the peers, the child processes and the medians; not what is measured.
"""

import json
import math
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path

from photographs import CACHE

REPOSITORY = Path(__file__).resolve().parent.parent
REQUIREMENTS = REPOSITORY / "benchmarks/peers/requirements.txt"
CORES = 2  # for each contestant, on a machine of any size


def find_peers_python() -> Path:
    """Return the interpreter of the peers' environment, which is made once: 7 GB, some minutes."""
    folder = CACHE / f"peers-{sha256(REQUIREMENTS.read_bytes()).hexdigest()[:12]}"
    python = folder / "bin/python"
    if not (folder / "ready").exists():
        print(f"making the peers' environment in {folder}, once", file=sys.stderr)
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r", REQUIREMENTS]
        subprocess.run(install, check=True, stdout=sys.stderr)
        link_ffmpeg(folder)
        (folder / "ready").touch()
    return python


def link_ffmpeg(folder: Path) -> None:
    """Link FFmpeg's libraries in PyAV's wheel, which have other names there, under the names that SPDL loads."""
    (folder / "ffmpeg").mkdir()
    for library in folder.glob("lib/python*/site-packages/av.libs/*.so*"):
        # SPDL loads libavutil-5809ad29.so.60.26.102 as libavutil.so.60; FFmpeg's other libraries use the long name
        name, _, version = library.name.partition(".so.")
        (folder / "ffmpeg" / library.name).symlink_to(library)
        (folder / "ffmpeg" / f"{name.rpartition('-')[0]}.so.{version.partition('.')[0]}").symlink_to(library)


def run_alone(script: str, contestant: str, is_peer: bool, arguments: Sequence[str]) -> dict:
    """Run `SCRIPT --only CONTESTANT ARGUMENTS` in a new process, and return the JSON in its last line.

    Returns:
        What it measured, or `{"failed": reason}`.
    """
    try:
        python = find_peers_python() if is_peer else Path(sys.executable)
    except subprocess.CalledProcessError as error:
        return {"failed": f"its environment cannot be made: {error}"[:200]}
    env = os.environ | {"PYTHONPATH": str(REPOSITORY), "PYTHONWARNINGS": "ignore"}
    if is_peer:
        env["LD_LIBRARY_PATH"] = str(python.parent.parent / "ffmpeg")
    command = [python, script, "--only", contestant, *arguments]
    child = subprocess.run(command, env=env, cwd=REPOSITORY, capture_output=True, text=True)
    if child.returncode:
        return {"failed": (child.stderr.strip().splitlines() or [f"exit status {child.returncode}"])[-1][:200]}
    return json.loads(child.stdout.strip().splitlines()[-1])


def run_in_turn(
    script: str, contestants: Mapping[str, bool], arguments: Sequence[str], runs: int
) -> dict[str, list[dict]]:
    """Run all contestants in turn, several times, so that changes in the machine's load affect all alike.

    Args:
        script: The benchmark's file.
        contestants: By name, whether it lives in the peers' environment.
        arguments: What each is given.
        runs: How often each runs; one that fails is not tried again.

    Returns:
        By name, what `run_alone` returned each time.
    """
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    measured = {name: [] for name in contestants}
    for _ in range(runs):
        for name, is_peer in contestants.items():
            if not has_failed(measured[name]):
                measured[name].append(run_alone(script, name, is_peer, arguments))
                print(f"  {name}: {measured[name][-1]}", file=sys.stderr, flush=True)
    return measured


def has_failed(results: Sequence[dict]) -> bool:
    """Return whether a contestant's last run failed."""
    return bool(results) and "failed" in results[-1]


def take_median(results: Sequence[dict]) -> float:
    """Return the median of the images per second."""
    return statistics.median(result["images_per_s"] for result in results)


def take_ratio(results: Sequence[dict], others: Sequence[dict]) -> float:
    """Return the median, over the rounds, of the ratio of images per second to another contestant's."""
    if has_failed(results) or has_failed(others):
        return math.nan
    pairs = zip(results, others, strict=True)
    return statistics.median(result["images_per_s"] / other["images_per_s"] for result, other in pairs)
