"""What docs/containers.md and docs/remote-shards.md say is so: their commands, files and variables exist.

tests/cluster builds the image that they show, and tests/workflow/test_remote.py fetches what they fetch.
"""

import re
import shlex

import pytest
import yaml
from support.tools import ROOT
from support.workflow import list_snakemake_options

from embedders.planning.container import describe_container
from embedders.reading.copies import MAX_COPIES
from embedders.reading.fetch import FIRST_WAIT_S, LONGEST_WAIT_S, TRIES
from embedders.reading.remote import SCHEMES
from embedders.report.thumbnails import MAX_FETCHED_BYTES

CONTAINERS, REMOTE = ((ROOT / f"docs/{name}.md").read_text() for name in ("containers", "remote-shards"))


def test_every_snakemake_option_exists():
    commands = re.findall(r"\bsnakemake (-[^\n`]*(?:\n    [^\n`]*)*)", (CONTAINERS + REMOTE).replace("\\\n", ""))
    options = {word for command in commands for word in shlex.split(command) if word.startswith("-")}
    assert {"--sdm", "--profile", "-F"} <= options
    assert options <= list_snakemake_options()


def test_every_file_named_is_there():
    paths = set(re.findall(r"\b(?:containers|workflow/profiles)/\w+(?:\.def)?", CONTAINERS))
    assert {"containers/tarquet.def", "containers/Dockerfile", "workflow/profiles/apptainer"} <= paths
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_the_arguments_of_the_definition_are_those_documented():
    definition = (ROOT / "containers/tarquet.def").read_text()
    for name in re.findall(r"--build-arg (\w+)=", CONTAINERS):
        assert f"{{{{ {name} }}}}" in definition


def test_the_folders_that_the_environment_names_are_bound_as_documented(tmp_path, monkeypatch):
    monkeypatch.setattr("embedders.planning.container._SHOWN", ())
    (line,) = re.findall(r"^- the folders in (.*);$", CONTAINERS, re.MULTILINE)
    for name in re.findall(r"`(\w+)`", line):
        assert describe_container([], [], False, {name: str(tmp_path)})["APPTAINER_BIND"] == str(tmp_path)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_kind_of_address_is_listed_with_its_access(scheme):
    assert len([line for line in REMOTE.splitlines() if line.startswith("| `") and f"`{scheme}://" in line]) == 1


def test_the_numbers_of_fetching_are_those_documented():
    waited_s = sum(min(FIRST_WAIT_S * 2**number, LONGEST_WAIT_S) for number in range(TRIES - 1))
    assert f"after {TRIES} tries in a row without progress, which takes a minute and a half" in REMOTE
    assert 85 < waited_s < 95
    assert MAX_COPIES == 2 and "at most two" in REMOTE
    assert f"stops after {MAX_FETCHED_BYTES >> 30} GB" in REMOTE


def test_the_examples_of_shards_and_containers_are_keys():
    keys = yaml.safe_load((ROOT / "workflow/schemas/config.schema.yaml").read_text())["properties"]
    for block in re.findall(r"```yaml\n(.*?)```", CONTAINERS + REMOTE, re.DOTALL):
        assert set(yaml.safe_load(block)) <= set(keys)
