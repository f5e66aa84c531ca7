"""Allows one run at a time in an output folder: a file in the folder names the current run.

Snakemake's own lock belongs to the working folder, so it does not see a run from another working folder. The file is
created exclusively, which only one of two processes can do, also on network file systems without locks.
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
    """Claim a folder for this process until it ends, and join the parts of the folder's record.

    Returns:
        The current time by the clock of the folder's file system.

    Raises:
        OutputError: Another run is using the folder, or the folder cannot be written to.
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
    if os.getpid() == process:  # not in a fork of it
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
    """Replace the file of a run that is known to be dead.

    Raises:
        OutputError: The run is alive, or may be.
    """
    content = path.read_bytes()
    try:
        other = json.loads(content)
    except ValueError:
        other = {}  # a run that is just starting
    if other and _is_dead(other):
        # Moved aside first, so that only one of two processes that see a dead run takes over.
        aside = path.with_name(f".{secrets.token_hex(4)}")
        path.rename(aside)
        if aside.read_bytes() == content and _create(path):
            aside.unlink()
            return
        aside.replace(path)
    who = ", ".join(f"{key} {other.get(key, 'unknown')}" for key in ("process", "host", "since", "folder"))
    raise OutputError(
        f"{str(path.parent.parent)!r}: another run is using this folder ({who}); wait for it to end or, if it is "
        f"dead, remove {str(path.absolute())!r}"
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
    """Return whether a process is known to be dead; a process on another host or in another container is not."""
    own = _describe_process()
    if other["host"] != own["host"] or (other["boot"] == own["boot"] and other["namespace"] != own["namespace"]):
        return False
    return other["boot"] != own["boot"] or _find_start(other["process"]) != other["start"]


def _find_start(process: int) -> str | None:
    """Return when a process started, in ticks since boot, because a process id can be reused."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return None
