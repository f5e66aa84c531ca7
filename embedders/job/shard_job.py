"""`ShardJob`: a shard, and where its results go."""

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class ShardJob:
    """A shard, and where its results go.

    Attributes:
        tar_path: The shard.
        parquet_path: The vectors; the file appears whole or not at all.
        ledger_path: The samples that failed, one row each; `None` leaves them to the log and the ledger returned.
        address: What `tar_path` is a passing copy of, as `s3://bucket/00000.tar`, for the footer to name; or `None`.
    """

    tar_path: str
    parquet_path: str
    ledger_path: str | None = None
    address: str | None = None

    @property
    def outputs(self) -> list[str]:
        """The paths of its results."""
        return [path for path in (self.parquet_path, self.ledger_path) if path is not None]

    @property
    def is_finished(self) -> bool:
        """Whether all its results are there."""
        return all(map(os.path.isfile, self.outputs))
