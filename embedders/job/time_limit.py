"""Ends a process cleanly a little before SLURM kills it at the time limit of its job.

SLURM itself warns a job only if an option of sbatch asks for it. This needs no option, and works the same for a job
that Snakemake submits and for one of the many processes in the allocation of a whole node.
"""

import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Mapping
from contextlib import suppress
from threading import Thread
from time import sleep, time

JOB = "SLURM_JOB_ID"
# The variable in which newer versions of SLURM tell a job when it ends, in seconds since 1970.
END = "SLURM_JOB_END_TIME"
# The limit may be changed meanwhile, and `sleep` has a limit of its own.
LONGEST_S = 30 * 86400


def find_end(environment: Mapping[str, str]) -> float | None:
    """Return when the time limit of the SLURM job is reached, in seconds since 1970; `None` if there is none.

    Asks SLURM, because a limit can be changed while the job runs; if its commands are missing, as in a container, the
    variable of the environment counts.
    """
    if JOB not in environment:
        return None
    said = environment.get(END, "")
    if shutil.which("squeue"):
        command = ["squeue", "--noheader", "--jobs", environment[JOB], "--format", "%e"]
        with suppress(OSError, subprocess.SubprocessError):
            said = subprocess.run(
                command, env={**environment, "SLURM_TIME_FORMAT": "%s"},
                capture_output=True, text=True, timeout=60, check=True,
            ).stdout.strip()  # fmt: skip
    return float(said) if said.isdecimal() else None


def describe_end(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variable that says when the time limit is reached, for a job that will not be able to ask SLURM."""
    end = find_end(environment)
    return {} if end is None else {END: str(int(end))}


def end_before_limit(most_s: float, say: Callable[[str], None]) -> None:
    """Send this process SIGTERM before the time limit of its SLURM job, if it has one.

    Args:
        most_s: How many seconds before, or a tenth of the time left if that is less.
        say: Called with a line before the signal.
    """
    if JOB in os.environ:
        Thread(target=_wait, args=(most_s, say), daemon=True).start()


def _wait(most_s: float, say: Callable[[str], None]) -> None:
    end = find_end(os.environ)
    if end is None:
        return
    before_s = min(most_s, max(0.0, end - time()) / 10)
    while (left_s := end - before_s - time()) > 0:
        sleep(min(left_s, LONGEST_S))
        end = find_end(os.environ) or end  # it may have been extended
    say(f"SLURM job {os.environ[JOB]} reaches its time limit in {before_s:.0f} s")
    os.kill(os.getpid(), signal.SIGTERM)
