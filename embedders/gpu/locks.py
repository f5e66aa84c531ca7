"""The lock files by which the jobs of one node share its GPUs: the kernel decides who holds which card.

Owns the files in the lock folder and every `flock`; does not use NVML. A lease is an exclusive `flock` that a job
holds until it ends. The kernel releases it then, also after `kill -9`: there is nothing to clean up, and no PID to
check.

- A file is never unlinked. If it were, a job that had opened the old file and a job that created the new one
  would each lock their own.
- Another user's file counts too, even if this user cannot write to it: `flock` only needs an open file.
- The text in a file says who holds the lock. It is only for people to read: anybody can write it, and no decision
  depends on it.
"""

import fcntl
import json
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from time import sleep, time

from embedders.errors import GpuError

# Another user may have put anything at this path: do not follow a link, and do not wait for the other end of a pipe.
# A program that the job starts must not inherit the lock either.
_SAFELY = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC

_SUSPECT_S = 600.0

_held: set[int] = set()


def _drop_in_child() -> None:
    # A fork without exec (the workers of a DataLoader) copies the descriptor, and a lock lasts until its last copy is
    # closed: workers that outlive a killed job would keep its card locked. Closing a copy does not release the
    # parent's lock.
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_drop_in_child)


class NotFree(GpuError):
    """One device cannot be leased now, and the next one is tried; the message says why.

    Attributes:
        holder: What its holder wrote into the lock file (`pid`, `host`, `shard`, `since`); `None` if nobody holds it.
    """

    def __init__(self, reason: str, holder: dict | None = None):
        super().__init__(reason)
        self.holder = holder


def is_holding() -> bool:
    """Return whether this process holds a lock."""
    return bool(_held)


def card_path(folder: Path, uuid: str) -> Path:
    """Return the lock file of a card. Its holder uses the card alone, or is deciding about it."""
    return folder / f"{_file_name(uuid)}.lock"


def slot_path(folder: Path, uuid: str, slot: int) -> Path:
    """Return the lock file of one slot of a card that several jobs share."""
    return folder / f"{_file_name(uuid)}.slot{slot}.lock"


def note_failure(folder: Path, uuid: str) -> None:
    """Note that a card failed during a job, for `is_suspect`."""
    # The note is opened with the same checks as a lock file: any user can renew it, and a link in its place is not
    # touched. Errors are ignored here, since the failure of the card is what the user needs to see.
    with suppress(OSError, NotFree), locked(_failure_path(folder, uuid)) as descriptor:
        os.utime(descriptor)


def is_suspect(folder: Path, uuid: str) -> bool:
    """Return whether a card failed during a job within the last ten minutes."""
    with suppress(OSError):  # usually there is no note
        return abs(time() - _failure_path(folder, uuid).lstat().st_mtime) < _SUSPECT_S
    return False


def find_leased_slots(folder: Path, uuid: str) -> list[dict]:
    """Return what the holders of a card's slots wrote, including slots beyond the number that this job allows."""
    paths = sorted(folder.glob(f"{_file_name(uuid)}.slot*.lock"))
    return [holder for path in paths if (holder := _find_holder(path)) is not None]


def read_leases(folder: Path, uuid: str) -> list[dict]:
    """Return what the holders of a card wrote: none, one, or one for each of its slots."""
    card = card_path(folder, uuid)
    holder = _find_holder(card) if card.exists() else None
    return find_leased_slots(folder, uuid) if holder is None else [holder]


def format_holder(holder: dict) -> str:
    """Return a holder as a phrase: `pid 71 on node1, shard 00000.tar, since ...`."""
    if not holder:
        return "a job that did not write its name"
    return holder.get("problem") or "pid {pid} on {host}, shard {shard}, since {since}".format(**holder)


