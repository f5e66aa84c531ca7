"""A cluster for the tests of this folder, which `make test-cluster` runs."""

import pytest
from support.cluster.holding import make_holding_project
from support.cluster.runs import ON_SLURM, finish, read_inodes, start_snakemake
from support.cluster.slurm import GPUS_PER_NODE, MIG_NODE, NODES, Slurm, find_missing, wait_for
from support.fake_nvml.world import World, describe


@pytest.fixture(scope="session")
def packages():
    """Debian's packages of SLURM, on a machine that may become a cluster."""
    if missing := find_missing():
        pytest.skip(missing)


@pytest.fixture(scope="session")
def slurm(packages):
    """A real SLURM of two nodes with four pretended GPUs each, up until the last test ends."""
    with Slurm() as cluster:
        yield cluster


@pytest.fixture(scope="session")
def local(nodes, tmp_path_factory):
    """The results that all others are held against: of eight shards, embedded on this machine."""
    project = make_holding_project(tmp_path_factory.mktemp("local") / "project", 8, hold_after=None)
    finish(start_snakemake(project, "--resources", f"gpu={GPUS_PER_NODE}", **nodes["n1"].env), project)
    return project


@pytest.fixture(scope="session")
def nodes(slurm, drivers):
    """The nodes' names, with the fake driver's view of their GPUs, which every job step of a node has too."""
    worlds = {node: make_world(slurm, drivers, node) for node in NODES}
    for node, world in worlds.items():
        world.write(*(describe(f"GPU-{node}-{number}") for number in range(GPUS_PER_NODE)))
    yield worlds
    for node in NODES:
        slurm.set_node_environment(node)


@pytest.fixture(scope="session")
def limited(slurm, nodes, tmp_path_factory):
    """Two runs of two shards in a job of two minutes, in the middle of the second shard; and what is kept.

    SLURM counts limits in minutes, so these runs go on beside other tests. Not beside the restart of slurmctld: what
    is submitted in that moment SLURM 22.05 may start without its GPU.
    """
    # Nothing of the profile's may be needed for the warning. On one node, so that a test can preempt on the other.
    options = (*ON_SLURM, "--default-resources", "slurm_partition=gpu", "slurm_extra='--nodelist=n2'")
    runs = {}
    for name in ("warned", "killed"):
        folder = tmp_path_factory.mktemp(name) / "project"
        project = make_holding_project(folder, 2, hold_after=5, shards_per_job=2, runtime=1)
        if name == "killed":  # deaf to SIGTERM, as in a long call of a model
            (project / "deaf").touch()
        runs[name] = project, start_snakemake(project, *options)
    kept = {}
    for name, (project, _) in runs.items():
        partial = "results/embeddings/.00001.parquet.*.partial"
        wait_for(lambda: list(project.glob(partial)), f"the second shard of the one to be {name}", 200)  # noqa: B023
        kept[name] = read_inodes(project)
    return {name: (*run, kept[name]) for name, run in runs.items()}


@pytest.fixture(scope="session")
def mig_node(slurm, drivers):
    """The node with a card in MIG mode."""
    instances = [describe(f"MIG-{number}", "mig", gi=number, mig=None, util=None) for number in range(2)]
    make_world(slurm, drivers, MIG_NODE).write(describe("GPU-0", mig=1), *instances)
    return MIG_NODE


def make_world(slurm, drivers, node):
    world = World(drivers / "new", slurm.folder / f"{node}.world")
    world.folder.mkdir()
    variables = ("LD_LIBRARY_PATH", "FAKE_NVML", "TARQUET_LEASE_DIR")
    slurm.set_node_environment(node, **{name: world.env[name] for name in variables})
    return world
