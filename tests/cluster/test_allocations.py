"""Real runs on a real SLURM of two nodes with eight pretended GPUs: what they make, and on which GPU each job is.

A fake driver shows each node its GPUs. All runs are of the same shards, and are held against a run on this machine.
"""

import json
import os
import signal
from collections import Counter

import pytest
from support.cluster.holding import make_holding_project, read_events
from support.cluster.runs import ON_SLURM, finish, read_results, select, start_snakemake, submit_snakemake
from support.cluster.slurm import GPUS_PER_NODE, wait_for

pytestmark = pytest.mark.cluster


def test_eight_jobs_on_two_nodes_are_each_on_the_gpu_that_slurm_gave(slurm, nodes, local, tmp_path):
    project = make_holding_project(tmp_path / "project", 8)
    run = start_snakemake(project, *ON_SLURM)
    wait_for(lambda: len(read_events(project)) == 8, "eight jobs at once", 200)
    (project / "hold").unlink()
    printed = finish(run, project)
    assert printed.count("has been submitted with SLURM jobid") == 8
    assert read_results(project) == read_results(local)

    events = read_events(project)
    assert Counter(event["node"] for event in events) == dict.fromkeys(nodes, GPUS_PER_NODE)
    for event in events:  # both nodes number their GPUs from 0
        assert event["uuid"] == f"GPU-{event['node']}-{event['given']}"
    assert len({event["uuid"] for event in events}) == 8


def test_in_an_allocation_of_a_whole_node_snakemake_runs_as_on_one_machine(slurm, nodes, local, tmp_path):
    shards = 2
    project = make_holding_project(tmp_path / "project", shards)
    at_once = min(shards, len(os.sched_getaffinity(0)))  # --cores all is what this machine has
    allocation = ("--nodes=1", f"--gpus={GPUS_PER_NODE}", "--cpus-per-task=8", "--mem=16G")
    job = submit_snakemake(project, "--cores", "all", "--resources", f"gpu={GPUS_PER_NODE}", allocation=allocation)
    wait_for(lambda: len(read_events(project)) == at_once, f"{at_once} jobs at once", 200)
    assert len({event["uuid"] for event in read_events(project)}) == at_once
    (project / "hold").unlink()
    wait_for(lambda: slurm.read_state(job) == "COMPLETED", "the end of the job", 200)
    assert select(read_results(project), shards) == select(read_results(local), shards)
    assert {(event["job"], event["given"]) for event in read_events(project)} == {(job, "0,1,2,3")}


def test_the_tasks_of_an_array_each_embed_a_part_and_the_last_job_sums_up(slurm, nodes, local, tmp_path):
    project = make_holding_project(tmp_path / "project", 8)
    node = ("--nodes=1", f"--gpus={GPUS_PER_NODE}", "--cpus-per-task=8", "--mem=16G", "--time=60", "--requeue")
    options = ("--cores", "1", "--resources", f"gpu={GPUS_PER_NODE}")
    array = (*node, "--array=1-2", "--output=printed-%a.txt")
    job = submit_snakemake(project, *options, allocation=array, part="$SLURM_ARRAY_TASK_ID/2")
    last = submit_snakemake(project, *options, allocation=(*node, f"--dependency=afterany:{job}"))
    wait_for(lambda: len(read_events(project)) == 2, "a job of each part", 200)
    assert {event["node"] for event in read_events(project)} == set(nodes)

    # A preempted task: SLURM ends it and starts it again.
    slurm.ask("scontrol", "requeue", f"{job}_2")
    wait_for(lambda: "BeginTime" in slurm.ask("squeue", "-h", "-j", f"{job}_2", "-o", "%r"), "the end of a part", 60)
    slurm.ask("scontrol", "update", f"JobId={job}_2", "StartTime=now")  # SLURM itself waits for two minutes
    # One that is killed leaves its claim, here as from a node that is gone.
    claim = project / "results/record/parts/1-of-2/run.json"
    claimed = json.loads(claim.read_text())
    os.kill(claimed["process"], signal.SIGKILL)
    wait_for(lambda: slurm.read_state(f"{job}_1") == "FAILED", "the end of the other part", 60)
    claim.write_text(json.dumps(claimed | {"host": "elsewhere"}))
    (project / "hold").unlink()
    again = submit_snakemake(project, *options, allocation=(*node, "--array=1"), part="$SLURM_ARRAY_TASK_ID/2")
    slurm.ask("scontrol", "update", f"JobId={last}", f"Dependency=afterany:{job},afterany:{again}")
    wait_for(lambda: slurm.read_state(last) == "COMPLETED", "the end of the last job", 300)
    assert slurm.read_state(again) == slurm.read_state(f"{job}_2") == "COMPLETED"
    assert read_results(project) == read_results(local)
    assert "rule embed" not in (project / "printed.txt").read_text()
    uuids = [event["uuid"].rpartition("-")[0] for event in read_events(project)]
    assert Counter(uuids).keys() == {"GPU-n1", "GPU-n2"}
