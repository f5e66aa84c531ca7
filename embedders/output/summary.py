"""The summary of a run: counted from the files of its shards, never from what its jobs reported."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from embedders.errors import ShardError
from embedders.output.failed import FailedSample
from embedders.output.files import write_whole
from embedders.output.footers import VectorFile, describe_file
from embedders.output.parquet import read_account, read_ledger
from embedders.output.repeated_ids import RepeatedIds, find_repeated_ids
from embedders.output.timings import describe_seconds, find_bottleneck
from embedders.output.usage import Usage, UsageTotals

# Enough to see what is wrong; the ledgers hold all the names.
NAMES_PER_KIND = 5
# What must be the same in all the shards.
MODEL_KEYS = ("class", "args", "source_sha256", "weights_sha256")


@dataclass(frozen=True)
class Account:
    """The results of one shard.

    Attributes:
        shard: Its name.
        output: The footer of its vectors.
        failed: The samples that were not embedded.
        seconds: Seconds spent on each activity of `timings`.
        usage: What the shard used; `None` in a ledger from before this was measured.
    """

    shard: str
    output: VectorFile
    failed: list[FailedSample]
    seconds: dict[str, float]
    usage: Usage | None


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
        remarks: Number of embedded samples with a remark of a decoder, by kind: `patched`, `warned`.
        null_columns: Number of shards in which a column is null in every row, by column.
        vectors: Type of the vectors' column, the same in every shard.
        seconds: Seconds spent on each activity of `timings`, summed over the shards.
        usage: What the shards used.
        strays: Files in the folder that belong to none of these shards, by path, with the reason; not counted.
        made_from: Digest of what the vectors were made from, according to the record of the folder.
        repeated_ids: The ids that are in several rows of the run.
    """

    shards: int = 0
    samples: int = 0
    embedded: int = 0
    failed: int = 0
    failures: dict[str, int] = field(default_factory=dict)
    first_failed: dict[str, list[str]] = field(default_factory=dict)
    remarks: dict[str, int] = field(default_factory=dict)
    null_columns: dict[str, int] = field(default_factory=dict)
    vectors: str = ""
    seconds: dict[str, float] = field(default_factory=dict)
    usage: UsageTotals = field(default_factory=UsageTotals)
    strays: dict[str, str] = field(default_factory=dict)
    made_from: str = ""
    repeated_ids: RepeatedIds = field(default_factory=RepeatedIds)

    def add(self, account: Account, ledger_path: str) -> None:
        """Add the counts of a shard."""
        self.vectors = account.output.vectors
        self.shards += 1
        self.samples += account.output.provenance.samples
        self.embedded += account.output.rows
        self.failed += len(account.failed)
        self.remarks = dict(Counter(self.remarks) + Counter(account.output.provenance.remarks))
        for name, spent in account.seconds.items():
            self.seconds[name] = round(self.seconds.get(name, 0.0) + spent, 3)
        self.usage.add(account.usage, account.output.rows)
        self.null_columns = dict(Counter(self.null_columns) + Counter(account.output.provenance.null_columns))
        kinds = Counter(self.failures)
        for sample in account.failed:
            kinds[sample.kind] += 1
            names = self.first_failed.setdefault(sample.kind, [])
            if len(names) < NAMES_PER_KIND:
                names.append(f"{ledger_path}: {sample.key!r}: {sample.message}")
        self.failures = dict(kinds.most_common())

    def describe(self) -> str:
        """Return the summary as a few lines for a terminal."""
        lines = [
            f"{self.shards} shards: {self.samples} samples, {self.embedded} embedded, {self.failed} failed",
            *(f"  {count} {kind}, such as {self.first_failed[kind][0]}" for kind, count in self.failures.items()),
        ]
        if self.remarks:
            lines.append(f"  {self.describe_remarks()}")
        if self.null_columns:
            lines.append(f"  {self.describe_null_columns()}")
        if self.repeated_ids.ids:
            lines.append(f"  {'warning: ' * self.repeated_ids.is_wrong}{self.repeated_ids.describe()}")
        if self.seconds:
            lines.append(f"time: {describe_seconds(self.seconds)}; {find_bottleneck(self.seconds)}")
        if self.shards:
            lines.append(f"use: {self.usage.describe()}")
        return "\n".join(lines)

    def describe_remarks(self) -> str:
        """Return a phrase with the number of embedded samples that a decoder had a remark on."""
        said = ", ".join(f"{count} {kind}" for kind, count in self.remarks.items())
        return f"embedded nevertheless: {said}; the logs of the shards name them"

    def describe_null_columns(self) -> str:
        """Return a phrase that names the columns which are null in every row of a shard."""
        counts = ", ".join(
            f"{name!r} in {count} of {self.shards} shards" for name, count in self.null_columns.items()
        )
        return f"null in every row: {counts}; check the names in metadata_columns"


