"""The shards of a run that have no result, and why; printed at its end, and before a retry."""

import os
from collections.abc import Collection, Iterable, Iterator, Mapping

from embedders.job.failures import find_error
from embedders.planning.jobs import Jobs


def describe_failures(folder: str, shards: Mapping[str, str], jobs: Jobs, scores: Collection[str]) -> Iterator[str]:
    """Yield a line for each shard that was tried and has no result, with the error and the log.

    An error that is that of an earlier line is not repeated: a model that cannot be loaded fails ten thousand shards.

    Args:
        folder: The output folder.
        shards: Path by name.
        jobs: The jobs that embed.
        scores: Names of the scores.
    """
    outputs = [
        (shard, f"{folder}/embeddings/{shard}.parquet", f"{folder}/logs/embed/{job}.log")
        for shard, job in jobs.by_shard.items()
    ]
    outputs += [
        (shard, f"{folder}/scores/{score}/{shard}.parquet", f"{folder}/logs/score/{score}/{shard}.log")
        for score in scores
        for shard in shards
        if os.path.exists(f"{folder}/embeddings/{shard}.parquet")
    ]
    said: dict[str, str] = {}
    for shard, output, log in outputs:
        if os.path.exists(log) and not os.path.exists(output):
            path, error = shards[shard], find_error(log, shards[shard])
            first = said.setdefault(error, path)
            yield f"failed: {path}: {error if first == path else f'same as {first}'} (log: {log})"


def describe_old_totals(folder: str, shards: Iterable[str]) -> Iterator[str]:
    """Yield a line if the summary of an earlier run is still there although shards have no vectors now.

    Args:
        folder: The output folder.
        shards: Names of the shards of the run.
    """
    missing = sum(not os.path.exists(f"{folder}/embeddings/{shard}.parquet") for shard in shards)
    old = [path for name in ("summary.json", "report.html") if os.path.exists(path := f"{folder}/{name}")]
    if missing and old:
        count = "1 shard has" if missing == 1 else f"{missing} shards have"
        kept = "is kept; it is" if len(old) == 1 else "are kept; they are"
        yield f"{count} no vectors now, but {' and '.join(old)} {kept} of an earlier run"


def describe_retry(folder: str, shards: Collection[str], failed: Collection[str]) -> Iterator[str]:
    """Yield a line for each reason why a retry leaves out shards.

    Args:
        folder: The output folder.
        shards: Names of the shards of the run, or of a part of it.
        failed: Names of those whose ledgers name a failed sample.
    """
    missing = [shard for shard in shards if not os.path.exists(f"{folder}/ledger/{shard}.parquet")]
    if missing:
        yield (
            f"retry: {len(missing)} of {len(shards)} shards have no results, such as {missing[0]!r}; a retry is for "
            "single samples of finished shards; `snakemake` embeds these"
        )
    elif not failed:
        yield "retry: no ledger names a failed sample; there is nothing to retry"
