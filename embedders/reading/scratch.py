"""A private folder of a process on the disk of its machine, in `TMPDIR`, which is removed however the process ends.

A process that is killed leaves its folder. The next one of the same user on the machine removes it: each folder has a
file beside it whose lock the kernel holds exactly as long as its process lives.
"""

import fcntl
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from embedders.errors import OutputError


@contextmanager
def open_scratch() -> Iterator[Path]:
    """Make a folder of this process, after removing those of dead processes; remove it at the end of the block.

    Raises:
        OutputError: The folder cannot be made.
    """
    parent = Path(tempfile.gettempdir(), f"tarquet-{os.getuid()}")
    try:
        parent.mkdir(mode=0o700, exist_ok=True)
        status = parent.lstat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():  # another user may have made it
            raise OutputError(
                f"{str(parent)!r} is not a folder of this user; expected a place for copies of shards; set TMPDIR to "
                "another folder"
            )
        _remove_leftovers(parent)
        lock, folder = _make_folder(parent)
    except OSError as error:
        raise OutputError(
            f"{str(parent)!r}: cannot be written ({error.strerror}); expected a place for copies of shards; set "
            "TMPDIR to another folder"
        ) from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):
            os.unlink(lock.name)
        lock.close()


def _make_folder(parent: Path) -> tuple[IO[bytes], Path]:
    while True:
        path = parent / f"{secrets.token_hex(4)}.lock"
        lock = path.open("xb")
        with suppress(OSError):  # a file system without locks: the only harm is that leftovers stay
            fcntl.flock(lock, fcntl.LOCK_EX)
        if os.fstat(lock.fileno()).st_nlink:
            folder = path.with_suffix("")
            folder.mkdir()
            return lock, folder
        lock.close()  # another process saw the file before it was locked, and removed it


def _remove_leftovers(parent: Path) -> None:
    for path in parent.glob("*.lock"):
        with suppress(OSError), path.open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # raises while its process lives
            shutil.rmtree(path.with_suffix(""), ignore_errors=True)
            path.unlink()
