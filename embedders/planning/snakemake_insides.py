"""What the rules ask of Snakemake beside what it documents, gathered here.

Such a name may change with any release: tests/planning/test_snakemake_insides.py asks a real Snakemake for each.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

# Snakemake's object of that name in a Snakefile; its type is not imported, because jobs may have no Snakemake.
Workflow = Any


def is_main(workflow: Workflow) -> bool:
    """Return whether the file that is read belongs to the main workflow, and not to a module of another one."""
    return workflow.modifier.is_main_snakefile()


def find_folder(workflow: Workflow) -> str:
    """Return the folder of the file that is read. `workflow.basedir` is the main workflow's."""
    return str(workflow.current_basedir)


def read_command_line(workflow: Workflow) -> tuple[list[Path], list[str], Mapping[str, Any]]:
    """Return the files of --configfile, the arguments of --config as they are, and these as Snakemake reads them."""
    return workflow.overwrite_configfiles, workflow.config_settings.config_args, workflow.config_settings.config


def is_planning(workflow: Workflow) -> bool:
    """Return whether this process plans the run, and is none that an executor has started for a job."""
    return workflow.is_main_process


def list_deployments(workflow: Workflow) -> set[str]:
    """Return what --sdm names, as `apptainer`."""
    return {method.name.lower() for method in workflow.deployment_settings.deployment_method}


def find_storage_folder(workflow: Workflow) -> str:
    """Return the folder that copies of shards with an address go to."""
    return str(workflow.storage_settings.local_storage_prefix)


def is_forced(workflow: Workflow, rule: str) -> bool:
    """Return whether --forceall or --forcerun has a rule run again; to be asked by input functions.

    Where this workflow is a module of another one, its rules have a prefix.
    """
    settings = workflow.dag_settings
    return settings.forceall or any(name.endswith(rule) for name in settings.forcerun)


def force(workflow: Workflow, outputs: Iterable[str]) -> None:
    """Have outputs made again whatever Snakemake thinks of them; to be called by input functions."""
    workflow.dag.forcefiles.update(outputs)
