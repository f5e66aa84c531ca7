"""The shards of a run that were tried and have no result, and why; printed at its end."""

import os
from collections.abc import Collection, Iterator, Mapping

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
