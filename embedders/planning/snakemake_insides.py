"""All uses of Snakemake's undocumented names.

They may change with any release: tests/planning/test_snakemake_insides.py tries each of them with a real Snakemake.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

# The object `workflow` of a Snakefile. Its type is not imported, because jobs may run without Snakemake.
Workflow = Any


def is_main(workflow: Workflow) -> bool:
    """Return whether the current file belongs to the main workflow, and not to a module of another workflow."""
    return workflow.modifier.is_main_snakefile()


def find_folder(workflow: Workflow) -> str:
    """Return the folder of the current file. `workflow.basedir` is that of the main workflow."""
    return str(workflow.current_basedir)


def read_command_line(workflow: Workflow) -> tuple[list[Path], list[str], Mapping[str, Any]]:
    """Return the files of --configfile, the raw arguments of --config, and the same as Snakemake parsed them."""
    return workflow.overwrite_configfiles, workflow.config_settings.config_args, workflow.config_settings.config


def is_planning(workflow: Workflow) -> bool:
    """Return whether this process plans the run, and was not started by an executor for a job."""
    return workflow.is_main_process


def list_deployments(workflow: Workflow) -> set[str]:
    """Return the values of --sdm, such as `apptainer`."""
    return {method.name.lower() for method in workflow.deployment_settings.deployment_method}


def is_forced(workflow: Workflow, rule: str) -> bool:
    """Return whether --forceall or --forcerun makes a rule run again. Only input functions may call this.

    If this workflow is a module of another one, its rules have a prefix.
    """
    settings = workflow.dag_settings
    return settings.forceall or any(name.endswith(rule) for name in settings.forcerun)


def force(workflow: Workflow, outputs: Iterable[str]) -> None:
    """Make Snakemake run the jobs of these outputs in any case. Only input functions may call this."""
    workflow.dag.forcefiles.update(outputs)


def leave_unlocked(workflow: Workflow) -> None:
    """Do not lock the working folder, as with --nolock. Only input functions may call this."""
    workflow.persistence.lock = workflow.persistence.unlock = workflow.persistence.noop
