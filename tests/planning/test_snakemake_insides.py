"""What a real Snakemake answers to each question of `snakemake_insides`: one that renames something fails here."""

import inspect
import json

import pytest
from support.tools import run_python
from support.workflow import snakemake_environment

from embedders.planning import snakemake_insides

SNAKEFILE = """
import json
from embedders.planning import snakemake_insides as insides

answers = {name: getattr(insides, name)(workflow) for name in (
    "is_main", "find_folder", "read_command_line", "is_planning", "list_deployments")}

def find(wildcards):
    answers["is_forced"] = {rule: insides.is_forced(workflow, rule) for rule in ("made", "all")}
    insides.force(workflow, ["a.txt"])
    if "unlocked" in config:
        insides.leave_unlocked(workflow)
    with open("NAME.json", "w") as file:
        json.dump(answers, file, default=lambda value: sorted(value) if isinstance(value, set) else str(value))
    return []

rule all:
    input: "a.txt", find

rule made:
    output: "a.txt"
    shell: "echo 1 >> {output}"
"""
MODULE = """
module inner:
    snakefile: "inner/Snakefile"
    config: config

use rule * from inner as inner_*

rule all:
    default_target: True
    input: rules.inner_all.input
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("insides")
    (folder / "inner").mkdir()
    (folder / "Snakefile").write_text(SNAKEFILE.replace("NAME", "main"))
    (folder / "inner/Snakefile").write_text(SNAKEFILE.replace("NAME", "module"))
    (folder / "outer").write_text(MODULE)
    (folder / "c.yaml").write_text("key: 1\n")
    (folder / "a.txt").write_text("0\n")
    return folder


def ask(folder, name, *options):
    done = run_python("-m", "snakemake", "-n", *options, cwd=folder, env=snakemake_environment())
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Forced execution" in done.stdout  # of what is there
    return json.loads((folder / f"{name}.json").read_text())


@pytest.mark.slow
def test_every_question_is_answered_for_the_main_workflow(folder):
    options = ["--configfile", "c.yaml", "--sdm", "conda", "apptainer"]
    answers = ask(folder, "main", *options, "--config", "n_a=2024_01", "--forcerun", "made")
    assert answers == {
        "is_main": True,
        "find_folder": str(folder),
        "read_command_line": [[str(folder / "c.yaml")], ["n_a=2024_01"], {"n_a": 202401}],
        "is_planning": True,
        "list_deployments": ["apptainer", "conda"],
        "is_forced": {"made": True, "all": False},
    }
    public = {name for name, value in vars(snakemake_insides).items() if inspect.isfunction(value)}
    assert public == {*answers, "force", "leave_unlocked"}


def test_a_module_knows_that_it_is_one_and_where_it_lies(folder):
    answers = ask(folder, "module", "--snakefile", "outer", "--forceall")
    assert (answers["is_main"], answers["find_folder"]) == (False, str(folder / "inner"))
    assert answers["is_forced"] == {"made": True, "all": True}
    assert answers["read_command_line"] == [[], [], {}]


@pytest.mark.slow
def test_the_lock_of_a_killed_run_does_not_matter_if_the_folder_is_left_unlocked(folder):
    lock = folder / ".snakemake/locks/0.output.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    lock.write_text("a.txt\n")
    command = ("-m", "snakemake", "--cores", "1")
    done = run_python(*command, cwd=folder, env=snakemake_environment())
    assert done.returncode != 0 and "cannot be locked" in done.stderr
    done = run_python(*command, "--config", "unlocked=1", cwd=folder, env=snakemake_environment())
    assert done.returncode == 0, done.stderr
    assert lock.exists()
