"""Sizes and modification times of many files."""

import os
from collections.abc import Iterable, Iterator


def stat_files(paths: Iterable[str]) -> dict[str, tuple[int, int]]:
    """Return the size and the modification time, in nanoseconds, of the files that exist."""
    wanted: dict[str, dict[str, str]] = {}
    for path in paths:
        folder, name = os.path.split(path)
        wanted.setdefault(folder, {})[name] = path
    found = {}
    # Folder by folder, because network file systems send the attributes of a folder's files together.
    for folder, names in wanted.items():
        for entry in _scan(folder or "."):
            if entry.name in names and entry.is_file():
                status = entry.stat()
                found[names[entry.name]] = (status.st_size, status.st_mtime_ns)
    return found


def _scan(folder: str) -> Iterator[os.DirEntry]:
    if os.path.isdir(folder):
        with os.scandir(folder) as entries:
            yield from entries
