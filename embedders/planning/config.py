"""config.yaml -> a checked configuration and the shards it names. Used by the Snakefile; imports nothing heavy."""

import difflib
import glob
import os
import re
import shlex
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

import braceexpand
import jsonschema
import yaml

from embedders.errors import ConfigError
from embedders.gpu.terms import Terms
from embedders.reading.remote import is_remote
from embedders.reading.samples import SHARD_SUFFIXES

# A job that reads this much works for a minute or more on any GPU, against some seconds of starting up.
BYTES_PER_JOB = 8 << 30
# Enough for the GPUs of four nodes; and paths that still fit on a command line.
MIN_JOBS, MAX_SHARDS_PER_JOB = 32, 64
_WILDCARD = re.compile(r"[*?\[{]")


def check_config(config: Mapping[str, Any], schema_path: str | Path) -> dict[str, Any]:
    """Check a configuration against its JSON schema and fill in the defaults.

    Raises:
        ConfigError: A key is unknown (with the nearest known one) or missing, or a value is not as described.
    """
    schema = yaml.safe_load(Path(schema_path).read_text())
    config = _fill_defaults(config, schema)
    validator = jsonschema.Draft202012Validator(schema)
    for error in sorted(validator.iter_errors(config), key=lambda error: len(error.path)):
        place = ".".join(str(part) for part in error.path)
        known = error.schema.get("properties", {})
        if error.validator == "additionalProperties":
            unknown = sorted(set(error.instance) - set(known))[0]
            near = difflib.get_close_matches(unknown, known, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"expected one of: {', '.join(known)}"
            raise ConfigError(f"config: unknown key {'.'.join(filter(None, [place, unknown]))!r}; {hint}")
        if error.validator == "required":
            missing = next(key for key in error.validator_value if key not in error.instance)
            raise ConfigError(f"config: key {'.'.join(filter(None, [place, missing]))!r} is missing; set it")
        described = error.schema.get("description", error.message)
        raise ConfigError(f"config: {place} is {error.instance!r}; expected: {' '.join(described.split())}")
    config.setdefault("gpu", 0 if config["device"] == "cpu" else 1)
    return config


def _fill_defaults(values: Mapping[str, Any], schema: Mapping[str, Any]) -> dict[str, Any]:
    filled = dict(values)
    for key, rules in schema.get("properties", {}).items():
        if "default" in rules:
            filled.setdefault(key, rules["default"])
        if isinstance(filled.get(key), Mapping):
            filled[key] = _fill_defaults(filled[key], rules)
    return filled


def write_device_options(config: Mapping[str, Any]) -> str:
    """Write what a job computes on as options of `python -m embedders`."""
    names = ["device", *(field.name for field in fields(Terms))]
    return shlex.join(f"--{name.replace('_', '-')}={config[name]}" for name in names)


def name_scores(scores: list[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Name what `scores` lists: by `pred_column` among the arguments, else by the class.

    Returns:
        Class and arguments, by the name of the folder that the scores go to.

    Raises:
        ConfigError: Two would have one name, or a name is none for a folder.
    """
    named = {}
    for entry in scores:
        args = entry.get("args", {})
        name = args.get("pred_column", entry["class"].rpartition(":")[2])
        if not isinstance(name, str) or not name or "/" in name or name.startswith("."):
            raise ConfigError(f"scores: pred_column is {name!r}; expected a name that a folder can have")
        if name in named:
            raise ConfigError(f"scores: two are named {name!r}; set another pred_column in the args of one")
        named[name] = {"class": entry["class"], "args": args}
    return named


def find_shards(patterns: str | list[str]) -> dict[str, str]:
    """Find the shards that a configuration names.

    A pattern is a glob (`data/*.tar`, `data/**/*.tar`), a brace pattern (`data/{00000..00099}.tar`), a path, or a
    `.txt` file with one of these per line. An address (`s3://bucket/{00000..00099}.tar`) is taken as it is; nothing
    here looks at it. A shard is named after its path below the fixed part of its pattern, without the suffix; where
    two would be named alike, each takes parent folders until they differ.

    Returns:
        Path by name, sorted by name.

    Raises:
        ConfigError: A pattern matches nothing, a shard does not exist or has another suffix, or two shards cannot
            be told apart by name.
    """
    # One listing instead of a look-up per shard: a hundred thousand of these take minutes on a network file system.
    list_folder = cache(_list_folder)
    paths: dict[str, str] = {}  # the name within its own pattern, by path
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        for single in _read_list(pattern):
            wildcard = _WILDCARD.search(single)
            folder = os.path.dirname(single[: wildcard.start()] if wildcard else single)
            for path in _expand(single, list_folder):
                name = os.path.relpath(path, folder or ".").replace("../", "")  # else a result would leave its folder
                paths.setdefault(path if is_remote(path) else os.path.normpath(path), _strip_suffix(name))
    by_name = defaultdict(list)
    for path, name in paths.items():
        by_name[name].append(path)
    shards: dict[str, str] = {}
    for name, alike in by_name.items():
        for unique, path in zip(_tell_apart(name, alike), alike, strict=True):
            if unique in shards:
                raise ConfigError(
                    f"shards: {shards[unique]!r} and {path!r} would both be named {unique!r}; rename one of them"
                )
            shards[unique] = path
    return dict(sorted(shards.items()))


def group_shards(shards: Mapping[str, str], shards_per_job: int | str) -> list[list[str]]:
    """Divide the shards among jobs, in order.

    Args:
        shards: Path by name.
        shards_per_job: A number, or `auto`: then a job gets `BYTES_PER_JOB`, judged by a few of the shards, as long
            as there are `MIN_JOBS` jobs.
    """
    names = list(shards)
    if shards_per_job == "auto":
        some = names[:: max(1, len(names) // 16)]
        mean_bytes = sum(os.path.getsize(shards[name]) for name in some) / len(some)
        count = max(1, min(int(BYTES_PER_JOB / max(mean_bytes, 1)), len(names) // MIN_JOBS, MAX_SHARDS_PER_JOB))
    else:
        count = int(shards_per_job)
    return [names[start : start + count] for start in range(0, len(names), count)]


def _read_list(pattern: str) -> Iterator[str]:
    if not pattern.endswith(".txt"):
        yield pattern
        return
    try:
        lines = Path(pattern).read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"shards: list {pattern!r} cannot be read ({error}); expected a text file") from error
    entries = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not entries:
        raise ConfigError(f"shards: list {pattern!r} is empty; expected one path or pattern per line")
    yield from entries


def _expand(pattern: str, list_folder: Callable[[str], frozenset[str]]) -> Iterator[str]:
    """Expand one pattern; every path it gives exists, unless it is an address."""
    try:
        expansion = braceexpand.braceexpand(pattern) if "{" in pattern else [pattern]
    except ValueError as error:
        raise ConfigError(f"shards: {pattern!r}: {error}; expected a pattern such as {{00000..00099}}.tar") from error
    for expanded in expansion:
        if is_remote(expanded):
            if glob.has_magic(expanded) or not expanded.endswith(SHARD_SUFFIXES):
                raise ConfigError(
                    f"shards: {expanded!r}: expected an address that ends in {', '.join(SHARD_SUFFIXES)}, without "
                    "* and ?; use braces as {00000..00099}.tar, or list the addresses in a .txt file"
                )
            yield expanded
        elif glob.has_magic(expanded) and not os.path.exists(expanded):
            found = [path for path in sorted(glob.glob(expanded, recursive=True)) if path.endswith(SHARD_SUFFIXES)]
            if not found:
                raise ConfigError(
                    f"shards: {expanded!r} matches no file that ends in {', '.join(SHARD_SUFFIXES)} "
                    f"(in {os.getcwd()!r}); check the pattern"
                )
            yield from found
        elif not expanded.endswith(SHARD_SUFFIXES):
            raise ConfigError(f"shards: {expanded!r}: expected a file that ends in {', '.join(SHARD_SUFFIXES)}")
        elif os.path.basename(expanded) not in list_folder(os.path.dirname(expanded) or "."):
            raise ConfigError(f"shards: there is no file {expanded!r} (in {os.getcwd()!r}); check the path")
        else:
            yield expanded


def _list_folder(folder: str) -> frozenset[str]:
    try:
        return frozenset(os.listdir(folder))
    except OSError:
        return frozenset()


def _strip_suffix(path: str) -> str:
    return next(path.removesuffix(suffix) for suffix in SHARD_SUFFIXES[::-1] if path.endswith(suffix))


def _tell_apart(name: str, paths: list[str]) -> list[str]:
    if len(paths) == 1:
        return [name]
    parts = [Path(_strip_suffix(os.path.abspath(path))).parts[1:] for path in paths]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-depth:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    raise ConfigError(f"shards: {paths[0]!r} and {paths[1]!r} would both be named {name!r}; rename one of them")
