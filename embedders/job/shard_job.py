"""`ShardJob`: a shard and the paths of its results."""

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class ShardJob:
    """A shard and the paths of its results.

    Attributes:
        tar_path: The shard, a path or an address.
        parquet_path: File for the vectors; it appears complete or not at all.
        ledger_path: File for the failed samples, one row each; with `None` no file is written.
    """

    tar_path: str
    parquet_path: str
    ledger_path: str | None = None

    @property
    def outputs(self) -> list[str]:
        """The paths of the results."""
        return [path for path in (self.parquet_path, self.ledger_path) if path is not None]

    @property
    def is_finished(self) -> bool:
        """Whether all results exist."""
        return all(map(os.path.isfile, self.outputs))
