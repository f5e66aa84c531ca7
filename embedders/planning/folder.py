"""Compares the content of an output folder with a run: which outputs are out of date, and which files are strays.

It uses only the record of the folder (`output.record`) and the files in it, so the result does not depend on the
working folder. It changes nothing and schedules nothing.
"""

import json
import os
import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

from embedders.errors import ConfigError, ShardError
from embedders.output.hashes import Hashes
from embedders.output.record import Record, digest
from embedders.output.strays import find_strays, list_outputs
from embedders.planning.adoption import adopt_outputs
from embedders.planning.config import name_scores
from embedders.planning.file_times import stat_files
from embedders.planning.parts import WHOLE, Part
from embedders.reading.remote import Version, is_remote


@dataclass
class Comparison:
    """A folder compared with a run.

    Attributes:
        stale: Why an output is out of date, by its name in the record, such as `embeddings/00000`.
        strays: Why a file belongs to no shard of the run, by its path in the folder.
        there: The names of the outputs that exist.
        made_from: Digest of what the vectors there were made from; empty if nothing was compared.
        is_summary_stale: Whether `summary.json` counts other vectors or names other strays, or shards were moved.
    """

    stale: dict[str, str] = field(default_factory=dict)
    strays: dict[str, str] = field(default_factory=dict)
    there: set[str] = field(default_factory=set)
    made_from: str = ""
    is_summary_stale: bool = False

    def is_finished(self, shard: str) -> bool:
        """Return whether a shard need not be embedded."""
        names = (f"embeddings/{shard}", f"ledger/{shard}")
        return names[0] not in self.stale and self.there.issuperset(names)

    def describe(self, kind: str) -> Iterator[str]:
        """Yield a line for each reason why outputs of a kind, such as `embeddings`, are made again."""
        reasons = Counter(why for name, why in self.stale.items() if name.startswith(f"{kind}/"))
        for why, count in reasons.items():
            yield f"{kind}: {count} {'are' if count > 1 else 'is'} made again: {why}"


def compare_folder(
    folder: str,
    shards: Mapping[str, str],
    recipes: Mapping[str, Mapping[str, Any]],
    hashes: Hashes,
    say: Callable[[str], None],
    versions: Mapping[str, Version] = MappingProxyType({}),
    part: Part = WHOLE,
) -> Comparison:
    """Compare a folder with a run.

    Args:
        folder: The output folder, which need not exist.
        shards: Path of each shard of the run by name.
        recipes: The recipe of each kind of output, by `embeddings` or `scores/{score}`.
        hashes: The folder's cache of file hashes.
        say: Called with a line before a step that takes long.
        versions: Of the shards with an address, by address.
        part: The part of the run whose outputs are compared.

    Raises:
        OutputError: The record of the folder cannot be read.
    """
    record = Record(folder)
    there = set(list_outputs(folder))
    found = Comparison(there={name.removesuffix(".parquet") for name in there})
    outputs = {
        (name, kind): shard
        for kind in recipes
        for place in ([kind, f"retried/{kind}"] if kind == "embeddings" else [kind])
        for shard in part.select(shards)
        if (name := f"{place}/{shard}") in found.there
    }
    unknown = {name: (kind, shard) for (name, kind), shard in outputs.items() if name not in record.origins}
    refused = adopt_outputs(folder, record, unknown, recipes, hashes, say) if unknown else {}
    scores = {name.partition("/")[2] for name in recipes if name.startswith("scores/")}
    found.strays = find_strays(folder, shards, scores, record, there)
    for kind, recipe in recipes.items():
        paths = {name: shards[shard] for (name, of_kind), shard in outputs.items() if of_kind == kind}
        found.stale |= _compare_recipes(record, paths, recipe, refused)
        if kind == "embeddings":
            found.stale |= _compare_shards(record, paths, hashes, say)
            found.stale |= _compare_versions(record, paths, versions)
    found.stale |= {
        path.removesuffix(".parquet"): why
        for path, why in found.strays.items()
        if path.startswith("retried/embeddings/")
    }
    found.made_from = record.sign(shards)
    counted = [len(shards), found.made_from, found.strays]
    found.is_summary_stale = _is_summary_stale(Path(folder, "summary.json"), counted) or _were_moved(folder, shards)
    return found


def shorten_path(path: str) -> str:
    """Return the shortest spelling of a path: relative if it lies in the working folder, else absolute."""
    relative = os.path.relpath(path)
    return os.path.abspath(path) if Path(relative).parts[0] == ".." else relative


