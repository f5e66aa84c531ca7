"""`ShardJob`: a shard, the paths of its results, and what their footers say beside what the job itself finds."""

import os
from dataclasses import dataclass, field
from typing import Any

from embedders.errors import ConfigError


@dataclass(frozen=True)
class ShardJob:
    """A shard, the paths of its results, and what their footers say beside what the job itself finds.

    Attributes:
        tar_path: The shard, a path or an address.
        parquet_path: File for the vectors; it appears complete or not at all.
        ledger_path: File for the failed samples, one row each; with `None` no file is written.
        name: Name of the shard, for the column `shard`; by default that of `parquet_path`, without folder and suffix.
        recipe: What decides the vectors beside the shard, if a run wants them.
        retried_sha256: For a retry, SHA-256 of the ledger that names the samples.

    Raises:
        ConfigError: Two of the paths are those of one file.
    """

    tar_path: str
    parquet_path: str
    ledger_path: str | None = None
    name: str = ""
    recipe: dict[str, Any] | None = field(default=None, compare=False)
    retried_sha256: str | None = None

    def __post_init__(self):
        paths = [self.tar_path, *self.outputs]
        if len(set(map(os.path.realpath, paths))) < len(paths):
            raise ConfigError(
                f"shard, output and ledger are {', '.join(map(repr, paths))}; expected different files, because one "
                "would replace another; change a path"
            )
        name = self.name or os.path.basename(self.parquet_path).removesuffix(".parquet")
        object.__setattr__(self, "name", name.encode("utf-8", "replace").decode())  # Parquet holds UTF-8 only

    @property
    def outputs(self) -> list[str]:
        """The paths of the results."""
        return [path for path in (self.parquet_path, self.ledger_path) if path is not None]

    @property
    def is_finished(self) -> bool:
        """Whether all results exist."""
        return all(map(os.path.isfile, self.outputs))
