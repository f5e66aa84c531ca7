"""Why a shard has no result: the lines that a job's log has of it. Owns how they are written and found again.

A log begins anew with each job, so that its lines are of that job. What the job logs on its way has a time in front;
these lines have none.
"""

import sys
from pathlib import Path

from embedders.errors import make_one_line

_ERROR = "error: "


def report_error(message: str) -> None:
    """Print the line that a command ends with when it fails, whatever made it fail but a kill."""
    print(f"{_ERROR}{make_one_line(message)}", file=sys.stderr, flush=True)


def report_failure(tar_path: str, error: Exception) -> None:
    """Print the line of a shard that failed while the others of its job go on."""
    print(f"{_start(tar_path)}{_strip_path(str(error), tar_path)}", file=sys.stderr, flush=True)


def find_error(log: str | Path, tar_path: str) -> str:
    """Return what a job said of a shard that it did not finish.

    Args:
        log: The log of the job.
        tar_path: The shard, which may be one of several in the job.
    """
    lines = [line for line in Path(log).read_text(errors="replace").splitlines() if line.strip()]
    is_done = any(f" INFO {tar_path}: " in line and " samples, " in line for line in lines)
    for start in (_start(tar_path), *([] if is_done else [_ERROR])):
        found = [line.removeprefix(start) for line in lines if line.startswith(start)]
        if found:
            return _strip_path(found[-1], tar_path)
    if is_done:
        return (
            "its job ended well, but Snakemake did not take what it made and says why above; compare the clocks of "
            "this machine and of the file server, and give --latency-wait more seconds"
        )
    last = f"; its log ends with: {make_one_line(lines[-1])}" if lines else ""
    return f"its job left no error: it was killed, as for want of memory or time, or did not start{last}"


def _start(tar_path: str) -> str:
    return f"failed shard: {make_one_line(tar_path)}: "


def _strip_path(message: str, tar_path: str) -> str:
    for name in (f"{tar_path}: ", f"{tar_path!r}: "):
        message = message.removeprefix(name)
    return make_one_line(message)
