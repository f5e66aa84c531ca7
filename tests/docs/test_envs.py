"""The locks of versions agree with pyproject.toml and with each other."""

import re
from importlib import metadata

import pytest
import yaml
from packaging.requirements import Requirement
from support.locks import DEV, EMBED, EXTRAS, JOB, NEAR_COPIES, REPORT, ROOT, RUN, find_closure, normalize, read_pins
from support.tools import run_python

RUN_PINS = read_pins("requirements.txt")
PINS = RUN_PINS | read_pins("requirements-dev.txt")


@pytest.fixture(scope="module")
def installed():
    versions = {name: metadata.version(name) for name in ("torch", "timm", "snakemake")}
    if any(PINS[name].partition("==")[2] != version for name, version in versions.items()):
        pytest.skip(f"needs the versions of requirements.txt, here are {versions}")


def test_every_version_is_pinned_and_no_line_holds_an_address():
    wrong = [line for line in PINS.values() if not re.fullmatch(r"[A-Za-z0-9_.-]+==[A-Za-z0-9.+!]+", line)]
    assert not wrong, f"expected name==version; fix {wrong}"


def test_every_extra_is_in_a_lock():
    assert set(DEV) == {*JOB, *(text for extra in EXTRAS.values() for text in extra)}


def test_each_lock_holds_what_it_is_for_and_nothing_else(installed):
    run = find_closure(RUN)
    renew = "renew it by `python tests/support/locks.py`"
    assert set(RUN_PINS) == run, f"requirements.txt: {renew}"
    assert set(read_pins("requirements-dev.txt")) == find_closure(DEV) - run, f"requirements-dev.txt: {renew}"


def test_what_no_run_needs_is_not_installed_for_one():
    assert not {"lancedb", "moto", "selenium", "pytest", "polars"} & set(RUN_PINS)


def test_pins_satisfy_pyproject():
    for requirement in map(Requirement, DEV):
        version = PINS[normalize(requirement.name)].partition("==")[2]
        assert version in requirement.specifier, f"{requirement} in pyproject.toml"


@pytest.mark.parametrize(
    ("name", "requirements"), [("embed", EMBED), ("report", REPORT), ("near_copies", NEAR_COPIES)]
)
def test_a_conda_environment_holds_the_pins_that_its_rules_need(installed, name, requirements):
    environment = yaml.safe_load((ROOT / f"envs/{name}.yaml").read_text())
    needed = find_closure(requirements)
    expected = [line for package, line in RUN_PINS.items() if package in needed]
    assert environment["dependencies"][-1]["pip"] == expected, "renew it by `python tests/support/locks.py`"


@pytest.mark.slow
def test_the_environment_of_the_report_holds_what_the_report_imports_and_no_torch(installed):
    code = "import sys; from embedders import cli; from embedders.report import page; print(*sys.modules)"
    loaded = run_python("-c", code)
    packages = metadata.packages_distributions()
    names = {name.split(".")[0] for name in loaded.stdout.split()} - {"embedders", "_distutils_hack"}
    needed = find_closure(REPORT)
    assert {"bokeh", "pyarrow"} <= names, loaded.stderr
    assert not {name for name in names & set(packages) if normalize(packages[name][0]) not in needed}
    assert "torch" not in needed