@contextmanager
def locked(path: Path, how: int = fcntl.LOCK_EX) -> Iterator[int]:
    """Lock a file while the block runs, without waiting for the lock; a missing file is created.

    Yields:
        The open descriptor.

    Raises:
        NotFree: Another job holds the lock, or the file cannot be trusted.
    """
    with _opened(path) as descriptor:
        _flock(path, descriptor, how | fcntl.LOCK_NB)
        try:
            yield descriptor
        finally:
            if descriptor in _held:  # false in a forked child, whose parent still holds the lock
                if how == fcntl.LOCK_EX:
                    with suppress(OSError):
                        os.ftruncate(descriptor, 0)
                fcntl.flock(descriptor, fcntl.LOCK_UN)  # closing is not enough if C code forked


def write_holder(descriptor: int, shard: str) -> None:
    """Write into a lock file who holds it."""
    holder = {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "shard": shard,
        "since": datetime.now().astimezone().isoformat(timespec="seconds"),
    }
    # Another user's file may be open for reading only, or the disk may be full: the lock is held without a label too.
    with suppress(OSError):
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(holder).encode(), 0)


def _find_holder(path: Path) -> dict | None:
    # The only test is a shared lock, held for microseconds, since /proc/locks does not show the locks of other
    # containers. `_flock` tries twice, so that no job takes this for a lease.
    try:
        with locked(path, fcntl.LOCK_SH):
            return None
    except NotFree as taken:
        return {"problem": str(taken)} if taken.holder is None else taken.holder


def _flock(path: Path, descriptor: int, how: int) -> None:
    try:
        try:
            fcntl.flock(descriptor, how)
        except BlockingIOError:
            sleep(0.002)  # it may have been `_find_holder` in another job, which has finished by now
            fcntl.flock(descriptor, how)
        here, there = os.fstat(descriptor), path.lstat()
    except BlockingIOError:
        holder = _read_holder(descriptor)
        raise NotFree(f"leased by {format_holder(holder)}", holder) from None
    except OSError as error:
        raise NotFree(f"its lock file '{path}' cannot be locked ({error.strerror})") from error
    if not os.path.samestat(here, there):
        raise NotFree(f"its lock file '{path}' was replaced meanwhile")
    # A hard link would let another user make this job write its label into one of its own files.
    if not stat.S_ISREG(here.st_mode) or here.st_nlink != 1:
        raise NotFree(f"its lock file '{path}' is not a plain file with one name")


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    try:
        descriptor = _open(path)
    except OSError as error:
        raise NotFree(
            f"its lock file '{path}' cannot be opened ({error.strerror}): expected a plain file of mode 666"
        ) from error
    _held.add(descriptor)
    try:
        yield descriptor
    finally:
        if descriptor in _held:  # false in a forked child, where the number may mean another file by now
            _held.remove(descriptor)
            os.close(descriptor)


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | _SAFELY)
    except PermissionError:
        return os.open(path, os.O_RDONLY | _SAFELY)
    except FileNotFoundError:
        pass
    try:
        # O_CREAT only together with O_EXCL: in a sticky folder fs.protected_regular refuses O_CREAT on another
        # user's file.
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | _SAFELY, 0o666)
    except FileExistsError:
        return _open(path)  # another job has just created it
    os.fchmod(descriptor, 0o666)  # despite the umask, so that other users can write their label
    return descriptor


def _read_holder(descriptor: int) -> dict:
    """Return a label, escaped and shortened: any user can have written it, and a terminal will show it."""
    try:
        label = json.loads(os.pread(descriptor, 4096, 0))
        return {name: ascii(str(label[name]))[1:-1][:100] for name in ("pid", "host", "shard", "since")}
    except (OSError, ValueError, RecursionError, TypeError, KeyError):
        return {}


def _failure_path(folder: Path, uuid: str) -> Path:
    return folder / f"{_file_name(uuid)}.failed"


def _file_name(uuid: str) -> str:
    return uuid.replace("/", "_")  # drivers before 470 name an instance MIG-GPU-.../1/0
