"""Why a shard has no result, in one line, from the log of its job. Owns how such a log is read; decides nothing."""

import re
from pathlib import Path

from embedders.errors import make_one_line

_LOGGED = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d \w+ ")


def find_error(log: str | Path, tar_path: str) -> str:
    """Find what a job said of a shard that it did not finish.

    Args:
        log: The log of the job.
        tar_path: The shard, which may be one of several in the job.

    Returns:
        The job's own line for the shard, or else its last word: the line of its end, or that of a traceback.
    """
    lines = [line for line in Path(log).read_text(errors="replace").splitlines() if line.strip()]
    errors = [line.partition(" ERROR failed: ")[2] for line in lines]
    names = (f"{tar_path}: ", f"{tar_path!r}: ")
    of_shard = [error for error in errors if error.startswith(names)]
    last = lines[-1] if lines else ""
    if of_shard:
        last = of_shard[-1]
    elif not last or _LOGGED.match(last):
        last = "its job left no error: it did not start, or was killed, as for want of memory or time"
    for name in ("error: ", *names):
        last = last.removeprefix(name)
    return make_one_line(last)
