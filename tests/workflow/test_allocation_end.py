"""A run in an allocation of SLURM that comes to its end: it stops by itself, and the next one goes on."""

import os
import re
import subprocess
import time

import pytest
from support.workflow import make_shard, run_well, snakemake_command, snakemake_environment

pytestmark = pytest.mark.slow


def test_a_run_starts_no_job_at_the_end_of_its_allocation_and_lets_the_running_one_end(project):
    for name in "cd":
        make_shard(project / f"data/{name}.tar", ["red"])
    (project / "hold").touch()
    end = time.time() + 90
    # SLURM cannot be asked here, so the variable counts.
    allocation = {"SLURM_JOB_ID": "7", "SLURM_JOB_END_TIME": str(int(end)), "SLURM_CONF": os.devnull}
    with (project / "printed.txt").open("w") as printed:
        run = subprocess.Popen(
            snakemake_command("--cores", "1"), cwd=project, env=snakemake_environment() | allocation,
            stdout=printed, stderr=printed,
        )  # fmt: skip
        assert run.wait(300) == 1
    assert time.time() < end
    printed = (project / "printed.txt").read_text()
    assert re.search(r"SLURM job 7 reaches its time limit in \d s: no further job is started", printed)
    assert printed.count("localrule embed:") == 1
    assert "error: stopped by SIGTERM; run it again" in printed
    (project / "hold").unlink()
    assert run_well(project).count("localrule embed:") == 2
