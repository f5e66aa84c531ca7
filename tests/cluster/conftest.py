"""A cluster for the tests of this folder, which `make test-cluster` runs."""

import pytest
from support.cluster.holding import make_holding_project
from support.cluster.runs import finish, start_snakemake
from support.cluster.slurm import GPUS_PER_NODE, NODES, Slurm, find_missing
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
    worlds = {node: World(drivers / "new", slurm.folder / f"{node}.world") for node in NODES}
    for node, world in worlds.items():
        world.folder.mkdir()
        world.write(*(describe(f"GPU-{node}-{number}") for number in range(GPUS_PER_NODE)))
        variables = ("LD_LIBRARY_PATH", "FAKE_NVML", "TARQUET_LEASE_DIR")
        slurm.set_node_environment(node, **{name: world.env[name] for name in variables})
    yield worlds
    for node in NODES:
        slurm.set_node_environment(node)
