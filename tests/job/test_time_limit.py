"""A job and a run in an allocation of SLURM end by themselves before the time limit."""

import os
import re
import subprocess
import sys
import time
from datetime import datetime

import pytest
from support.tools import ROOT, clean_environment, make_shard

from embedders.job.time_limit import END, describe_end, find_end

HOLDING = """
import time
from embedders import ImageEmbedder

class Holding(ImageEmbedder):
    def load_embedding_model(self, device):
        return self.embed

    def embed(self, batch):
        while True:
            time.sleep(0.1)
"""


@pytest.mark.slow
def test_a_job_ends_by_itself_before_the_limit_and_leaves_nothing(tmp_path):
    make_shard(tmp_path / "a.tar", 3)
    (tmp_path / "holding.py").write_text(HOLDING)
    limit_s = 60
    start = time.time()
    options = ("--device", "cpu", "--embedder", "holding.py:Holding")
    done = subprocess.run(
        [sys.executable, "-m", "embedders", "embed", "a.tar", "a.parquet", *options],
        cwd=tmp_path, env=clean_environment() | in_job(start + limit_s), capture_output=True, text=True, timeout=180,
    )  # fmt: skip
    assert done.returncode == 128 + 15, done.stderr
    said = re.search(r"(?m)^(\S+ \S+) WARNING SLURM job 7 reaches its time limit in \d s", done.stderr)
    assert datetime.fromisoformat(said[1]).timestamp() < start + limit_s
    assert done.stderr.endswith("error: stopped by SIGTERM; run it again\n")
    assert {path.name for path in tmp_path.iterdir()} <= {"a.tar", "holding.py", "__pycache__"}


def test_the_end_is_known_in_a_container_without_the_commands_of_slurm():
    environment = in_job(1234) | {"PATH": str(ROOT)}
    assert find_end(environment) == 1234
    assert describe_end(environment) == {END: "1234"}


@pytest.mark.parametrize("environment", [{}, {END: "1234"}, {"SLURM_JOB_ID": "7"}, {"SLURM_JOB_ID": "7", END: "N/A"}])
def test_without_a_job_or_a_limit_nothing_is_known(environment):
    assert find_end({"PATH": str(ROOT)} | environment) is None
    assert describe_end(environment) == {}


def in_job(end):
    """The variables of a job of SLURM, on a machine where SLURM cannot be asked."""
    return {"SLURM_JOB_ID": "7", END: str(int(end)), "PATH": os.environ["PATH"], "SLURM_CONF": "/dev/null"}
