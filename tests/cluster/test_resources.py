"""What SLURM gives a job and takes from it: memory, a partition for one rule, an instance of MIG, a preempted GPU."""

import re

import pytest
from support.cluster.holding import make_holding_project, read_events
from support.cluster.runs import ON_SLURM, finish, make_project, read_job_ids, read_results, select, start_snakemake
from support.cluster.slurm import GPUS_PER_NODE, can_limit_memory, wait_for

pytestmark = pytest.mark.cluster
HUNGRY = """
from embedders import ImageEmbedder

class Hungry(ImageEmbedder):
    def load_embedding_model(self, device):
        self.much = b"x" * (900 << 20)
        return lambda batch: batch.mean(dim=(2, 3))
"""


@pytest.fixture(scope="module", autouse=True)
def hungry(slurm, nodes, tmp_path_factory):
    """A run whose job takes 900 MB more than it needs otherwise; it goes on beside the other tests of this file."""
    project = make_project(tmp_path_factory.mktemp("hungry") / "project", 1, embedder={"class": "hungry.py:Hungry"})
    (project / "hungry.py").write_text(HUNGRY)
    return project, start_snakemake(project, *ON_SLURM, "--default-resources", "slurm_extra='--nodelist=n2'")


def test_a_preempted_job_waits_and_starts_again(slurm, nodes, local, tmp_path):
    project = make_holding_project(tmp_path / "project", 1)
    run = start_snakemake(project, *ON_SLURM, "--default-resources", "slurm_extra='--nodelist=n1'")
    wait_for(lambda: read_events(project), "the job", 200)
    ((job,),) = read_job_ids(project).values()
    urgent = ("--partition=urgent", "--nodelist=n1", f"--gpus={GPUS_PER_NODE}", "--output=/dev/null")
    slurm.ask("sbatch", "--wait", *urgent, "--wrap", "true")
    assert slurm.read_state(job) == "PENDING"
    slurm.ask("scontrol", "update", f"JobId={job}", "StartTime=now")  # SLURM itself waits for two minutes
    (project / "hold").unlink()
    finish(run, project)
    assert [event["job"] for event in read_events(project)] == [job, job]
    assert select(read_results(project), 1) == select(read_results(local), 1)


def test_one_rule_gets_its_own_partition_and_memory_also_with_several_shards(slurm, nodes, tmp_path):
    project = make_holding_project(tmp_path / "project", 3, shards_per_job=2)
    resources = ("--set-resources", "embed:slurm_partition=urgent", "embed:mem_mb=1500")
    run = start_snakemake(project, *ON_SLURM, *resources, "--until", "embed")
    wait_for(lambda: len(read_events(project)) == 2, "two jobs", 200)
    jobs = ",".join(job for jobs in read_job_ids(project).values() for job in jobs)
    assert slurm.ask("squeue", "-h", "-j", jobs, "-o", "%P %m").splitlines() == ["urgent 1500M"] * 2
    (project / "hold").unlink()
    finish(run, project)
    assert len(list(project.glob("results/embeddings/*.parquet"))) == 3
    assert not (project / "results/summary.json").exists()


def test_each_job_is_on_the_instance_of_mig_that_slurm_gave(slurm, mig_node, tmp_path):
    project = make_holding_project(tmp_path / "project", 2)
    run = start_snakemake(project, *ON_SLURM, "--default-resources", "slurm_partition=mig", "gpu_model='1g.10gb'")
    wait_for(lambda: len(read_events(project)) == 2, "two jobs at once", 200)
    (project / "hold").unlink()
    finish(run, project)
    events = read_events(project)
    assert {event["node"] for event in events} == {mig_node}
    assert {(event["given"], event["uuid"]) for event in events} == {("MIG-0", "MIG-0"), ("MIG-1", "MIG-1")}


def test_a_job_that_needs_more_memory_gets_it_the_second_time(slurm, hungry):
    if not can_limit_memory():
        pytest.skip("SLURM cannot limit memory here: no control groups of version 1 that may be written to")
    project, run = hungry
    printed = finish(run, project)
    ((killed, again),) = read_job_ids(project).values()
    assert slurm.read_state(again) == "COMPLETED"
    assert re.search(rf"error: Detected \d+ oom-kill event\(s\) in StepId={killed}\.", printed)
    assert "mem_mb=1000" in printed and "mem_mb=2000" in printed
