"""One run at a time in an output folder: a file in it names the run that goes on there.

Snakemake's own lock is beside the working folder, and so knows nothing of a run from another one. The file is made by
a call that only one of two processes can succeed with, on network file systems too, which may not pass locks on.
"""

import atexit
import json
import os
import secrets
import socket
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from embedders.errors import OutputError
from embedders.output.record import RECORD, Record


def claim_folder(folder: str | Path) -> float:
    """Claim a folder for this process until it ends, and join the record of what was made in it.

    Returns:
        The time of now by the clock of the folder's file system.

    Raises:
        OutputError: Another run goes on there, or the folder cannot be written to.
    """
    path = Path(folder, RECORD, "run.json")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not _create(path):
            _take_over(path)
        now = path.stat().st_mtime
    except OSError as error:
        raise OutputError(
            f"{str(path)!r} cannot be written ({error.strerror}); expected a writable folder"
        ) from error
    Record(folder).join()
    atexit.register(_release, Path(folder).absolute(), os.getpid())
    return now


def _release(folder: Path, process: int) -> None:
    if os.getpid() == process:  # and no fork of it
        with suppress(OSError, OutputError):
            Record(folder).join()
        (folder / RECORD / "run.json").unlink(missing_ok=True)


def _create(path: Path) -> bool:
    try:
        with path.open("x") as file:
            json.dump(_describe_process(), file)
        return True
    except FileExistsError:
        return False


def _take_over(path: Path) -> None:
    """Take the place of a run that is known to be dead.

    Raises:
        OutputError: It lives, or it cannot be known.
    """
    content = path.read_bytes()
    try:
        other = json.loads(content)
    except ValueError:
        other = {}  # a run that starts at this moment
    if other and _is_dead(other):
        # Moved aside first, so that of two that see a dead run only one takes over.
        aside = path.with_name(f".{secrets.token_hex(4)}")
        path.rename(aside)
        if aside.read_bytes() == content and _create(path):
            aside.unlink()
            return
        aside.replace(path)
    who = ", ".join(f"{key} {other.get(key, 'unknown')}" for key in ("process", "host", "since", "folder"))
    raise OutputError(
        f"{str(path.parent.parent)!r}: another run is using this folder ({who}); wait for its end or, if it is dead, "
        f"remove {str(path.absolute())!r}"
    )


def _describe_process() -> dict[str, Any]:
    return {
        "process": os.getpid(),
        "host": socket.gethostname(),
        "since": datetime.now().astimezone().isoformat(timespec="seconds"),
        "folder": os.getcwd(),
        "boot": Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
        "namespace": os.readlink("/proc/self/ns/pid"),
        "start": _find_start(os.getpid()),
    }


def _is_dead(other: dict[str, Any]) -> bool:
    """Return whether a process is known to be dead; one of another host, or container, cannot be looked for."""
    own = _describe_process()
    if other["host"] != own["host"] or (other["boot"] == own["boot"] and other["namespace"] != own["namespace"]):
        return False
    return other["boot"] != own["boot"] or _find_start(other["process"]) != other["start"]


def _find_start(process: int) -> str | None:
    """Return when a process started, in ticks since boot: a number can be given to another process later."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return None
