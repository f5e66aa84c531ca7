"""Snakemake called by its path, in a shell where no environment is active."""

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

from support.tools import ROOT
from support.workflow import make_shard, read_colors


def run_by_path(snakemake, project, *options):
    """Run Snakemake where PATH has another Python, without any library, in front."""
    venv.create(project / "other", with_pip=False)
    environment = {"PATH": f"{project}/other/bin:/usr/bin:/bin", "HOME": str(project), "PYTHONPATH": str(ROOT)}
    command = [*snakemake, "--snakefile", str(ROOT / "Snakefile"), *options]
    return subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, timeout=120)


def test_jobs_of_a_snakemake_called_by_its_path_run_with_its_python(project):
    make_shard(project / "data/c.tar", ["green"])
    done = run_by_path([str(Path(sys.executable).parent / "snakemake")], project)
    assert done.returncode == 0, done.stderr
    assert read_colors(project / "results/embeddings/c.parquet") == [[0, 1, 0]]


def test_a_run_whose_jobs_would_lack_a_library_ends_in_one_line_before_the_first_job(project):
    make_shard(project / "data/c.tar", ["green"])
    venv.create(project / "lacking", with_pip=False)
    (libraries,) = (project / "lacking").glob("lib/python*/site-packages")
    for path in Path(sysconfig.get_path("purelib")).iterdir():
        if path.name not in ("pynvml.py", "torch"):
            os.symlink(path, libraries / path.name)
    done = run_by_path([str(project / "lacking/bin/python"), "-m", "snakemake"], project)
    assert done.returncode == 1
    assert "other/bin/python' lacks " in done.stderr
    assert "Traceback" not in done.stderr
    assert not (project / "results/logs/embed/c.log").exists()
