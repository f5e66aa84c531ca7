"""Files that appear whole or not at all: written beside their final name, synced, renamed."""

import errno
import fcntl
import glob
import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from embedders.errors import OutputError

PARTIAL = ".partial"
# Bytes of a name before `.parquet`, so that its partial file can be named `.{name}.parquet.{8 digits}.partial`.
MAX_NAME_BYTES = 255 - len(".parquet") - len("..01234567") - len(PARTIAL)
# What a user can mend; anything else is a defect and keeps its traceback.
_USER_ERRORS = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ENOENT),
    *(errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENOTEMPTY, errno.ENAMETOOLONG),
}


@contextmanager
def write_whole(path: str | Path) -> Iterator[BinaryIO]:
    """Give a file to write; when the block ends well, sync it and rename it to `path`.

    If the block raises, the partial file goes and `path` is as it was. What a killed writer left behind is
    cleaned by the next one. Of two writers of one path each renames a whole file, and the last one stays.

    Raises:
        OutputError: The folder cannot be written to, or the disk is full.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_stale_partials(path)
        with open_partial(path) as file:
            try:
                yield file
                file.flush()
                os.fsync(file.fileno())
                Path(file.name).replace(path)
                sync_folder(path.parent)
            finally:
                Path(file.name).unlink(missing_ok=True)
    except OSError as error:
        if error.errno not in _USER_ERRORS:
            raise
        raise OutputError(
            f"{path}: cannot be written ({error.strerror}); expected a writable folder with room; nothing was left"
        ) from error


def open_partial(path: Path) -> BinaryIO:
    """Open a partial file beside `path`, under a lock that tells a living writer's from one that was left behind."""
    while True:
        # A random name, not the process id: two containers can have the same one.
        file = path.with_name(f".{path.name}.{secrets.token_hex(4)}{PARTIAL}").open("xb")
        with suppress(OSError):  # a file system without locks: stale files stay there, nothing worse
            fcntl.flock(file, fcntl.LOCK_EX)
        if os.fstat(file.fileno()).st_nlink:
            return file
        file.close()  # another writer saw it before it was locked, and removed it as stale


def check_writable(path: Path) -> None:
    """Make the folder of `path`, and see that a file can be made in it.

    Raises:
        OutputError: It cannot.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror}); expected a writable folder") from error


def remove_stale_partials(path: Path) -> None:
    """Remove the partial files of `path` whose writers are dead."""
    for stale in path.parent.glob(f".{glob.escape(path.name)}.*{PARTIAL}"):
        with suppress(OSError), stale.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # raises while its writer lives
            stale.unlink()


def sync_folder(folder: Path) -> None:
    """Make a rename in this folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems refuse to sync a folder
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
