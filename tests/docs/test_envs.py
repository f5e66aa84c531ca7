"""The environment that Snakemake's `conda:` names agrees with the versions pinned for everything else."""

import re
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
PINS = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if not line.startswith("#")]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())

# The oldest one, which needs the most, and the one of envs/embed.yaml; whatever Python the tests run on.
PYTHON = {"python_version": "3.11", "python_full_version": "3.11.0"}


def normalize(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def read_requirements(name):
    try:
        return metadata.requires(name) or []
    except metadata.PackageNotFoundError:
        return []


def find_closure(requirements):
    """Names of all that these requirements bring, by the metadata of what is installed."""
    names, todo = set(), [(Requirement(text), "") for text in requirements]
    while todo:
        requirement, extra = todo.pop()
        if requirement.marker and not requirement.marker.evaluate(PYTHON | {"extra": extra}):
            continue
        name = normalize(requirement.name)
        if (name, None) in names and not requirement.extras:
            continue
        names.add((name, None))
        for wanted in ("", *requirement.extras):
            if (name, wanted) not in names:
                names.add((name, wanted))
                todo += [(Requirement(text), wanted) for text in read_requirements(name)]
    return {name for name, _ in names}


@pytest.fixture(scope="module")
def pins():
    by_name = {normalize(line.partition("==")[0]): line for line in PINS}
    installed = {name: metadata.version(name) for name in ("torch", "timm", "snakemake")}
    if any(by_name[name].partition("==")[2] != version for name, version in installed.items()):
        pytest.skip(f"needs the versions of requirements.txt, here are {installed}")
    return by_name


def test_every_version_is_pinned_and_no_line_holds_an_address():
    wrong = [line for line in PINS if not re.fullmatch(r"[A-Za-z0-9_.-]+==[A-Za-z0-9.+!]+", line)]
    assert not wrong, f"requirements.txt: expected name==version; mend {wrong}"


def test_requirements_hold_all_that_the_project_needs(pins):
    project = PYPROJECT["project"]
    extras = [text for group in project["optional-dependencies"].values() for text in group]
    missing = find_closure(project["dependencies"] + extras) - set(pins)
    assert not missing, f"requirements.txt lacks {sorted(missing)}; renew it as its first line says"


def test_pins_satisfy_pyproject():
    project = PYPROJECT["project"]
    versions = {normalize(name): version for name, _, version in (line.partition("==") for line in PINS)}
    for group in (project["dependencies"], *project["optional-dependencies"].values()):
        for requirement in map(Requirement, group):
            assert versions[normalize(requirement.name)] in requirement.specifier, f"{requirement} in pyproject.toml"


def test_the_conda_environment_holds_the_pins_that_a_job_needs(pins):
    environment = yaml.safe_load((ROOT / "envs/embed.yaml").read_text())
    found = environment["dependencies"][-1]["pip"]
    needed = find_closure(PYPROJECT["project"]["dependencies"])
    expected = [line for name, line in pins.items() if name in needed]
    listing = "\n".join(f"      - {line}" for line in expected)
    assert found == expected, f"envs/embed.yaml: let the list under `pip:` be\n{listing}"
