"""Faults of a real SLURM in the middle of a run: after the documented command the result is complete, and equal.

The commands are those of docs/hpc.md.
"""

import re
import signal
import subprocess
from functools import partial

import pytest
from support.cluster.holding import make_holding_project, read_events
from support.cluster.runs import ON_SLURM, finish, read_job_ids, read_results, select, start_snakemake
from support.cluster.slurm import wait_for
from support.tools import ROOT, make_shard, make_tar
from support.workflow import run_well

pytestmark = pytest.mark.cluster


# One run, and all that can be done to it


@pytest.fixture(scope="module")
def troubled(slurm, nodes, tmp_path_factory):
    """A run whose jobs were all at work when the login node hung up, a node was drained, a job was cancelled, and
    slurmctld was started anew.
    """
    project = make_holding_project(tmp_path_factory.mktemp("troubled") / "project", 3)
    make_tar(project / "data/00002.tar", {"a.jpg": b"no image"})
    run = start_snakemake(project, *ON_SLURM, before=["nohup"])
    wait_for(lambda: len(read_events(project)) == 3, "three jobs at once", 200)
    run.send_signal(signal.SIGHUP)
    slurm.ask("scontrol", "update", "NodeName=n1", "State=DRAIN", "Reason=test")
    slurm.ask("scancel", read_job_ids(project)["00001"][0])
    slurm.stop_controller()
    slurm.start_controller()
    (project / "hold").unlink()
    yield project, run.wait(200), (project / "printed.txt").read_text()
    slurm.ask("scontrol", "update", "NodeName=n1", "State=RESUME")


def test_a_cancelled_job_is_submitted_again(troubled):
    project, _, printed = troubled
    job, again = read_job_ids(project)["00001"]
    assert f"SLURM-job '{job}' failed, SLURM status is: 'CANCELLED'" in printed
    assert "error: stopped by SIGTERM; run it again" in printed
    assert {event["job"] for event in read_events(project)} >= {job, again}


def test_a_drained_node_ends_what_it_has_and_the_others_go_elsewhere(troubled):
    project, _, _ = troubled
    before, after = read_events(project)[:3], read_events(project)[3:]
    assert "n1" in {event["node"] for event in before}
    assert [event["node"] for event in after] == ["n2", "n2"]


def test_a_bad_shard_fails_alone_and_is_named_with_its_log(troubled, local):
    project, code, printed = troubled
    assert code != 0
    assert len(read_job_ids(project)["00002"]) == 2  # once more, in vain
    assert select(read_results(project), 3) == select(read_results(local), 2)
    (line,) = re.findall(r"^failed: .*", printed, re.MULTILINE)
    assert line.startswith("failed: data/00002.tar: 1 of 1 samples failed")
    assert line.endswith(" (log: results/logs/embed/00002.log)")


def test_after_the_mend_the_same_command_completes_the_run(troubled, local):
    project, _, _ = troubled
    make_shard(project / "data/00002.tar", 5)
    finish(start_snakemake(project, *ON_SLURM), project)
    assert list(read_job_ids(project)) == ["00002"]
    assert select(read_results(project), 3) == select(read_results(local), 3)


# The login node


def test_a_run_whose_snakemake_was_ended_is_resumed(slurm, nodes, limited, local, tmp_path):
    shards = {signal.SIGHUP: 1, signal.SIGTERM: 2}
    projects = {end: make_holding_project(tmp_path / end.name, count) for end, count in shards.items()}
    runs = {end: start_snakemake(project, *ON_SLURM, "--jobs", "1") for end, project in projects.items()}
    for end, project in projects.items():
        wait_for(partial(read_events, project), "a job", 100)
        runs[end].send_signal(end)

    # Told to end, it waits for the jobs that run.
    terminated = projects[signal.SIGTERM]
    (terminated / "hold").unlink()
    assert runs[signal.SIGTERM].wait(100) == 1
    assert len(list(terminated.glob("results/embeddings/*.parquet"))) == 1

    # Cut off, it leaves them behind, and its lock.
    cut = projects[signal.SIGHUP]
    assert runs[signal.SIGHUP].wait(10) == -signal.SIGHUP
    (job,) = read_job_ids(cut).values()
    (command,) = re.findall(r"^scancel .*", (ROOT / "docs/hpc.md").read_text(), re.MULTILINE)
    subprocess.run(command, cwd=cut, shell=True, check=True)
    wait_for(lambda: slurm.read_state(job[0]) == "CANCELLED", "the end of the job")
    (cut / "hold").unlink()
    run_well(cut, "--unlock")

    for end, project in projects.items():
        runs[end] = start_snakemake(project, *ON_SLURM)
    for end, project in projects.items():
        finish(runs[end], project)
        assert select(read_results(project), 2) == select(read_results(local), shards[end])