def check_times(paths: Iterable[str], now: float) -> None:
    """Check that no shard is dated in the future: Snakemake discards a result that is older than its shard.

    Args:
        paths: The shards; those with an address are skipped.
        now: The current time by the clock of the results' file system.

    Raises:
        ShardError: A shard is dated later.
    """
    times = stat_files(path for path in paths if not is_remote(path))
    future = [path for path, (_, mtime_ns) in times.items() if mtime_ns / 1e9 > now + 1]
    if future:
        until = datetime.fromtimestamp(times[future[0]][1] / 1e9).isoformat(" ", "seconds")
        more = f" and {len(future) - 1} more" if len(future) > 1 else ""
        raise ShardError(
            f"{future[0]!r}{more}: dated in the future ({until}), so Snakemake would discard its results; expected a "
            f"time in the past; run `touch {shlex.join(future[:20])}`"
        )


def read_run(folder: str | Path) -> tuple[dict[str, str], set[str] | None]:
    """Read the shards and scores of the last run in a folder.

    Returns:
        The path of each shard by name; the names of the scores, `None` if the folder does not contain them.

    Raises:
        ConfigError: The folder has no run.
    """
    path, config = Path(folder, "run_shards.json"), Path(folder, "run_config.yaml")
    try:
        shards = json.loads(path.read_text())
        return shards, set(name_scores(yaml.safe_load(config.read_text())["scores"])) if config.is_file() else None
    except (OSError, ValueError, TypeError, KeyError, yaml.YAMLError) as error:
        raise ConfigError(
            f"{str(path)!r} or {config.name} is missing or cannot be read; expected what a run writes at its start; "
            "check the path or, if this is a module of another Snakefile, add `onstart: tarquet.onstart()` there"
        ) from error


def _were_moved(folder: str, shards: Mapping[str, str]) -> bool:
    """Return whether `run_shards.json` names other places of the shards. A run without jobs does not write it.

    A relative path may be from another working folder, so paths of which one is the end of the other are one place.
    """
    try:
        before = read_run(folder)[0]
    except ConfigError:
        return True  # missing or damaged; only a run with jobs writes it again
    return any(not _is_same_place(before.get(shard, path), path) for shard, path in shards.items())


def _is_same_place(one: str, other: str) -> bool:
    if one == other or is_remote(one) or is_remote(other):
        return one == other
    short, long = sorted(([part for part in Path(path).parts if part != ".."] for path in (one, other)), key=len)
    return long[-len(short) :] == short


def _compare_recipes(
    record: Record, names: Iterable[str], recipe: Mapping[str, Any], refused: Mapping[str, str]
) -> dict[str, str]:
    present = digest(recipe)
    stale, reasons = {}, {}
    for name in names:
        origin = record.origins.get(name)
        if origin is None:
            stale[name] = refused[name]
        elif origin.recipe != present:
            if origin.recipe not in reasons:
                reasons[origin.recipe] = _describe_change(record.recipes.get(origin.recipe, {}), recipe)
            stale[name] = reasons[origin.recipe]
    return stale


def _describe_change(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    changed = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    if "schema_version" in changed and old:
        return "made by a version of tarquet whose files have other columns"
    return f"changed since: {', '.join(changed)}"


def _compare_shards(
    record: Record, paths: Mapping[str, str], hashes: Hashes, say: Callable[[str], None]
) -> dict[str, str]:
    """Return the outputs whose shards have changed: by size and time and, if only the time differs, by hash."""
    local = {name: path for name, path in paths.items() if name in record.origins and not is_remote(path)}
    present = stat_files(local.values())
    changed, touched = set(), {}
    for name, path in local.items():
        origin = record.origins[name]
        size, mtime_ns = present.get(path, (origin.bytes, origin.mtime_ns))  # the job reports a missing shard
        if size != origin.bytes:
            changed.add(name)
        elif mtime_ns != origin.mtime_ns:
            touched[name] = path
    if unread := [path for path in touched.values() if not hashes.knows(path)]:
        gigabytes = sum(present[path][0] for path in unread) / 1e9
        say(f"{len(unread)} shards were touched: their content is compared, which reads {gigabytes:.1f} GB once")
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        try:
            found = zip(touched, pool.map(hashes.find, touched.values()), strict=True)
            changed |= {name for name, sha256 in found if sha256 != record.origins[name].sha256}
        finally:
            hashes.save()
    return dict.fromkeys(changed, "the content of the tar changed")


def _compare_versions(record: Record, paths: Mapping[str, str], versions: Mapping[str, Version]) -> dict[str, str]:
    """Return the outputs whose shards have an address and have changed on their servers."""
    stale = {}
    for name, path in paths.items():
        origin = record.origins.get(name)
        if origin and path in versions:
            made_from = Version(origin.bytes, origin.mtime_ns, origin.etag)
            if not versions[path].is_same(made_from):
                stale[name] = "the shard on the server changed"
    return stale


def _is_summary_stale(path: Path, expected: list[Any]) -> bool:
    try:
        summary = json.loads(path.read_text())
    except OSError:
        return False  # Snakemake makes what is missing
    except ValueError:
        return True
    return [summary.get(key) for key in ("shards", "made_from", "strays")] != expected