def summarize_run(folder: str | Path, shards: Sequence[str]) -> Summary:
    """Count the rows, the failed samples and the repeated ids of a run.

    Args:
        folder: The run's output folder.
        shards: Names of its shards.

    Raises:
        ShardError: A file cannot be read, a ledger does not match its vectors, a file was renamed, or the vectors of
            the shards have different types or come from several models.
    """
    summary = Summary()
    models: dict[str, list[str]] = {}
    id_col = "__key__"
    for account in read_accounts(folder, shards):
        id_col = account.output.provenance.id_col
        summary.add(account, f"{folder}/ledger/{account.shard}.parquet")
        model = json.dumps(account.output.provenance.embedder.select(MODEL_KEYS), sort_keys=True)
        models.setdefault(model, []).append(account.shard)
    if len(models) > 1:
        raise ShardError(f"{str(folder)!r}: {_describe_difference(models)}")
    summary.repeated_ids = find_repeated_ids(folder, shards, id_col)
    return summary


def _describe_difference(models: Mapping[str, Sequence[str]]) -> str:
    most = json.loads(max(models, key=lambda model: len(models[model])))
    parts = []
    for model, shards in models.items():
        other = json.loads(model)
        if changed := [key for key in most if other[key] != most[key]]:
            names = ", ".join(map(repr, shards[:5])) + (f" and {len(shards) - 5} more" if len(shards) > 5 else "")
            parts.append(f"{names} ({', '.join(changed)})")
    return (
        f"shards of {len(models)} models: unlike most are {'; '.join(parts)}; expected one model in a folder; "
        "remove these shards' files from embeddings/ and run again, or run `snakemake --forceall`"
    )


def read_accounts(folder: str | Path, shards: Iterable[str]) -> Iterator[Account]:
    """Read the results of each shard of a run, with one in memory at a time.

    Raises:
        ShardError: As `summarize_run`.
    """
    type_of_all = None
    for shard in shards:
        embeddings_path, ledger_path = f"{folder}/embeddings/{shard}.parquet", f"{folder}/ledger/{shard}.parquet"
        output = describe_file(embeddings_path)
        output.require_shard(shard)
        rows, samples, vectors = output.rows, output.provenance.samples, output.vectors
        failed, seconds, usage = read_account(ledger_path)
        if samples != rows + len(failed):
            raise ShardError(
                f"{embeddings_path!r}: {samples} samples, but {rows} rows and {len(failed)} failed in "
                f"{ledger_path!r}; expected the sum to match; remove both files and run again"
            )
        type_of_all = type_of_all or vectors
        if vectors != type_of_all:
            raise ShardError(
                f"{embeddings_path!r}: its vectors are {vectors}, but {type_of_all} in other shards; expected "
                "one type; remove it and run again"
            )
        yield Account(shard, output, failed, seconds, usage)


def write_summary(summary: Summary, path: str | Path) -> None:
    """Write a summary as JSON; the file is either complete or not there."""
    with write_whole(path) as file:
        totals = asdict(summary) | {"usage": summary.usage.as_json()}
        file.write(json.dumps(totals, indent=2).encode() + b"\n")


def find_failed_shards(ledger_folder: str, shards: Iterable[str]) -> list[str]:
    """Return the shards of a finished run whose ledgers name at least one sample."""
    paths = {shard: Path(ledger_folder, f"{shard}.parquet") for shard in shards}
    return [shard for shard, path in paths.items() if path.is_file() and read_ledger(str(path))]
