"""Allows one run at a time in an output folder, or several parts of one: a file in the folder names each process.

Snakemake's own lock belongs to the working folder, so it does not see a run from another working folder. The file is
created exclusively, which only one of two processes can do, also on network file systems without locks.
"""

import atexit
import json
import os
import secrets
import shutil
import socket
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from time import sleep
from typing import Any

from embedders.errors import OutputError
from embedders.output.record import RECORD, Record
from embedders.planning.parts import WHOLE, Part

CLAIM = "run.json"
# What a process says of its SLURM job, by the variable that SLURM sets.
SLURM = {"cluster": "SLURM_CLUSTER_NAME", "SLURM job": "SLURM_JOB_ID", "restart": "SLURM_RESTART_COUNT"}
ENDED = {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "TIMEOUT"}
START_S = 5  # a process has written its claim by then


def claim_folder(folder: str | Path, part: Part = WHOLE, plan: Mapping[str, str] | None = None) -> float:
    """Claim a folder, or a part of its shards, for this process until it ends.

    The whole run also joins the parts of the folder's record.

    Args:
        folder: The output folder.
        part: The part of the run.
        plan: What must be the same in parts that run at the same time, by what it is, such as the list of shards.

    Returns:
        The current time by the clock of the folder's file system.

    Raises:
        OutputError: Another run is using the folder, or the folder cannot be written to.
    """
    path = Path(part.find_folder(str(folder)), CLAIM)
    claim = _describe_process() | {"part": str(part), "plan": dict(plan or {})}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not _create(path, claim):
            _take_over(path, claim)
        now = path.stat().st_mtime
    except OSError as error:
        raise OutputError(
            f"{str(path)!r} cannot be written ({error.strerror}); expected a writable folder"
        ) from error
    # Looks only after its own claim is there: of two that start at the same time, at least one sees the other.
    try:
        _require_no_other(path, claim, folder)
    except OutputError:
        path.unlink(missing_ok=True)
        raise
    if part.is_whole:
        shutil.rmtree(Path(folder, RECORD, "parts"), ignore_errors=True)
        Record(folder).join()
    atexit.register(_release, path.absolute(), Path(folder).absolute() if part.is_whole else None, os.getpid())
    return now


def _release(path: Path, joined: Path | None, process: int) -> None:
    if os.getpid() == process:  # not in a fork of it
        if joined:
            with suppress(OSError, OutputError):
                Record(joined).join()
        path.unlink(missing_ok=True)


def _create(path: Path, claim: Mapping[str, Any]) -> bool:
    try:
        with path.open("x") as file:
            json.dump(claim, file)
        return True
    except FileExistsError:
        return False


def _take_over(path: Path, claim: Mapping[str, Any]) -> None:
    """Replace the claim of a process that is known to be dead.

    Raises:
        OutputError: It is alive, or may be.
    """
    other = _read(path)
    if _is_dead(other):
        # Moved aside first, so that only one of two processes that see a dead run takes over.
        aside = path.with_name(f".{secrets.token_hex(4)}")
        path.rename(aside)
        if _read(aside) == other and _create(path, claim):
            aside.unlink()
            return
        aside.replace(path)
    raise OutputError(_describe_refusal(path, other))


def _require_no_other(own: Path, claim: Mapping[str, Any], folder: str | Path) -> None:
    """Check that no other process uses the folder, except for other parts of the same run.

    Raises:
        OutputError: There is one.
    """
    for path, other in _read_claims(folder):
        if path == own or _is_dead(other):
            continue
        parts = {number.partition("/")[2] for number in (claim["part"], other.get("part", str(WHOLE)))}
        if str(WHOLE.count) in parts:
            raise OutputError(_describe_refusal(path, other))
        differs = [key for key, value in claim["plan"].items() if other.get("plan", {}).get(key) != value]
        differs += ["number of parts"] if len(parts) > 1 else []
        if differs:
            raise OutputError(_describe_refusal(path, other, f" with another {' and '.join(differs)}"))


def _read_claims(folder: str | Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    record = Path(folder, RECORD)
    for path in [record / CLAIM, *sorted(record.glob(f"parts/*/{CLAIM}"))]:
        with suppress(FileNotFoundError):  # it has just ended
            yield path, _read(path)


def _read(path: Path) -> dict[str, Any]:
    for _ in range(START_S * 10):
        with suppress(ValueError):
            return json.loads(path.read_bytes())
        sleep(0.1)  # it is just starting
    return {}


def _describe_refusal(path: Path, other: Mapping[str, Any], why: str = "") -> str:
    folder = str(path)[: str(path).rindex(f"/{RECORD}/")]
    part = other.get("part", str(WHOLE))
    run = "another run" if part == str(WHOLE) else f"part {part} of a run"
    names = ("process", "host", "SLURM job", "since", "folder")
    who = ", ".join(f"{name} {other.get(name, 'unknown')}" for name in names if name != "SLURM job" or name in other)
    return (
        f"{folder!r}: {run} is using this folder{why} ({who}); wait for it to end or, if it is dead, remove "
        f"{str(path.absolute())!r}"
    )


def _describe_process() -> dict[str, Any]:
    slurm = {key: os.environ[name] for key, name in SLURM.items() if name in os.environ}
    return {
        "process": os.getpid(),
        "host": socket.gethostname(),
        "since": datetime.now().astimezone().isoformat(timespec="seconds"),
        "folder": os.getcwd(),
        "boot": Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
        "namespace": os.readlink("/proc/self/ns/pid"),
        "start": _find_start(os.getpid()),
        "user": os.getuid(),
        **slurm,
    }


def _is_dead(other: Mapping[str, Any]) -> bool:
    """Return whether a process is known to be dead; a process on another host or in another container is not."""
    if not other:  # it cannot be read
        return False
    own = _describe_process()
    if _has_slurm_ended(other, own):
        return True
    if other["host"] != own["host"] or (other["boot"] == own["boot"] and other["namespace"] != own["namespace"]):
        return False
    return other["boot"] != own["boot"] or _find_start(other["process"]) != other["start"]


def _has_slurm_ended(other: Mapping[str, Any], own: Mapping[str, Any]) -> bool:
    """Return whether the SLURM job of a process has ended, on any node; asked only in a job of the same user."""
    if any(key not in own or own[key] != other.get(key) for key in ("cluster", "user")) or "SLURM job" not in other:
        return False
    if own["SLURM job"] == other["SLURM job"]:
        return own.get("restart") != other.get("restart")  # a job starts again when it has ended
    command = ["squeue", "--noheader", "--states=all", f"--jobs={other['SLURM job']}", "--format=%T"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return False
    return done.stdout.strip() in ENDED or "Invalid job id" in done.stderr  # which SLURM forgets after some minutes


def _find_start(process: int) -> str | None:
    """Return when a process started, in ticks since boot, because a process id can be reused."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return None
