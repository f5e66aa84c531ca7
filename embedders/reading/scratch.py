"""A private folder of a process on the disk of its machine, in `TMPDIR`, which is removed however the process ends.

A process that is killed leaves its folder. The next one of the same user on the machine removes it: each folder has a
file beside it whose lock the kernel holds exactly as long as its process lives.
"""

import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from embedders.errors import OutputError
from embedders.output.files import create_locked, remove_abandoned


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
        remove_abandoned(parent.glob("*.lock"), _remove)
        lock = create_locked(lambda: parent / f"{secrets.token_hex(4)}.lock")
        folder = Path(lock.name).with_suffix("")
        folder.mkdir()
    except OSError as error:
        raise OutputError(
            f"{str(parent)!r}: cannot be written ({error.strerror}); expected a place for copies of shards; set "
            "TMPDIR to another folder"
        ) from error
    try:
        yield folder
    finally:
        with suppress(OSError):
            _remove(Path(lock.name))
        lock.close()


def _remove(lock: Path) -> None:
    """Remove a folder, and then its lock, so that no folder stays without one."""
    shutil.rmtree(lock.with_suffix(""), ignore_errors=True)
    lock.unlink()
