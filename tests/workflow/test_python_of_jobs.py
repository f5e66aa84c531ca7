"""Snakemake called by its path, in a shell where no environment is active."""

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
from support.tools import ROOT
from support.workflow import edit, make_shard, read_colors


def run_by_path(snakemake, project, *options):
    """Run Snakemake where PATH has another Python, without any library, in front."""
    venv.create(project / "other", with_pip=False)
    environment = {"PATH": f"{project}/other/bin:/usr/bin:/bin", "HOME": str(project), "PYTHONPATH": str(ROOT)}
    command = [*snakemake, "--snakefile", str(ROOT / "Snakefile"), *options]
    return subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, timeout=600)


def test_jobs_of_a_snakemake_called_by_its_path_run_with_its_python(project):
    make_shard(project / "data/c.tar", ["green"])
    done = run_by_path([str(Path(sys.executable).parent / "snakemake")], project)
    assert done.returncode == 0, done.stderr
    assert read_colors(project / "results/embeddings/c.parquet") == [[0, 1, 0]]


def make_environment(folder, lacking):
    """Make an environment with the libraries of this one, except one."""
    venv.create(folder, with_pip=False)
    (libraries,) = folder.glob("lib/python*/site-packages")
    for path in Path(sysconfig.get_path("purelib")).iterdir():
        if path.name != lacking:
            os.symlink(path, libraries / path.name)
    return str(folder / "bin/python")


@pytest.mark.parametrize(
    ("lacking", "report", "line"),
    [
        ("torch", "false", "jobs run with the `python` in PATH, and '{other}' lacks click, "),
        ("bokeh", "true", "the report cannot be written: '{own}' lacks bokeh; "),
    ],
)
def test_a_run_that_would_lack_a_library_ends_in_one_line_before_the_first_job(project, lacking, report, line):
    make_shard(project / "data/c.tar", ["green"])
    edit(project / "config.yaml", "report: false", f"report: {report}")
    own = make_environment(project / "lacking", lacking)
    done = run_by_path([own, "-m", "snakemake"], project)
    assert done.returncode == 1
    assert line.format(own=own, other=f"{project}/other/bin/python") in done.stderr
    assert "Traceback" not in done.stderr
    assert not (project / "results/logs/embed/c.log").exists()


def test_the_report_of_a_python_without_its_libraries_is_refused_in_one_line(project):
    own = make_environment(project / "lacking", "sklearn")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [own, "-m", "embedders", "report", "results"]
    done = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: the report cannot be written: '{own}' lacks sklearn; expected ")
    assert len(done.stderr.splitlines()) == 1
