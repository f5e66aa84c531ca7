"""A cluster for the tests of this folder, which `make test-cluster` runs."""

import pytest
from slurm import Slurm, find_missing


@pytest.fixture(scope="session")
def slurm():
    """A real SLURM of two nodes with four pretended GPUs each, up until the last test ends."""
    if missing := find_missing():
        pytest.skip(missing)
    with Slurm() as cluster:
        yield cluster
