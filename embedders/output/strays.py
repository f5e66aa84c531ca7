"""Find, describe and move away the files of an output folder that belong to no shard of its run; delete nothing."""

import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path

from embedders.errors import OutputError
from embedders.output.hashes import hash_file
from embedders.output.record import Record

# The folders that readers read, with one file for each shard.
KINDS = ("embeddings", "ledger", "retried/embeddings", "retried/ledger", "scores")
PRUNED = "pruned"


def find_strays(
    folder: str | Path,
    shards: Collection[str],
    scores: Collection[str] | None,
    record: Record | None = None,
    there: Iterable[str] | None = None,
) -> dict[str, str]:
    """Find the files that readers of the folder read although they belong to no shard of its run.

    Args:
        folder: The output folder.
        shards: Names of the shards of the run.
        scores: Names of the scores of the run; with `None` they are not known, and no score counts as stray.
        record: The record of the folder, if it was already read.
        there: The files, if they were already listed.

    Returns:
        The reason why each file is stray, by its path in the folder, sorted.
    """
    record = record or Record(folder)
    strays = {}
    for path in list_outputs(folder) if there is None else there:
        kind = next(kind for kind in KINDS if path.startswith(f"{kind}/"))
        name, suffix = os.path.splitext(path[len(kind) + 1 :])
        if kind == "scores":
            score, _, name = name.partition("/")
            if scores is None:
                continue
            if score not in scores:
                strays[path] = "no score of this run"
                continue
        if suffix != ".parquet" or name not in shards:
            strays[path] = "no shard of this run"
        elif kind.startswith("retried/"):
            origin = record.origins.get(f"retried/embeddings/{name}")
            ledger = Path(folder, f"ledger/{name}.parquet")
            if origin is None or not ledger.is_file() or origin.ledger != hash_file(ledger):
                strays[path] = "made before its shard was embedded anew"
    return dict(sorted(strays.items()))


def describe_strays(strays: Mapping[str, str]) -> str:
    """Return one line that names files which belong to no shard of a run, and says what to do.

    Args:
        strays: The reason for each file, by its path in the folder.
    """
    some = ", ".join(f"{path} ({why})" for path, why in list(strays.items())[:3])
    count = "1 file belongs" if len(strays) == 1 else f"{len(strays)} files belong"
    return (
        f"{count} to no shard of this run, but readers of the folder read them too: {some}"
        f"{', ...' if len(strays) > 3 else ''}; `tarquet prune OUTPUT_DIR --move` moves them away"
    )


def move_strays(folder: str | Path, strays: Iterable[str]) -> Path:
    """Move files of a folder to where its readers do not look, and return the folder that they are in now.

    Raises:
        OutputError: A file cannot be moved.
    """
    target = Path(folder, PRUNED, datetime.now(UTC).strftime("%Y-%m-%dT%H.%M.%S"))
    for stray in strays:
        moved = target / stray
        try:
            moved.parent.mkdir(parents=True, exist_ok=True)
            Path(folder, stray).rename(moved)
        except OSError as error:
            raise OutputError(
                f"{stray!r} cannot be moved to {str(moved)!r} ({error.strerror}); expected a folder that can be "
                "written to; what was moved before it stays there"
            ) from error
    return target


def list_outputs(folder: str | Path) -> Iterator[str]:
    """Yield the files that readers of a folder read, as paths in it, without hidden files."""
    for kind in KINDS:
        for place, folders, files in os.walk(os.path.join(folder, kind)):
            folders[:] = [name for name in folders if not name.startswith(".")]
            inner = os.path.relpath(place, folder)
            yield from (f"{inner}/{name}" for name in files if not name.startswith("."))
