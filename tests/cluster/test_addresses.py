"""Shards with an address on a real SLURM: the nodes fetch them, each those of its jobs, and the login node none."""

import json
import re

import pytest
from support.cluster.runs import ON_SLURM, finish, make_project, start_snakemake
from support.servers import start_web
from support.tools import leftovers, make_shard
from support.workflow import edit

pytestmark = pytest.mark.cluster


@pytest.fixture
def scratch(slurm, nodes, tmp_path):
    """A folder for copies on each node, as nodes have a disk of their own."""
    folders = {node: tmp_path / node for node in nodes}
    for node, folder in folders.items():
        folder.mkdir()
        slurm.set_node_environment(node, TMPDIR=folder)
    yield folders
    for node, world in nodes.items():
        variables = ("LD_LIBRARY_PATH", "FAKE_NVML", "TARQUET_LEASE_DIR")
        slurm.set_node_environment(node, **{name: world.env[name] for name in variables})


def test_each_node_fetches_the_shards_of_its_jobs(scratch, tmp_path):
    (tmp_path / "web").mkdir()
    for number in range(4):
        make_shard(tmp_path / f"web/{number}.tar", 3 + number)
    with start_web(tmp_path / "web") as web:
        # Two jobs that ask for more than half of a node's memory each.
        project = make_project(tmp_path / "project", 0, shards_per_job=2, mem_mb=40000)
        edit(project / "config.yaml", "data/*.tar", f"{web.address}/{{0..3}}.tar")
        finish(start_snakemake(project, *ON_SLURM), project)
        assert sorted(path for method, path, _ in web.requests if method == "GET") == [f"/{n}.tar" for n in range(4)]
    logs = [path.read_text() for path in (project / "results/logs/embed").glob("*.log")]
    used = {re.search(r"fetching 2 shards to (\S+)/tarquet-", log)[1] for log in logs}
    assert used == set(map(str, scratch.values()))
    assert all(leftovers(folder) == [] for folder in scratch.values())
    assert json.loads((project / "results/summary.json").read_text())["embedded"] == 3 + 4 + 5 + 6
