"""Which `python` jobs outside containers and conda use: Snakemake's own if it fits, else the first in PATH.

Owns the inspection of a Python from outside. Jobs call just `python`, so that a run can continue in another
environment or on another machine without running anything again.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from embedders.errors import ConfigError

# The packages that every job imports, and below those of other tasks. tests/planning/test_job_python.py checks both.
JOB = ("click", "duckdb", "embedders", "numpy", "PIL", "pyarrow", "pynvml", "torch")
# Those of jobs that fetch shards.
STORAGE = ("boto3", "botocore", "obstore")
REPORT = ("bokeh", "jinja2", "sklearn", "threadpoolctl")
_LIST_MISSING = (
    "import sys; from importlib.util import find_spec; print(*[name for name in sys.argv[1:] if not find_spec(name)])"
)
_BUILD = """
import json, sys
from embedders.errors import TarquetError
from embedders.job import locate
try:
    getattr(locate, f"build_{sys.argv[1]}")(sys.argv[2], json.loads(sys.argv[3]))
except TarquetError as error:
    sys.exit(str(error))
"""


def prefer_own_python(search_path: str) -> str:
    """Return a PATH that starts with the Python of Snakemake, if that Python has what jobs need.

    Args:
        search_path: The current value. It is returned unchanged if Snakemake has a separate environment without the
            libraries of the jobs.
    """
    folder = Path(sys.executable).parent
    own = folder / "python"
    if shutil.which("python", path=search_path) == str(own) or not own.exists() or _find_problem(str(own), JOB):
        return search_path
    return f"{folder}{os.pathsep}{search_path}"


def check_job_python(fetches: bool = False) -> None:
    """Check before the first job starts that the `python` in PATH has what jobs need.

    Args:
        fetches: Whether jobs fetch shards.

    Raises:
        ConfigError: There is no `python`, it does not run, or it lacks a library.
    """
    python = shutil.which("python")
    problem = _find_problem(python, (*JOB, *(STORAGE if fetches else ()))) if python else "is not there"
    if problem:
        raise ConfigError(
            f"jobs run with the `python` in PATH, and {python or 'python'!r} {problem}; expected one with Tarquet "
            f"and its dependencies; install them for {sys.executable!r}, which runs Snakemake, or activate their "
            "environment, or use --sdm conda or apptainer"
        )


def check_class(class_path: str, args: Mapping[str, Any], kind: str = "embedder") -> None:
    """Check that the `python` in PATH can build a class, as a job will.

    A run calls it before it replaces results, because Snakemake removes the results of each job that it starts. With
    a misspelled argument, all jobs would start, and fail.

    Args:
        class_path: The class.
        args: Its arguments.
        kind: `embedder` or `classifier`.

    Raises:
        ConfigError: It cannot be built.
    """
    command = ["python", "-c", _BUILD, kind, class_path, json.dumps(args)]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}  # no GPU is leased
    answer = subprocess.run(command, capture_output=True, text=True, env=environment)
    if answer.returncode:
        reason = (answer.stderr.strip() or "it ends without a message").splitlines()[-1]
        raise ConfigError(f"{reason}; no job was started, and the earlier results are kept")


def check_report_python(python: str) -> None:
    """Check that a Python has the libraries that the report needs.

    Raises:
        ConfigError: It lacks one.
    """
    if problem := _find_problem(python, REPORT):
        raise ConfigError(
            f"the report cannot be written: {python!r} {problem}; expected the libraries of the extra `report`: "
            "`pip install bokeh jinja2 scikit-learn threadpoolctl`, or set `report: false` in config.yaml"
        )


def _find_problem(python: str, names: Sequence[str]) -> str | None:
    answer = subprocess.run([python, "-c", _LIST_MISSING, *names], capture_output=True, text=True)
    if answer.returncode:
        return f"fails: {(answer.stderr.strip() or 'without a message').splitlines()[-1]}"
    return f"lacks {', '.join(answer.stdout.split())}" if answer.stdout.strip() else None
