"""Which Python jobs run with: real environments, one of which has nothing that a job needs."""

import os
import sys
import venv
from pathlib import Path

import pytest
from support.imports import MODULES, find_imports
from support.tools import MEAN_COLOR, ROOT

from embedders.errors import ConfigError
from embedders.planning.job_python import JOB, REPORT, STORAGE, check_class, check_job_python, prefer_own_python

ROOMS_OF_A_JOB = {"base", "classifier", "cli", "cli_results", "gpu", "job", "output", "reading", "terminal"}
OWN = str(Path(sys.executable).parent)


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """The folder of a `python` without any library."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, with_pip=False)
    return str(folder / "bin")


def test_snakemakes_own_python_comes_first(bare):
    assert prefer_own_python(f"{bare}:/usr/bin").split(os.pathsep) == [OWN, bare, "/usr/bin"]


def test_an_active_environment_stays_as_it_is():
    assert prefer_own_python(f"{OWN}:/usr/bin") == f"{OWN}:/usr/bin"


def test_a_snakemake_without_the_libraries_of_jobs_leaves_them_the_python_of_the_path(bare, monkeypatch):
    monkeypatch.setattr(sys, "executable", f"{bare}/python")
    assert prefer_own_python(f"{OWN}:{bare}") == f"{OWN}:{bare}"
    monkeypatch.setenv("PATH", f"{OWN}:{bare}")
    check_job_python()


def test_a_python_that_lacks_something_is_named_with_what_it_lacks(bare, monkeypatch):
    monkeypatch.setenv("PATH", bare)
    with pytest.raises(ConfigError, match=rf"'{bare}/python' lacks .*numpy.*, torch; expected .* --sdm conda"):
        check_job_python()


def test_no_python_at_all_is_said(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="'python' is not there"):
        check_job_python()


def test_a_python_that_does_not_run_is_said_with_its_last_line(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    (tmp_path / "python").write_text("#!/bin/sh\necho 'no libpython here' >&2\nexit 127\n")
    (tmp_path / "python").chmod(0o755)
    with pytest.raises(ConfigError, match="fails: no libpython here"):
        check_job_python()


@pytest.mark.parametrize(
    ("class_path", "kind"), [(MEAN_COLOR, "embedder"), (f"{ROOT}/examples/brightness.py:Brightness", "classifier")]
)
def test_a_class_that_jobs_cannot_build_is_named_with_the_reason(class_path, kind, monkeypatch):
    monkeypatch.setenv("PATH", OWN)
    check_class(class_path, {}, kind)
    with pytest.raises(ConfigError, match=r"keyword argument 'sise'.*; no job was started, and the earlier"):
        check_class(class_path, {"sise": 1}, kind)


def list_libraries(rooms):
    files = [path for module, path in MODULES.items() if module.split(".")[1] in rooms]
    imported = {name.split(".")[0] for path in files for name, _ in find_imports(path)}
    return imported - set(sys.stdlib_module_names)


def test_the_lists_are_what_the_files_import():
    assert list_libraries(ROOMS_OF_A_JOB) == {*JOB, *STORAGE, "simplejpeg"}  # which a job does without, more slowly
    assert list_libraries({"report"}) - set(JOB) == set(REPORT)
