"""Finds the outputs that a path means: a file, or those of a run's folder. Opens none; imports nothing heavy."""

import json
from pathlib import Path

from embedders.errors import ConfigError


def find_outputs(path: str) -> list[tuple[str, str | None]]:
    """Return the outputs that a path means: a file, the outputs of the run in a folder, or all outputs in a folder.

    Returns:
        Each output and its ledger; `None` if the path of the ledger must be read from the footer.

    Raises:
        ConfigError: There are none.
    """
    folder, shards_path = Path(path), Path(path, "run_shards.json")
    if folder.is_file():
        return [(path, None)]
    if not folder.is_dir():
        raise ConfigError(f"{path!r}: there is no such file or folder; expected an output of `embed`; check the path")
    if shards_path.is_file():
        shards = list(json.loads(shards_path.read_text()))
        retried = [shard for shard in shards if Path(folder, f"retried/embeddings/{shard}.parquet").is_file()]
        places = [(folder, shard) for shard in shards] + [(folder / "retried", shard) for shard in retried]
        return [(f"{place}/embeddings/{shard}.parquet", f"{place}/ledger/{shard}.parquet") for place, shard in places]
    found: list[tuple[str, str | None]] = [(str(file), None) for file in sorted(folder.rglob("*.parquet"))]
    if not found:
        raise ConfigError(f"{path!r}: there is no output in this folder; expected the output_dir of a run")
    return found
