"""What docs/schedulers.md says is so: the profile for other schedulers, and the command of the pods of Kubernetes.

tests/cluster runs the profile with the sbatch of a real SLURM.
"""

import json
import os
import re
import subprocess
import tempfile
from pathlib import Path

import pytest
import yaml
from support.tools import ROOT
from support.workflow import CONFIG, EMBEDDER, make_shard, snakemake_environment

PROFILE = ROOT / "workflow/profiles/scheduler"
TEXT = (PROFILE / "config.yaml").read_text()
GONE = "Following jobs do not exist: \n7"
# What the manuals of the schedulers show of a job that runs, has succeeded and has failed.
ANSWERS = {
    "pbs.sh": (
        {"qstat": "Job Id: 7.server\n    Job_Name = tarquet\n    job_state = R\n"},
        {"qstat": "Job Id: 7.server\n    job_state = F\n    queue = workq\n    Exit_status = 0\n"},
        {"qstat": "Job Id: 7.server\n    job_state = F\n    queue = workq\n    Exit_status = 271\n"},
    ),
    "lsf.sh": ({"bjobs": "RUN"}, {"bjobs": "DONE"}, {"bjobs": "EXIT"}),
    "sge.sh": (
        {"qstat": "job_number: 7"},
        {"qstat": GONE, "qacct": "jobnumber    7\nfailed       0    \nexit_status  0                   \n"},
        {"qstat": GONE, "qacct": "jobnumber    7\nfailed       100 : assumedly after job\nexit_status  137\n"},
    ),
    "slurm.sh": ({"squeue": "RUNNING"}, {"squeue": "COMPLETED"}, {"squeue": "PREEMPTED"}),
}


@pytest.mark.parametrize("script", ANSWERS)
def test_a_script_says_how_a_job_ended_and_takes_silence_for_running(script, tmp_path):
    for answer, said in zip((*ANSWERS[script], {}), ("running", "success", "failed", "running"), strict=True):
        done = ask(tmp_path, script, answer)
        assert (done.returncode, done.stdout) == (0, f"{said}\n")


def test_a_scheduler_that_forgets_how_jobs_ended_keeps_no_run_waiting(tmp_path):
    done = ask(tmp_path, "pbs.sh", {"qstat": "qstat: PBS is not configured to maintain job history"})
    assert (done.returncode, done.stdout) == (1, "") and "set job_history_enable" in done.stderr
    done = ask(tmp_path, "slurm.sh", {"squeue": "slurm_load_jobs error: Invalid job id specified"})
    assert (done.returncode, done.stdout) == (0, "failed\n")


def ask(tmp_path, script, answers):
    """Run a script in a PATH with these commands, each of which only prints a text."""
    folder = Path(tempfile.mkdtemp(dir=tmp_path))
    for command, text in answers.items():
        (folder / command).write_text(f"#!/bin/sh\ncat <<END\n{text}\nEND\n")
        (folder / command).chmod(0o755)
    environment = os.environ | {"PATH": f"{folder}:/usr/bin:/bin", "SLURM_CONF": os.devnull}
    return subprocess.run([PROFILE / script, "7"], env=environment, capture_output=True, text=True)


def test_the_profile_has_a_block_for_each_scheduler_with_its_script():
    scripts = re.findall(r"^(?:# )?cluster-generic-status-cmd: (.*)$", TEXT, re.MULTILINE)
    assert scripts == ["pbs.sh", "lsf.sh", "sge.sh", "slurm.sh"]
    assert all(os.access(PROFILE / script, os.X_OK) for script in scripts)
    active = yaml.safe_load(TEXT)
    assert active["cluster-generic-status-cmd"] == "pbs.sh"
    asked = set(re.findall(r"\{([\w.]+)\}", TEXT))
    assert asked == {"threads", "resources.gpu", "resources.mem_mb", "resources.runtime"}


@pytest.mark.slow
def test_a_pod_embeds_its_part_also_after_one_that_was_killed(tmp_path):
    job = yaml.safe_load((ROOT / "containers/kubernetes.yaml").read_text())["spec"]
    (container,) = job["template"]["spec"]["containers"]
    (command,) = container["args"]
    assert f"-of-{job['completions']}/run.json" in command and f"part=$part/{job['completions']}" in command
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 8 and "gpu=8" in command

    for name in ("a", "b", "c"):
        make_shard(tmp_path / f"data/{name}.tar", ["red"])
    (tmp_path / "embedder.py").write_text(EMBEDDER)
    (tmp_path / "beside.py").write_text("SCALE = 1\n")
    (tmp_path / "weights.bin").write_bytes(b"some weights")
    (tmp_path / "config.yaml").write_text(CONFIG)
    claim = tmp_path / "results/record/parts/2-of-16/run.json"
    claim.parent.mkdir(parents=True)
    claim.write_text(json.dumps({"host": "another", "process": 1, "part": "2/16"}))
    done = subprocess.run(
        [*container["command"], command.replace("/opt/workflow", str(ROOT))],
        cwd=tmp_path, env=snakemake_environment() | {"JOB_COMPLETION_INDEX": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert [path.name for path in (tmp_path / "results/embeddings").iterdir()] == ["b.parquet"]
