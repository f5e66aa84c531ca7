"""Atomic writing of files: each is written under a temporary name in the same folder, synced, and renamed."""

import errno
import fcntl
import glob
import os
import secrets
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from embedders.errors import OutputError

PARTIAL = ".partial"
# Most bytes of a name before `.parquet`: its partial file has the longer name `.{name}.parquet.{8 digits}.partial`.
MAX_NAME_BYTES = 255 - len(".parquet") - len("..01234567") - len(PARTIAL)
# Errors that a user can fix; any other is a defect and keeps its traceback.
_USER_ERRORS = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ENOENT),
    *(errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENOTEMPTY, errno.ENAMETOOLONG),
}


@contextmanager
def write_whole(path: str | Path) -> Iterator[BinaryIO]:
    """Open a file to write; when the block ends without an error, sync it and rename it to `path`.

    If the block raises, the partial file is removed and `path` stays as it was. The next writer removes what a killed
    writer left. If two writers write to the same path, each renames a complete file, and the last one stays.

    Raises:
        OutputError: The folder cannot be written to, or the disk is full.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_abandoned(path.parent.glob(f".{glob.escape(path.name)}.*{PARTIAL}"))
        # A random name, not the process id: two containers can have the same one.
        with create_locked(lambda: path.with_name(f".{path.name}.{secrets.token_hex(4)}{PARTIAL}")) as file:
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
            f"{path}: cannot be written ({error.strerror}); expected a writable folder with free space; no partial "
            "file was left"
        ) from error


def create_locked(name: Callable[[], Path]) -> BinaryIO:
    """Create a file, with a lock that the kernel holds as long as this process lives.

    Args:
        name: Returns a new name each time.
    """
    while True:
        file = name().open("xb")
        with suppress(OSError):  # a file system without locks: the only harm is that abandoned files stay
            fcntl.flock(file, fcntl.LOCK_EX)
        if os.fstat(file.fileno()).st_nlink:
            return file
        file.close()  # another process saw the file before it was locked, and removed it


def remove_abandoned(paths: Iterable[Path], remove: Callable[[Path], object] = Path.unlink) -> None:
    """Remove the files of `create_locked` whose processes no longer live; `remove` is called with each."""
    for path in paths:
        with suppress(OSError), path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # raises while its process lives
            remove(path)


def check_writable(path: Path) -> None:
    """Create the folder of `path` if it is missing, and check that a file can be created in it.

    Raises:
        OutputError: No file can be created there.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror}); expected a writable folder") from error


def sync_folder(folder: Path) -> None:
    """Sync a folder, so that a rename in it survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems refuse to sync a folder
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
