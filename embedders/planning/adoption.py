"""Fills gaps in the record of a folder from the footers of its outputs, which say how each was made.

The record can be lost, or left behind when results are copied. An output without an entry is then not made again:
what its footer says becomes its entry, which is compared with the run like any other. pyarrow is imported only if
there is such an output, because a plan with a complete record does not need it.
"""

import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from time import time_ns
from typing import Any

from embedders.errors import ShardError
from embedders.output.hashes import Hashes
from embedders.output.provenance import FileRecord
from embedders.output.record import Origin, Record, digest
from embedders.planning.file_times import stat_files


@dataclass(frozen=True)
class _Footer:
    """What the footer of an output says: its recipe, its entry for the record, and the vectors if it holds scores."""

    recipe: dict[str, Any]
    origin: Origin
    vectors: FileRecord | None = None


def adopt_outputs(
    folder: str,
    record: Record,
    names: Mapping[str, tuple[str, str]],
    recipes: Mapping[str, Mapping[str, Any]],
    hashes: Hashes,
    say: Callable[[str], None],
) -> dict[str, str]:
    """Add entries for outputs to the record of a folder, as their footers say.

    Args:
        folder: The output folder.
        record: Its record.
        names: The kind, as in `recipes`, and the shard of each output without an entry, by its name in the record.
        recipes: The recipe of each kind of output.
        hashes: The folder's cache of file hashes.
        say: Called with a line that counts the adopted outputs, and before a step that takes long.

    Returns:
        Why an output has no entry still, by name.
    """
    try:
        import embedders.output.footers  # noqa: F401, so that no thread finds pyarrow missing
    except ModuleNotFoundError:
        why = "no record, and Snakemake's Python has no pyarrow to read the footers, which say how; install it there"
        return dict.fromkeys(names, why)

    at_ns = time_ns()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        read = dict(zip(names, pool.map(lambda name: _read(folder, name, *names[name]), names), strict=True))
    refused = {name: f"no record, and {why}" for name, why in read.items() if isinstance(why, str)}
    found = {name: footer for name, footer in read.items() if isinstance(footer, _Footer)}
    current = {name: found[name] for name in found if found[name].origin.recipe == digest(recipes[names[name][0]])}
    scored = {name: footer.vectors for name, footer in current.items() if footer.vectors}
    for name in _find_rescored(folder, scored, names, hashes, say):
        refused[name] = "no record, and the vectors are not those that were scored"
        del found[name], current[name]
    if current:
        count = "1 output" if len(current) == 1 else f"{len(current)} outputs"
        say(f"{count} had no record; adopted from {'its footer' if len(current) == 1 else 'their footers'}")
    if found:
        made_by = {footer.origin.recipe: footer.recipe for footer in found.values()}
        record.adopt({name: footer.origin for name, footer in found.items()}, made_by, at_ns)
    return refused


def _read(folder: str, name: str, kind: str, shard: str) -> _Footer | str:
    """Return what the footer of an output says, or why it cannot be used."""
    try:
        named, footer = (_read_score if kind.startswith("scores/") else _read_vectors)(folder, name)
    except ShardError:
        return "the file or its ledger is missing, incomplete or of another version"
    if not footer.recipe:
        return "the footer does not say how"
    return footer if named == shard else "the footer names another shard"


def _read_vectors(folder: str, name: str) -> tuple[str, _Footer]:
    from embedders.output.footers import read_provenance

    made, _ = read_provenance(f"{folder}/{name}.parquet")
    ledger, version = read_provenance(f"{folder}/{name.replace('embeddings/', 'ledger/', 1)}.parquet")
    if ledger != made:
        raise ShardError(f"{name}: its ledger is that of other vectors")
    recipe, shard = made.recipe or {}, made.shard
    made_from = {"sha256": shard.sha256, "ledger": made.retried_sha256}
    return shard.name, _Footer(recipe, Origin(digest(recipe), **{"bytes": shard.bytes} | version | made_from))


def _read_score(folder: str, name: str) -> tuple[str, _Footer]:
    from embedders.output.footers import read_score_provenance

    made = read_score_provenance(f"{folder}/{name}.parquet")
    return made.shard, _Footer(made.recipe or {}, Origin(digest(made.recipe or {})), made.embeddings)


def _find_rescored(
    folder: str,
    scored: Mapping[str, FileRecord],
    names: Mapping[str, tuple[str, str]],
    hashes: Hashes,
    say: Callable[[str], None],
) -> list[str]:
    """Return the scores whose vectors are no longer those that were scored: by size, then by hash."""
    paths = {name: f"{folder}/embeddings/{names[name][1]}.parquet" for name in scored}
    present = stat_files(paths.values())
    alike = {name: path for name, path in paths.items() if present.get(path, (None,))[0] == scored[name].bytes}
    other = [name for name in paths if name not in alike]
    if unread := [path for path in set(alike.values()) if not hashes.knows(path)]:
        gigabytes = sum(present[path][0] for path in unread) / 1e9
        say(f"scores have no record: their vectors are compared, which reads {gigabytes:.1f} GB once")
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        try:
            compared = zip(alike, pool.map(hashes.find, alike.values()), strict=True)
            return other + [name for name, sha256 in compared if sha256 != scored[name].sha256]
        finally:
            hashes.save()
