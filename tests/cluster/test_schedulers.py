"""The profile for other schedulers, with the sbatch of a real SLURM as the command that submits."""

import re
import shutil

import pytest
from support.cluster.holding import make_holding_project, read_events
from support.cluster.runs import finish, read_results, select, start_snakemake
from support.cluster.slurm import wait_for
from support.tools import ROOT

pytestmark = pytest.mark.cluster
PROFILE = ROOT / "workflow/profiles/scheduler"


@pytest.fixture
def profile(tmp_path):
    """The profile with the block for sbatch in place of the one that is active in it."""
    profile = shutil.copytree(PROFILE, tmp_path / "profile")
    text = (profile / "config.yaml").read_text()
    active = re.search(r"^cluster-generic-submit.*?^cluster-generic-cancel.*?\n", text, re.MULTILINE | re.DOTALL)
    (block,) = re.findall(r"^# SLURM by sbatch.*\n((?:#.*\n)+)", text, re.MULTILINE)
    text = text.replace(active[0], "").replace(block, re.sub("(?m)^# ", "", block))
    (profile / "config.yaml").write_text(text.replace("latency-wait: 60", "latency-wait: 10"))
    return profile


def test_jobs_are_submitted_by_a_command_and_a_cancelled_one_again(slurm, nodes, local, profile, tmp_path):
    project = make_holding_project(tmp_path / "project", 2)
    run = start_snakemake(project, "--profile", str(profile))
    wait_for(lambda: len(read_events(project)) == 2, "two jobs at once", 200)
    jobs = re.findall(r"Submitted job \d+ with external jobid '(\d+)'", (project / "printed.txt").read_text())
    assert sorted(event["job"] for event in read_events(project)) == sorted(jobs)
    asked = slurm.ask("squeue", "-h", "-j", ",".join(jobs), "-o", "%m %C %l").splitlines()
    assert asked == ["1000M 1 1:00:00"] * 2
    assert {event["uuid"] for event in read_events(project)} == {
        f"GPU-{event['node']}-{event['given']}" for event in read_events(project)
    }
    slurm.ask("scancel", jobs[0])  # as by its time limit or its memory: it cannot say how it ended
    wait_for(lambda: len(read_events(project)) == 3, "the same job again", 100)
    (project / "hold").unlink()
    printed = finish(run, project)
    assert "mem_mb=2000" in printed
    assert select(read_results(project), 2) == select(read_results(local), 2)
