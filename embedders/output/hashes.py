"""SHA-256 of files. That of a large file is computed once and stored with its path, size and modification time."""

import hashlib
import json
import os
from contextlib import suppress
from pathlib import Path

from embedders.output.files import write_whole

# Smaller files are always hashed: it takes no time, and finds changes that kept size and time.
SMALL_BYTES = 1 << 20


def hash_file(path: str | Path) -> str:
    """Return the SHA-256 of a file, as `sha256sum` prints it."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Hashes:
    """Stored hashes of files.

    Args:
        path: The file that stores them, in a folder of an output folder. Nothing is stored if there is no output
            folder yet, so that a dry run does not create it.
    """

    def __init__(self, path: str | Path):
        self._path = Path(path)
        self._known: dict[str, list] = {}
        self._has_new = False
        with suppress(OSError, ValueError, TypeError):  # without it, or if it is damaged, the files are read again
            self._known = dict(json.loads(self._path.read_text()))

    def knows(self, path: str | Path) -> bool:
        """Return whether the hash of the file is stored, so that the file need not be read."""
        return self._known.get(os.path.abspath(path), [])[:2] == _describe(path)

    def find(self, path: str | Path) -> str:
        """Return the hash of a file; read the file only if its size or time differs from the stored one."""
        if os.path.getsize(path) <= SMALL_BYTES:
            return hash_file(path)
        if not self.knows(path):
            # Size and time come first: a file that changes while it is read is then read again next time.
            self._known[os.path.abspath(path)] = [*_describe(path), hash_file(path)]
            self._has_new = True
        return self._known[os.path.abspath(path)][2]

    def save(self) -> None:
        """Store the hashes that were computed."""
        if self._has_new and self._path.parent.parent.is_dir():
            with write_whole(self._path) as file:
                file.write(json.dumps(self._known, indent=0).encode())
            self._has_new = False


def _describe(path: str | Path) -> list[int]:
    status = os.stat(path)
    return [status.st_size, status.st_mtime_ns]
