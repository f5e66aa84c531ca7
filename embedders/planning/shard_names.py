"""The names of shards, which name their results: every reader must find them, and every file system must allow them.

Owns names and the messages about names that cannot be used; `shards` decides which files are shards.
"""

import os
import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePath

import yaml

from embedders.errors import ConfigError
from embedders.output.files import MAX_NAME_BYTES
from embedders.reading.remote import is_remote
from embedders.reading.samples import SHARD_SUFFIXES

# In a path or a pattern, the name of a shard begins after this mark, as in `rsync --relative`.
NAME_MARK = "/./"
WILDCARD = re.compile(r"[*?\[{]")
_MISREAD = re.compile(r"^[_.]|[=\\]|:(?=:)")
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
# What follows the name of a shard in the names of its results, logs, benchmarks and markers.
_RESULT_SUFFIXES = (".parquet", ".log", ".tsv", ".done")


@dataclass(frozen=True)
class Shard:
    """A shard and how it was found.

    Attributes:
        path: The file, or its address.
        name: The name of its results.
        key: The key of the mapping under which it was found; `.` if there is no mapping.
        pattern: The pattern that matches it.
        listed_in: The `.txt` file that contains the pattern.
    """

    path: str
    name: str
    key: str
    pattern: str
    listed_in: str | None

    def is_same_file(self, other: "Shard") -> bool:
        """Return whether the paths of two shards are the same file."""
        if is_remote(self.path) or is_remote(other.path):
            return self.path == other.path
        with suppress(OSError):  # a broken link
            return os.path.samefile(self.path, other.path)
        return False


def read_key(key: str) -> str:
    """Return the prefix that a key of the mapping `shards` gives to the names of its shards.

    Raises:
        ConfigError: The key is not the name of a folder.
    """
    if key == ".":
        return ""
    if not key.strip() or {"", ".", ".."} & set(key.split("/")):
        raise ConfigError(
            f"shards: the key {key!r} is not the name of a folder; expected one such as 'train' or 'train/a', or '.' "
            "for no folder"
        )
    return f"{make_visible(require_usable(key))}/"


def name_shard(pattern: str, path: str) -> str:
    """Return the name of a shard: its path after the fixed part of its pattern or after the mark, without suffix."""
    if NAME_MARK in path:
        below = path.partition(NAME_MARK)[2]
    else:
        wildcard = None if path == pattern else WILDCARD.search(pattern)
        fixed = pattern[: wildcard.start()] if wildcard else path
        below = path.removeprefix(fixed[: fixed.rfind("/") + 1])
    parts = [part for part in below.split("/") if part not in ("", ".", "..")]  # else a result would leave its folder
    suffix = next(suffix for suffix in SHARD_SUFFIXES[::-1] if path.endswith(suffix))
    return make_visible("/".join(parts).removesuffix(suffix))


def make_visible(name: str) -> str:
    """Return a name that no reader of a folder of Parquet files skips or interprets.

    pyarrow, pandas and LanceDB skip files and folders that begin with `_` or `.`; these and DuckDB read a folder
    `key=value` as a column; DuckDB ignores a backslash, and Hugging Face's datasets splits a name at `::`. Such a
    character is percent-encoded: `_a` becomes `%5Fa`.

    Raises:
        ConfigError: A part of the name is too long for a file.
    """
    parts = [_MISREAD.sub(lambda match: f"%{ord(match[0]):02X}", part) for part in name.split("/")]
    for part in parts:
        if len(part.encode()) > MAX_NAME_BYTES:
            raise ConfigError(
                f"the name {part!r} has {len(part.encode())} bytes; expected at most {MAX_NAME_BYTES}, so that "
                "there is room for the suffixes of its results; rename it"
            )
    return "/".join(parts)


def require_usable(path: str) -> str:
    """Return a path after checking that Snakemake, Parquet and a log can hold it.

    Raises:
        ConfigError: One of them cannot.
    """
    if reason := find_unusable(path):
        raise ConfigError(f"shards: {path!r} {reason}; rename it, or make a link to it and name that")
    return path


def find_unusable(path: str) -> str | None:
    """Return why Snakemake, Parquet or a log cannot hold a path; `None` if they can."""
    if "{" in path or "}" in path:
        return "has a brace, which Snakemake reads as a wildcard"
    return "has a control character, or is not UTF-8" if _UNPRINTABLE.search(path) else None


def require_distinct(names: Iterable[str], output_dir: str) -> None:
    """Check that names stay distinct on the file system of the results, which may ignore case.

    Raises:
        ConfigError: Two names are the same there.
    """
    first: dict[str, str] = {}
    for name in names:
        other = first.setdefault(name.casefold(), name)
        if other != name and _ignores_case(output_dir):
            raise ConfigError(
                f"shards: the results of {other!r} and {name!r} would be one file, because the file system of "
                f"{output_dir!r} ignores case; rename one of them, or set another output_dir"
            )


def require_no_folder_like_a_result(by_name: dict[str, Shard]) -> None:
    """Check that no folder of a shard has the name of another shard's file, such as `a.parquet/0` next to `a`.

    Raises:
        ConfigError: One is.
    """
    folders: dict[str, str] = {}
    for name in by_name:
        folder = name.rpartition("/")[0]
        while folder and folder not in folders:
            folders[folder] = name
            folder = folder.rpartition("/")[0]
    for folder, name in folders.items():
        for suffix in _RESULT_SUFFIXES:
            shard = folder.removesuffix(suffix)
            if shard != folder and shard in by_name:
                raise ConfigError(
                    f"shards: {by_name[shard].path!r} and {by_name[name].path!r} would be named {shard!r} and "
                    f"{name!r}, and {folder!r} cannot be a file and a folder; rename one of them"
                )


def describe_clash(one: Shard, other: Shard) -> str:
    """Return a message that two shards have the same name, with what to write instead."""
    said = f"shards: {one.path!r} and {other.path!r} would both be named {one.name!r}"
    if one.pattern == other.pattern:
        return f"{said}; rename one of them, or exclude one with a narrower pattern than {one.pattern!r}"
    if one.listed_in and one.listed_in == other.listed_in and (marked := _mark(other.path, one.path)):
        return f"{said}; mark with {NAME_MARK} in {other.listed_in!r} where the name begins, for example {marked!r}"
    folders = [PurePath(shard.path).parent.parts for shard in (one, other)]
    folder = next((part for part in folders[1][::-1] if part not in folders[0]), "more")
    key = folder if other.key == "." else f"{other.key}/{folder}"
    mapping = {one.key: one.listed_in or one.pattern, key: other.listed_in or other.pattern}
    text = yaml.safe_dump(mapping, default_flow_style=True, sort_keys=False, allow_unicode=True, width=2**16)
    return f"{said}; use a mapping, whose keys become folders ('.' for none), for example shards: {text.strip()}"


def _mark(path: str, other: str) -> str | None:
    """Return a path with a mark where it starts to differ from another; `None` if only the file names differ."""
    parts, others = (one.split("/") if is_remote(one) else os.path.abspath(one).split("/") for one in (path, other))
    same = next(count for count, pair in enumerate(zip(parts, others, strict=False)) if pair[0] != pair[1])
    same = max(same, 3 if is_remote(path) else 1)
    return "/".join(parts[:same]) + NAME_MARK + "/".join(parts[same:]) if same < len(parts) - 1 else None


def _ignores_case(folder: str) -> bool:
    existing = Path(folder).absolute()
    while not existing.exists():
        existing = existing.parent
    swapped = existing.with_name(existing.name.swapcase())
    return swapped.name != existing.name and swapped.exists() and swapped.samefile(existing)
