"""The locks of versions, from pyproject.toml and what is installed: `python tests/support/locks.py` writes them.

To renew the versions, first `pip install --upgrade -e '.[EXTRAS]'`, with all the extras of pyproject.toml.
"""

import re
import tomllib
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
JOB = PROJECT["dependencies"]
USED = ("report", "near-copies", "workflow", "slurm", "storage", "demo")
RUN = [*JOB, *(text for extra in USED for text in EXTRAS[extra])]
ADDED = ("open-clip", "transformers", "lance", "examples", "test")
DEV = [*RUN, *(text for extra in ADDED for text in EXTRAS[extra])]
# The report and the search for near copies look at files: of what jobs need, only these.
LIGHT = [text for text in JOB if re.match("click|numpy|nvidia-ml-py|pillow|pyarrow", text)]
REPORT = [*EXTRAS["report"], *LIGHT, *EXTRAS["storage"]]
# torch searches on a GPU.
NEAR_COPIES = [*EXTRAS["near-copies"], *LIGHT, *(text for text in JOB if re.match("torch>", text))]
# Jobs fetch shards, and so does the report, for its pictures.
EMBED = [*JOB, *EXTRAS["storage"]]

# The oldest Python, which needs the most, and the one of envs/*.yaml; whatever Python this runs on.
PYTHON = {"python_version": "3.11", "python_full_version": "3.11.0"}


def normalize(name):
    return re.sub(r"[-_.]+", "-", name).lower()


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


def read_requirements(name):
    try:
        return metadata.requires(name) or []
    except metadata.PackageNotFoundError:
        return []


def read_pins(lock):
    """The lines of a lock, by the name of the package."""
    lines = [line for line in (ROOT / lock).read_text().splitlines() if line and line[0] not in "#-"]
    return {normalize(line.partition("==")[0]): line for line in lines}


def list_pins(names):
    """A line for each package, as `pip freeze` would write it."""
    found = [metadata.distribution(name) for name in names]
    return sorted((f"{one.metadata['Name']}=={one.version}" for one in found), key=lambda line: normalize(line))


def replace_pins(lock, names):
    """Write the lines, in the place and with the indent of those that are there."""
    text = (ROOT / lock).read_text()
    lines = "".join(rf"\g<1>{line}" + "\n" for line in list_pins(names))
    (ROOT / lock).write_text(re.sub(r"(?m)^( *(?:- )?)[\w.-]+==.*\n(?:\1[\w.-]+==.*\n)*", lines, text, count=1))


if __name__ == "__main__":
    run = find_closure(RUN)
    replace_pins("requirements.txt", run)
    replace_pins("requirements-dev.txt", find_closure(DEV) - run)
    replace_pins("envs/embed.yaml", find_closure(EMBED))
    replace_pins("envs/report.yaml", find_closure(REPORT))
    replace_pins("envs/near_copies.yaml", find_closure(NEAR_COPIES))
