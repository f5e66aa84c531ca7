"""What a shard is named: the name of its results, which every reader of them must see and every file system can hold.

Owns names and the words about names that cannot be used; which files are shards is decided in `shards`.
"""

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePath

import yaml

from embedders.errors import ConfigError
from embedders.output.files import MAX_NAME_BYTES
from embedders.reading.remote import is_remote
from embedders.reading.samples import SHARD_SUFFIXES

# In a path or a pattern: behind it the name of a shard begins, as in `rsync --relative`.
NAME_MARK = "/./"
WILDCARD = re.compile(r"[*?\[{]")
_MISREAD = re.compile(r"^[_.]|[=\\]|:(?=:)")
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
# What stands behind the name of a shard in the names of its results, logs and benchmarks.
_RESULT_SUFFIXES = (".parquet", ".log", ".tsv")


@dataclass(frozen=True)
class Shard:
    """A shard as it was found.

    Attributes:
        path: The file, or its address.
        name: What its results are named.
        key: The key of the mapping under which it was found; `.` where there is no mapping.
        pattern: The pattern that matches it.
        listed_in: The `.txt` file that the pattern stands in.
    """

    path: str
    name: str
    key: str
    pattern: str
    listed_in: str | None

    def is_same_file(self, other: "Shard") -> bool:
        """Tell whether two paths lead to one file."""
        if is_remote(self.path) or is_remote(other.path):
            return self.path == other.path
        return os.path.samefile(self.path, other.path)


def read_key(key: str) -> str:
    """Return what a key of the mapping `shards` puts before the names of its shards.

    Raises:
        ConfigError: It is no name of a folder.
    """
    if key == ".":
        return ""
    if not key.strip() or {"", ".", ".."} & set(key.split("/")):
        raise ConfigError(
            f"shards: the key {key!r} is no name of a folder; expected one such as 'train' or 'train/a', or '.' for "
            "no folder"
        )
    return f"{make_visible(require_usable(key))}/"


def name_shard(pattern: str, path: str) -> str:
    """Name a shard by its path below the fixed part of its pattern, or behind the mark, without the suffix."""
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
    """Return a name that every reader of a folder of Parquet files sees, and takes for nothing but a name.

    pyarrow, pandas and LanceDB pass over files and folders that begin with `_` or `.`; these and DuckDB take a folder
    `key=value` for a column; DuckDB passes over a backslash, and Hugging Face's datasets splits a name at `::`. Such
    a character is written as in an address: `_a` becomes `%5Fa`.

    Raises:
        ConfigError: A part of the name is too long for a file.
    """
    parts = [_MISREAD.sub(lambda match: f"%{ord(match[0]):02X}", part) for part in name.split("/")]
    for part in parts:
        if len(part.encode()) > MAX_NAME_BYTES:
            raise ConfigError(
                f"the name {part!r} has {len(part.encode())} bytes; expected at most {MAX_NAME_BYTES}, so that "
                "the files made from it can have a name; rename it"
            )
    return "/".join(parts)


def require_usable(path: str) -> str:
    """Return a path that Snakemake, Parquet and a log can hold.

    Raises:
        ConfigError: They cannot.
    """
    if reason := find_unusable(path):
        raise ConfigError(f"shards: {path!r} {reason}; rename it, or make a link to it and name that")
    return path


def find_unusable(path: str) -> str | None:
    """Say what of a path Snakemake, Parquet or a log cannot hold; `None` if they can hold it."""
    if "{" in path or "}" in path:
        return "has a brace, which Snakemake takes for a wildcard"
    return "has a control character, or is not UTF-8" if _UNPRINTABLE.search(path) else None


def require_distinct(names: Iterable[str], output_dir: str) -> None:
    """Require that names stay different on the file system of the results, which may ignore case.

    Raises:
        ConfigError: Two names are one there.
    """
    first: dict[str, str] = {}
    for name in names:
        other = first.setdefault(name.casefold(), name)
        if other != name and _ignores_case(output_dir):
            raise ConfigError(
                f"shards: the results of {other!r} and {name!r} would be one file, because the file system of "
                f"{output_dir!r} ignores case; rename one of them, or take another output_dir"
            )


def require_no_folder_like_a_result(by_name: dict[str, Shard]) -> None:
    """Require that no shard is in a folder with the name of another one's file, as `a.parquet/0` beside `a`.

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
    """Say that two shards have one name, and what to write instead."""
    said = f"shards: {one.path!r} and {other.path!r} would both be named {one.name!r}"
    if one.pattern == other.pattern:
        return f"{said}; rename one of them, or leave one out by a narrower pattern than {one.pattern!r}"
    if one.listed_in and one.listed_in == other.listed_in and (marked := _mark(other.path, one.path)):
        return f"{said}; mark by {NAME_MARK} in {other.listed_in!r} where a name begins, as {marked!r}"
    folders = [PurePath(shard.path).parent.parts for shard in (one, other)]
    folder = next((part for part in folders[1][::-1] if part not in folders[0]), "more")
    key = folder if other.key == "." else f"{other.key}/{folder}"
    mapping = {one.key: one.listed_in or one.pattern, key: other.listed_in or other.pattern}
    text = yaml.safe_dump(mapping, default_flow_style=True, sort_keys=False, allow_unicode=True, width=2**16)
    return f"{said}; write a mapping, whose keys become folders ('.' is none), as shards: {text.strip()}"


def _mark(path: str, other: str) -> str | None:
    """Mark in a path the folder in which it parts from another one; `None` if there is none before the file."""
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
