"""The summary of a run: counted from what its shards left, never from what a job said on the way."""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from embedders.errors import ShardError
from embedders.outputs import write_whole
from embedders.parquet import describe_file, read_account, read_ledger
from embedders.timings import describe_seconds, find_bottleneck

# Enough to see what is wrong; the ledgers hold all of them.
NAMES_PER_KIND = 5


@dataclass
class Summary:
    """Totals of a run.

    Attributes:
        shards: Number of shards.
        samples: Samples found in the tars; equals `embedded + failed`.
        embedded: Rows of all the Parquet files.
        failed: Samples that were not embedded.
        failures: Number of failed samples by kind, most frequent first.
        first_failed: The first few of each kind, as `shard: key: message`.
        vectors: Type of the vectors' column, the same in every shard.
        seconds: Time of all the shards together by what it was spent on, as in `timings`.
    """

    shards: int = 0
    samples: int = 0
    embedded: int = 0
    failed: int = 0
    failures: dict[str, int] = field(default_factory=dict)
    first_failed: dict[str, list[str]] = field(default_factory=dict)
    vectors: str = ""
    seconds: dict[str, float] = field(default_factory=dict)

    def describe(self) -> str:
        """Say it in a few lines, for a terminal."""
        lines = [
            f"{self.shards} shards: {self.samples} samples, {self.embedded} embedded, {self.failed} failed",
            *(f"  {count} {kind}, as {self.first_failed[kind][0]}" for kind, count in self.failures.items()),
        ]
        if self.seconds:
            lines.append(f"time: {describe_seconds(self.seconds)}; {find_bottleneck(self.seconds)}")
        return "\n".join(lines)


def summarize_run(folder: str | Path, shards: Sequence[str]) -> Summary:
    """Count the rows and the failed samples of a run.

    Args:
        folder: The run's output folder.
        shards: Names of its shards.

    Raises:
        ShardError: A file does not say what a ledger and its vectors must, or the shards' vectors differ in type.
    """
    summary = Summary()
    kinds: Counter[str] = Counter()
    for shard in shards:
        embeddings_path, ledger_path = f"{folder}/embeddings/{shard}.parquet", f"{folder}/ledger/{shard}.parquet"
        output = describe_file(embeddings_path)
        rows, samples, vectors = output["rows"], output["samples"], output["vectors"]
        failed, seconds = read_account(ledger_path)
        if samples != rows + len(failed):
            raise ShardError(
                f"{embeddings_path!r}: {samples} samples, but {rows} rows and {len(failed)} failed in "
                f"{ledger_path!r}; expected the sum to come out; remove both files and run again"
            )
        if summary.vectors not in ("", vectors):
            raise ShardError(
                f"{embeddings_path!r}: its vectors are {vectors}, but {summary.vectors} in other shards; expected "
                "one type; remove it and run again"
            )
        summary.vectors = vectors
        summary.shards += 1
        summary.samples += samples
        summary.embedded += rows
        summary.failed += len(failed)
        for name, spent in seconds.items():
            summary.seconds[name] = round(summary.seconds.get(name, 0.0) + spent, 3)
        for sample in failed:
            kinds[sample.kind] += 1
            names = summary.first_failed.setdefault(sample.kind, [])
            if len(names) < NAMES_PER_KIND:
                names.append(f"{ledger_path}: {sample.key!r}: {sample.message}")
    summary.failures = dict(kinds.most_common())
    return summary


def write_summary(summary: Summary, path: str | Path) -> None:
    """Write a summary as JSON, whole or not at all."""
    with write_whole(path) as file:
        file.write(json.dumps(asdict(summary), indent=2).encode() + b"\n")


def find_failed_shards(ledger_folder: str, shards: Iterable[str]) -> list[str]:
    """Find the shards of a finished run whose ledgers name at least one sample."""
    paths = {shard: Path(ledger_folder, f"{shard}.parquet") for shard in shards}
    return [shard for shard, path in paths.items() if path.is_file() and read_ledger(str(path))]
