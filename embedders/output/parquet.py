"""Readers of the Parquet files of a run: vectors, ledgers and scores. `footers` reads how they were made."""

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from math import prod
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from embedders.errors import ShardError
from embedders.output.columns import KEY, SHARD
from embedders.output.failed import FailedSample
from embedders.output.footers import VectorFile, describe_file, explain_reading, read_footer, read_provenance
from embedders.output.provenance import ScoreProvenance
from embedders.output.usage import Usage
from embedders.output.vectors import choose_column, find_columns
from embedders.output.writer import LEDGER_SCHEMA, PROVENANCE


def read_ledger(path: str) -> list[FailedSample]:
    """Read the samples that were not embedded.

    Raises:
        ShardError: The file is missing, cut short, or not a ledger.
    """
    return read_account(path)[0]


def read_account(path: str) -> tuple[list[FailedSample], dict[str, float], Usage | None]:
    """Read a whole ledger.

    Returns:
        The samples that were not embedded; the seconds spent on each activity of `timings`; and what the shard used,
        which is `None` in a ledger from before this was measured.

    Raises:
        ShardError: The file is missing, cut short, or not a ledger.
    """
    with explain_reading(path):
        table = pq.read_table(path, page_checksum_verification=True)
        footer = json.loads((table.schema.metadata or {}).get(PROVENANCE, "{}"))
    if not table.schema.equals(LEDGER_SCHEMA):
        raise ShardError(f"{path!r}: its columns are {', '.join(table.column_names)}; expected a ledger of tarquet")
    usage = Usage.from_json(footer["usage"]) if "usage" in footer else None
    return [FailedSample(**row) for row in table.drop_columns(SHARD).to_pylist()], footer.get("seconds", {}), usage


def read_vectors(path: str) -> tuple[pa.Table, np.ndarray, VectorFile]:
    """Read a whole output.

    Returns:
        The table; its vectors as an array of shape (rows, numbers), the parts of an image one behind the other, and
        so several columns; its footer.

    Raises:
        ShardError: The file is missing, cut short, or not an output of tarquet.
    """
    description = describe_file(path)
    with explain_reading(path):
        table = pq.read_table(path, page_checksum_verification=True)
    parts = [column.load(table).reshape(len(table), prod(column.shape)) for column in description.columns.values()]
    return table, parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1), description


def read_tables(path: str) -> Iterator[pa.Table]:
    """Read an output row group by row group, with all its columns.

    Raises:
        ShardError: The file is missing, cut short, or has a page whose checksum is wrong.
    """
    with explain_reading(path), pq.ParquetFile(path, page_checksum_verification=True) as file:
        for number in range(file.num_row_groups):
            yield file.read_row_group(number)


def count_groups(path: str) -> int:
    """Count the row groups of an output.

    Raises:
        ShardError: The file is missing or cut short.
    """
    with explain_reading(path):
        return pq.read_metadata(path).num_row_groups


def read_groups(
    path: str, numbers: Sequence[int] | None = None, column: str = ""
) -> Iterator[tuple[list[str], np.ndarray]]:
    """Read one column of vectors of an output by its row groups, one in memory at a time.

    Args:
        path: The output.
        numbers: The row groups to read; `None` reads all.
        column: As in `vectors.choose_column`.

    Yields:
        The keys of a row group, and its vectors, of shape (rows, dimension): in their stored type, int8 as float32.

    Raises:
        ShardError: The file is missing or cut short.
        ConfigError: There is no such column, or it has several vectors per image.
    """
    with explain_reading(path), pq.ParquetFile(path, page_checksum_verification=True) as file:
        chosen = choose_column(find_columns(file.schema_arrow), column, path)
        names = [KEY, *(field.name for field in chosen.fields)]
        for number in range(file.num_row_groups) if numbers is None else numbers:
            table = file.read_row_group(number, names)
            yield table[KEY].to_pylist(), chosen.load(table)


def read_scores(path: str) -> np.ndarray:
    """Read the scores of a file that `score` made.

    Raises:
        ShardError: The file is missing or cut short.
    """
    with explain_reading(path):
        table = pq.read_table(path, page_checksum_verification=True)
    return table.column(table.num_columns - 1).to_numpy()


def inspect_file(path: str) -> dict[str, Any]:
    """Return the footer of an output as values for JSON, with the times and the usage from its ledger if it is there.

    For a file of scores, return the number of rows and how they were made.

    Raises:
        ShardError: As `describe_file`.
    """
    rows, _, stored = read_footer(path)
    if isinstance(stored, dict) and "classifier" in stored:
        return {"file": str(path), "rows": rows} | ScoreProvenance.from_json(stored).as_json()
    described = describe_file(path)
    account: dict[str, Any] = {}
    if ledger := described.provenance.ledger:
        with suppress(ShardError):
            # From another working folder, the path may lead to the ledger of another run.
            if read_provenance(ledger)[0] == described.provenance:
                _, seconds, usage = read_account(ledger)
                account = {"seconds": seconds, "usage": usage and usage.as_json()}
    return described.as_json() | account
