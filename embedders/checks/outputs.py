"""Finds the outputs that a path means: a file, or those of a run's folder. Opens none; imports nothing heavy."""

import json
from dataclasses import dataclass
from pathlib import Path

from embedders.errors import ConfigError
from embedders.reading.remote import is_remote


@dataclass(frozen=True)
class FoundOutput:
    """An output, and where the files are that it is compared with.

    Attributes:
        path: The output.
        ledger: Path of its ledger; `None` if it must be read from the footer.
        shard: Path or address of its shard, as the last run of the folder named it; `None` as for the ledger, also if
            it is not there.
    """

    path: str
    ledger: str | None = None
    shard: str | None = None


def find_outputs(path: str) -> list[FoundOutput]:
    """Return the outputs that a path means: a file, the outputs of the run in a folder, or all outputs in a folder.

    Raises:
        ConfigError: There are none, or the list of the run's shards cannot be read.
    """
    folder, shards_path = Path(path), Path(path, "run_shards.json")
    if folder.is_file():
        return [FoundOutput(path)]
    if not folder.is_dir():
        raise ConfigError(f"{path!r}: there is no such file or folder; expected an output of `embed`; check the path")
    if shards_path.is_file():
        try:
            shards = json.loads(shards_path.read_text())
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"{str(shards_path)!r} cannot be read ({error}); expected the file that a run writes when it starts; "
                "run snakemake"
            ) from error
        retried = [shard for shard in shards if Path(folder, f"retried/embeddings/{shard}.parquet").is_file()]
        places = [(folder, shard) for shard in shards] + [(folder / "retried", shard) for shard in retried]
        there = {shard: path for shard, path in shards.items() if is_remote(path) or Path(path).is_file()}
        return [
            FoundOutput(f"{place}/embeddings/{shard}.parquet", f"{place}/ledger/{shard}.parquet", there.get(shard))
            for place, shard in places
        ]
    found = [FoundOutput(str(file)) for file in sorted(folder.rglob("*.parquet"))]
    if not found:
        raise ConfigError(f"{path!r}: there is no output in this folder; expected the output_dir of a run")
    return found
