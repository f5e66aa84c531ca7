"""Faults of a real SLURM in the middle of a run: after the documented command the result is complete, and equal.

The commands are those of docs/hpc.md.
"""

import re
import signal
import subprocess
from functools import partial

import pytest
from support.cluster.holding import make_holding_project, read_events
from support.cluster.runs import ON_SLURM, finish, read_results, select, start_snakemake
from support.cluster.slurm import wait_for
from support.tools import ROOT, leftovers, make_shard, make_tar
from support.workflow import run_well

pytestmark = pytest.mark.cluster


def read_inodes(folder):
    return {path.stat().st_ino for path in folder.glob("*.parquet")}


def find_partials(project, shard):
    return list(project.glob(f"results/embeddings/.{shard}.parquet.*.partial"))


def read_printed(project):
    return (project / "printed.txt").read_text()


def read_job_ids(project):
    """The jobs that each shard was submitted as."""
    ids = {}
    for job, log in re.findall(r"submitted with SLURM jobid (\d+) \(log: (\S+)/\d+\.log\)", read_printed(project)):
        ids.setdefault(log.rpartition("/")[2], []).append(job)
    return ids


# The time limit, which SLURM counts in minutes: these runs go on beside the tests of the login node. Not beside the
# restart of slurmctld: what is submitted in that moment SLURM 22.05 may start without its GPU.


@pytest.fixture(scope="module")
def limited(slurm, nodes, tmp_path_factory):
    """Two runs of two shards in a job of two minutes, in the middle of the second shard; and what is kept."""
    runs = {}
    for name in ("warned", "killed"):
        project = make_holding_project(
            tmp_path_factory.mktemp(name) / "project", 2, hold_after=5, shards_per_job=2, runtime=1
        )
        if name == "killed":  # deaf to SIGTERM, as in a long call of a model
            (project / "deaf").touch()
        # Nothing of the profile's may be needed for the warning.
        runs[name] = project, start_snakemake(project, *ON_SLURM, "--default-resources", "slurm_partition=gpu")
    kept = {}
    for name, (project, _) in runs.items():
        wait_for(partial(find_partials, project, "00001"), f"the second shard of the one to be {name}", 200)
        kept[name] = read_inodes(project / "results/embeddings") | read_inodes(project / "results/ledger")
    return {name: (*run, kept[name]) for name, run in runs.items()}


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


# The time limit, again


@pytest.mark.parametrize(("name", "state"), [("warned", "FAILED"), ("killed", "TIMEOUT")])
def test_a_job_that_reaches_its_time_limit_keeps_what_it_had_finished(slurm, limited, local, name, state):
    project, run, kept = limited[name]
    assert len(kept) == 2  # the vectors and the ledger of one shard
    printed = finish(run, project)
    assert slurm.read_state(read_job_ids(project)["00000+1"][0]) == state
    assert ("error: stopped by SIGTERM; run it again" in printed) == (name == "warned")
    assert "reaches its time limit in 12 s" in printed
    assert "mem_mb=2000" in printed and "runtime=4" in printed  # twice as much, the second time
    assert "1 of 2 shards were finished before" in (project / "results/logs/embed/00000+1.log").read_text()
    assert kept < read_inodes(project / "results/embeddings") | read_inodes(project / "results/ledger")
    assert "partial" not in "".join(leftovers(project / "results"))
    assert select(read_results(project), 2) == select(read_results(local), 2)
