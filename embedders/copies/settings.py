"""What `near_copies` in config.yaml means, and how its work is divided among jobs. The Snakefile imports it."""

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from embedders.errors import ConfigError, ShardError

# A job takes so many shards, or more where there would be too many jobs: each that compares reads what every one has
# assigned.
SHARDS_PER_PART, MAX_PARTS = 16, 256


def check_settings(config: Mapping[str, Any]) -> None:
    """Check what the schema cannot say of `near_copies`.

    Raises:
        ConfigError: The largest picture is to be kept, and nothing says how large pictures are.
    """
    settings, columns = config["near_copies"], config["metadata_columns"]
    missing = [name for name in ("width", "height") if columns == "all" or name not in columns]
    if settings["cosine"] and settings["keep"] == "largest" and missing:
        raise ConfigError(
            f"near_copies: keep is 'largest', but metadata_columns has no {' and no '.join(missing)}; expected both, "
            "as {width: int64, height: int64}, from each sample's .json; add them, or set keep: first"
        )


def count_parts(shards: int) -> int:
    """Return the number of jobs that assign shards to clusters, and of those that compare within clusters."""
    return min(MAX_PARTS, -(-shards // SHARDS_PER_PART))


def choose_part(items: Sequence, part: int, parts: int) -> Sequence:
    """Return the items of one of so many parts, in order."""
    return items[part * len(items) // parts : (part + 1) * len(items) // parts]


def name_search(cosine: float, shards: Collection[str]) -> str:
    """Return a name for what a search leaves on its way, another one for another cosine or other shards."""
    return hashlib.sha256(json.dumps([cosine, list(shards)]).encode()).hexdigest()[:12]


def is_stale(path: str, settings: Mapping[str, Any], shards: Collection[str]) -> bool:
    """Return whether a list that is there was made by other settings, or of other shards."""
    # Here and not at the top: it brings pyarrow, which no other target needs.
    from embedders.output.near_copies import read_counts

    if not Path(path).is_file():
        return False  # Snakemake makes what is missing
    try:
        counts = read_counts(path)
    except ShardError:
        return True
    return settings != {"cosine": counts.cosine, "keep": counts.keep} or list(counts.rows) != list(shards)
