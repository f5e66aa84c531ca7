"""SHA-256 of files, that of a large one computed once and remembered by path, size and time of change."""

import hashlib
import json
import os
from pathlib import Path

from embedders.output.files import write_whole

# To read less costs nothing, and finds a change that left size and time as they were.
SMALL_BYTES = 1 << 20


def hash_file(path: str | Path) -> str:
    """Return the SHA-256 of a file, as `sha256sum` prints it."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Hashes:
    """The hashes of files that a folder remembers.

    Args:
        path: Where they are kept. Nothing is kept as long as the folder above its own does not exist.
    """

    def __init__(self, path: str | Path):
        self._path = Path(path)
        self._known: dict[str, list] = {}
        self._has_new = False
        if self._path.is_file():
            self._known = json.loads(self._path.read_text())

    def knows(self, path: str | Path) -> bool:
        """Return whether the file need not be read."""
        return self._known.get(os.path.abspath(path), [])[:2] == _describe(path)

    def find(self, path: str | Path) -> str:
        """Return the hash of a file; read it only if its size or time is not the one that is remembered."""
        if os.path.getsize(path) <= SMALL_BYTES:
            return hash_file(path)
        if not self.knows(path):
            # Described first: what changes while it is read is read again the next time.
            self._known[os.path.abspath(path)] = [*_describe(path), hash_file(path)]
            self._has_new = True
        return self._known[os.path.abspath(path)][2]

    def save(self) -> None:
        """Keep what was computed."""
        if self._has_new and self._path.parent.parent.is_dir():
            with write_whole(self._path) as file:
                file.write(json.dumps(self._known, indent=0).encode())
            self._has_new = False


def _describe(path: str | Path) -> list[int]:
    status = os.stat(path)
    return [status.st_size, status.st_mtime_ns]
