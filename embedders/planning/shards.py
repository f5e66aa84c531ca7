"""The shards of a run: which files the configuration means, and how they are divided among jobs.

Owns the reading of patterns and lists; `shard_names` owns the names of shards, and `stores` asks servers. Imports
nothing heavy.
"""

import glob
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path, PurePath
from types import MappingProxyType

import braceexpand

from embedders.errors import ConfigError
from embedders.planning.shard_names import (
    NAME_MARK,
    Shard,
    describe_clash,
    name_shard,
    read_key,
    require_no_folder_like_a_result,
    require_usable,
)
from embedders.reading.remote import Version, hide_secrets, is_remote, require_address
from embedders.reading.samples import SHARD_SUFFIXES
from embedders.reading.stores import find_matches

# A job that reads this much takes a minute or more on any GPU, and starting it takes some seconds.
BYTES_PER_JOB = 8 << 30
# Enough jobs for the GPUs of four nodes, and few enough paths for a command line.
MIN_JOBS, MAX_SHARDS_PER_JOB = 32, 64
SUFFIXES = ", ".join(SHARD_SUFFIXES)

# webdataset's own form. A file can have `::` in its name.
_LIST_HINT = "; webdataset's a.tar::b.tar is written as a list, [a.tar, b.tar]"

Patterns = str | Sequence[str]


def find_shards(shards: Patterns | Mapping[str, Patterns]) -> dict[str, str]:
    """Find the shards of a configuration, and name them.

    A pattern is a glob (`data/*.tar`, `data/**/*.tar`), a brace pattern (`data/{00000..00099}.tar`), a path, or a
    `.txt` file with one of these per line. An address (`s3://bucket/{00000..00099}.tar`) is used without asking its
    server; only for a glob (`s3://bucket/*.tar`) the folder is listed. The keys of a mapping become folders; the key
    `.` stands for no folder.

    The name of a shard depends only on its own pattern, so adding a pattern renames nothing. A file that two patterns
    match is used once, with the name from the first pattern.

    Returns:
        Path by name, sorted by name.

    Raises:
        ConfigError: A pattern matches nothing, a shard does not exist, its path or name cannot be used, or two shards
            have the same name.
        ShardError: A folder on a server cannot be listed.
    """
    by_name: dict[str, Shard] = {}
    for shard in _take_once(_read_shards(shards)):
        other = by_name.setdefault(shard.name, shard)
        if other is not shard and not other.is_same_file(shard):
            raise ConfigError(describe_clash(other, shard))
    require_no_folder_like_a_result(by_name)
    return {name: by_name[name].path for name in sorted(by_name)}


