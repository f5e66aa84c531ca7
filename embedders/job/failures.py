"""The lines of a job's log that say why a shard has no result. Owns how they are written and how they are found.

Each job starts a new log, so all its lines are from that job. Ordinary log lines begin with a time; these do not.
"""

import sys
from pathlib import Path

from embedders.errors import make_one_line

_ERROR = "error: "


def report_error(message: str) -> None:
    """Print the last line of a failed command. Only a command that was killed has no such line."""
    print(f"{_ERROR}{make_one_line(message)}", file=sys.stderr, flush=True)


def report_failure(tar_path: str, error: Exception) -> None:
    """Print the line of a failed shard whose job goes on with the other shards."""
    print(f"{_start(tar_path)}{_strip_path(str(error), tar_path)}", file=sys.stderr, flush=True)


def find_error(log: str | Path, tar_path: str) -> str:
    """Return why a job did not finish a shard.

    Args:
        log: The job's log.
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
            "its job succeeded, but Snakemake rejected its output and says why above; compare the clocks of "
            "this machine and of the file server, and raise --latency-wait"
        )
    last = f"; its log ends with: {make_one_line(lines[-1])}" if lines else ""
    return f"its job left no error: it was killed (out of memory or time, for example) or did not start{last}"


def _start(tar_path: str) -> str:
    return f"failed shard: {make_one_line(tar_path)}: "


def _strip_path(message: str, tar_path: str) -> str:
    for name in (f"{tar_path}: ", f"{tar_path!r}: "):
        message = message.removeprefix(name)
    return make_one_line(message)
