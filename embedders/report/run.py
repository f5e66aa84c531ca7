"""The results of a run in numbers, as shown in the report."""

import json
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from embedders.output.failed import FailedSample
from embedders.output.footers import VectorFile
from embedders.output.record import digest, sign_vectors
from embedders.output.repeated_ids import RepeatedIds
from embedders.output.summary import Summary, read_accounts
from embedders.output.timings import sum_seconds

FAILURES_PER_KIND = 6


@dataclass
class Run:
    """The results of a run in numbers.

    Attributes:
        summary: The totals.
        shards: Name, number of rows and failed samples, seconds and images per second of each finished shard.
        unfinished: Names of the shards without vectors.
        failed: The first few failed samples of each kind, with the names of their shards.
        first: The footer of the first shard's vectors.
        made_from: Digest of what the vectors were made from, as `Record.sign` returns it.
        devices: Number of shards by the device that computed them.
    """

    summary: Summary = field(default_factory=Summary)
    shards: list[dict] = field(default_factory=list)
    unfinished: list[str] = field(default_factory=list)
    failed: dict[str, list[tuple[str, FailedSample]]] = field(default_factory=dict)
    first: VectorFile | None = None
    made_from: str = ""
    devices: Counter[str] = field(default_factory=Counter)


def read_run(folder: Path, shards: list[str]) -> Run:
    """Read the footers and ledgers of a run; of unfinished shards only the names are returned."""
    finished = [shard for shard in shards if (folder / f"embeddings/{shard}.parquet").is_file()]
    run = Run(unfinished=sorted(set(shards) - set(finished)))
    with suppress(FileNotFoundError, ValueError):
        stored = json.loads((folder / "summary.json").read_text())
        run.summary.strays = stored.get("strays", {})
        run.summary.repeated_ids = RepeatedIds(**stored.get("repeated_ids", {}))
    made_from = {}
    for account in read_accounts(folder, finished):
        run.first = run.first or account.output
        run.devices[account.output.provenance.embedder.device] += 1
        run.summary.add(account, account.shard)
        made = account.output.provenance
        made_from[account.shard] = (digest(made.recipe or {}), made.shard.sha256)
        seconds = sum_seconds(account.seconds)
        rows, failed = account.output.rows, len(account.failed)
        speed = rows / seconds if seconds else 0.0
        shard = {"name": account.shard, "rows": rows, "failed": failed, "seconds": seconds, "speed": speed}
        run.shards.append(shard)
        for sample in account.failed:
            named = run.failed.setdefault(sample.kind, [])
            if len(named) < FAILURES_PER_KIND:
                named.append((account.shard, sample))
    run.made_from = sign_vectors(made_from)
    return run
