"""What tests leave that are killed in the middle: no job, no daemon and no file."""

import time
from pathlib import Path

import psutil
import pytest
from support.cluster.slurm import CONFIG_FOLDER, MEMORY_GROUPS
from support.tools import start_python

pytestmark = pytest.mark.cluster

ABANDONED = """
import sys
from support.cluster.slurm import Slurm, wait_for

with Slurm() as cluster:
    cluster.ask("sbatch", "--output=/dev/null", "--wrap", f"cd {cluster.folder}; touch at_work; exec sleep 1000")
    wait_for((cluster.folder / "at_work").exists, "the job")
    print(cluster.folder, flush=True)
    sys.stdin.read()
"""


def find_processes(folder):
    """The living processes that work in a folder or name it."""
    found = []
    for process in psutil.process_iter(["cmdline", "cwd", "status"]):
        words = [process.info["cwd"] or "", *(process.info["cmdline"] or ())]
        if process.info["status"] != psutil.STATUS_ZOMBIE and any(str(folder) in word for word in words):
            found.append(words)
    return found


def test_a_cluster_whose_tests_are_killed_is_taken_down(packages):
    tests = start_python(ABANDONED, stdin=-1)
    folder = Path(tests.stdout.readline().strip())
    assert folder.is_dir(), tests.communicate()
    assert len(find_processes(folder)) >= 3  # the keeper, a daemon and the job at the least
    tests.kill()
    end_s = time.monotonic() + 60
    while (folder.exists() or find_processes(folder)) and time.monotonic() < end_s:
        time.sleep(0.1)
    assert not folder.exists() and find_processes(folder) == []
    assert not (CONFIG_FOLDER / "slurm.conf").exists()
    assert not list(MEMORY_GROUPS.glob("slurm_*"))
