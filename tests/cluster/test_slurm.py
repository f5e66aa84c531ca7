"""Real runs on a real SLURM of two nodes: `snakemake --profile workflow/profiles/slurm`."""

import pytest
from runs import ON_SLURM, finish, make_project, read_results, start_snakemake

pytestmark = pytest.mark.cluster


def test_slurm_makes_what_a_local_run_makes(slurm, tmp_path):
    here, there = (make_project(tmp_path / name, 4) for name in ("here", "there"))
    run = start_snakemake(there, *ON_SLURM)
    finish(start_snakemake(here), here)
    printed = finish(run, there)
    assert printed.count("has been submitted with SLURM jobid") == 4
    assert len(read_results(here)) == 9
    assert read_results(there) == read_results(here)