def group_shards(
    shards: Mapping[str, str], shards_per_job: int | str, versions: Mapping[str, Version] = MappingProxyType({})
) -> list[list[str]]:
    """Divide the shards among jobs, in order.

    Args:
        shards: Path by name.
        shards_per_job: A number, or `auto`: then a job gets about `BYTES_PER_JOB`, estimated from a few of the
            shards, but less if there would be fewer than `MIN_JOBS` jobs.
        versions: Of the shards with an address, by address.

    Raises:
        ConfigError: A shard is a broken link, or cannot be looked up.
    """
    names = list(shards)
    if shards_per_job == "auto":
        some = [shards[name] for name in names[:: max(1, len(names) // 16)]]
        mean_bytes = sum(_find_size(path, versions) for path in some) / len(some)
        count = max(1, min(int(BYTES_PER_JOB / max(mean_bytes, 1)), len(names) // MIN_JOBS, MAX_SHARDS_PER_JOB))
    else:
        count = int(shards_per_job)
    return [names[start : start + count] for start in range(0, len(names), count)]


def _find_size(path: str, versions: Mapping[str, Version]) -> int:
    if path in versions:
        return versions[path].bytes or 0
    try:
        return os.path.getsize(path)
    except OSError as error:
        raise ConfigError(
            f"shards: {path!r} cannot be looked up ({error.strerror}); expected a file; is it a broken link?"
        ) from error


def _read_shards(shards: Patterns | Mapping[str, Patterns]) -> Iterator[Shard]:
    # One listing instead of a lookup per shard: a hundred thousand lookups take minutes on a network file system.
    list_folder = cache(_list_folder)
    for key, patterns in (shards if isinstance(shards, Mapping) else {".": shards}).items():
        folder = read_key(key)
        for pattern, listed_in in _read_patterns(patterns):
            for path in _expand(pattern, list_folder):
                name = folder + name_shard(pattern, require_usable(path))
                yield Shard(_tidy(path), name, key, pattern, listed_in)


def _take_once(shards: Iterator[Shard]) -> Iterator[Shard]:
    """Skip shards that an earlier pattern has matched; a shard that two keys of a mapping match is an error."""
    first_by_path: dict[str, Shard] = {}
    folder = os.getcwd()
    for shard in shards:
        first = first_by_path.setdefault(os.path.join(folder, shard.path), shard)
        if first is shard:
            yield shard
        elif first.key != shard.key:
            raise ConfigError(
                f"shards: {shard.path!r} is matched under two keys, by {first.pattern!r} under {first.key!r} and by "
                f"{shard.pattern!r} under {shard.key!r}; expected one key per shard; make a pattern narrower"
            )


def _tidy(path: str) -> str:
    """Return a path without `./` and `//`, which Snakemake warns about; `..` stays, it may follow a link."""
    if is_remote(path):
        return path.replace(NAME_MARK, "/")
    tidy = str(PurePath(path)) if "//" in path or "./" in path else path
    return f"./{tidy}" if tidy.startswith("-") else tidy  # else a job would read it as an option


def _read_patterns(patterns: Patterns) -> Iterator[tuple[str, str | None]]:
    """Yield each pattern and the list that contains it."""
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        pattern = os.path.expanduser(pattern)
        if not pattern.endswith(".txt"):
            yield pattern, None
            continue
        try:
            lines = Path(pattern).read_text(encoding="utf-8-sig").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"shards: list {pattern!r} cannot be read ({error}); expected text in UTF-8") from error
        entries = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
        if not entries:
            raise ConfigError(f"shards: list {pattern!r} is empty; expected one path or pattern per line")
        yield from ((os.path.expanduser(entry), pattern) for entry in entries)


def _expand(pattern: str, list_folder: Callable[[str], frozenset[str]]) -> Iterator[str]:
    """Yield the paths and addresses that one pattern expands to; every path exists."""
    for expanded in _expand_braces(pattern):
        if is_remote(expanded):
            if "::" in expanded:
                raise ConfigError(f"shards: {hide_secrets(expanded)!r}: expected one address{_LIST_HINT}")
            if not expanded.endswith(SHARD_SUFFIXES) and not glob.has_magic(expanded):
                raise ConfigError(
                    f"shards: {hide_secrets(expanded)!r}: expected an address that ends in {SUFFIXES}, or a pattern "
                    "such as s3://bucket/*.tar"
                )
            if not glob.has_magic(expanded):
                require_address(expanded.replace(NAME_MARK, "/"))
                yield expanded
                continue
            matches = [address for address in find_matches(expanded) if address.endswith(SHARD_SUFFIXES)]
            if not matches:
                raise ConfigError(f"shards: {expanded!r} matches no file that ends in {SUFFIXES}; check the pattern")
            yield from matches
        elif glob.has_magic(expanded) and not os.path.exists(expanded):
            found = [path for path in sorted(glob.glob(expanded, recursive=True)) if path.endswith(SHARD_SUFFIXES)]
            if not found:
                raise ConfigError(
                    f"shards: {expanded!r} matches no file that ends in {SUFFIXES} (in {os.getcwd()!r}); check the "
                    f"pattern{_hint_at_signs(expanded)}"
                )
            yield from found
        elif not expanded.endswith(SHARD_SUFFIXES):
            hint = f"; for a folder, write {expanded.rstrip('/') + '/*.tar'!r}" if os.path.isdir(expanded) else ""
            raise ConfigError(f"shards: {expanded!r}: expected a file that ends in {SUFFIXES}{hint}")
        elif os.path.basename(expanded) not in list_folder(os.path.dirname(expanded) or "."):
            hint = _hint_at_signs(expanded)
            raise ConfigError(f"shards: there is no file {expanded!r} (in {os.getcwd()!r}); check the path{hint}")
        else:
            yield expanded


def _expand_braces(pattern: str) -> Iterator[str]:
    if "{" not in pattern:
        yield pattern
        return
    try:
        yield from braceexpand.braceexpand(pattern)
    except ValueError as error:
        raise ConfigError(f"shards: {pattern!r}: {error}; expected a pattern such as {{00000..00099}}.tar") from error


def _hint_at_signs(pattern: str) -> str:
    hint = "; write a [ that is part of a name as [[]" if "[" in pattern else ""
    hint += _LIST_HINT if "::" in pattern else ""
    return hint + ("; variables such as $HOME are not expanded, write the value" if "$" in pattern else "")


def _list_folder(folder: str) -> frozenset[str]:
    try:
        return frozenset(os.listdir(folder))
    except OSError:
        return frozenset()
