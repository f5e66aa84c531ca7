"""What docs/hpc.md says is so: its commands and keys exist, and the two lines to edit are in the profile.

tests/cluster types its commands on a real SLURM.
"""

import re
import shlex

import yaml
from support.config_table import SCHEMA_PATH
from support.tools import ROOT
from support.workflow import list_snakemake_options

PAGE = (ROOT / "docs/hpc.md").read_text()
PROFILE = (ROOT / "workflow/profiles/slurm/config.yaml").read_text()


def find_blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def test_every_snakemake_option_exists():
    commands = re.findall(r"\bsnakemake (-[^\n'&>]*)", "\n".join(find_blocks("sh")))
    options = {word for command in commands for word in shlex.split(command) if word.startswith("-")}
    assert {"--profile", "-n", "--cores", "--resources", "--unlock"} <= options
    assert options <= list_snakemake_options()


def test_the_two_lines_to_edit_are_in_the_profile():
    (block,) = find_blocks("yaml")
    lines = block.splitlines()[1:]
    assert [line.split()[0] for line in lines] == ["slurm_partition:", "slurm_account:"]
    assert all(f"  # {line.strip()}\n" in PROFILE for line in lines)


def test_what_the_page_says_of_the_profile_is_there():
    profile = yaml.safe_load(PROFILE)
    assert f"At most {profile['jobs']} jobs" in PAGE
    assert profile["slurm-status-command"] == "squeue"
    assert 3 * profile["slurm-init-seconds-before-status-checks"] == 180
    assert profile["retries"] == 1
    assert profile["slurm-requeue"] is True


def test_every_key_of_the_configuration_exists():
    keys = yaml.safe_load(SCHEMA_PATH.read_text())["properties"]
    named = {"gpu", "threads", "mem_mb", "runtime", "shards_per_job", "accept_damaged_shards"}
    assert named <= set(keys)
    assert all(f"`{key}" in PAGE for key in named)
