"""The settings `near_copies` of config.yaml, and how the work is divided among jobs. The Snakefile imports it."""

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from embedders.errors import ConfigError, ShardError

# The number of shards of an assign job, and the maximum number of jobs, because each compare job reads the outputs of
# all assign jobs.
SHARDS_PER_PART, MAX_PARTS = 16, 256


def check_settings(config: Mapping[str, Any]) -> None:
    """Check what the schema cannot express about `near_copies`.

    Raises:
        ConfigError: `keep` is `largest`, but the columns with the size of the images are missing.
    """
    settings, columns = config["near_copies"], config["metadata_columns"]
    missing = [name for name in ("width", "height") if columns == "all" or name not in columns]
    if settings["cosine"] and settings["keep"] == "largest" and missing:
        raise ConfigError(
            f"near_copies: keep is 'largest', but metadata_columns has no {' and no '.join(missing)}; expected both, "
            "as {width: int64, height: int64}, from each sample's .json; add them, or set keep: first"
        )


def count_parts(shards: int) -> int:
    """Return the number of assign jobs, which is also the number of compare jobs."""
    return min(MAX_PARTS, -(-shards // SHARDS_PER_PART))


def choose_part(items: Sequence, part: int, parts: int) -> Sequence:
    """Return the items of part number `part` of `parts`."""
    return items[part * len(items) // parts : (part + 1) * len(items) // parts]


def name_search(settings: Mapping[str, Any], shards: Collection[str]) -> str:
    """Return a name for the intermediate files of a search, different for each cosine, column and set of shards."""
    asked = [settings["cosine"], list(shards), *([settings["column"]] if settings["column"] else [])]
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:12]


def is_stale(path: str, settings: Mapping[str, Any], shards: Collection[str], made_from: str) -> bool:
    """Return whether an existing list was made with other settings or shards, or of other vectors.

    Args:
        path: The list.
        settings: `near_copies` of config.yaml.
        shards: Names of the shards of the run.
        made_from: Digest of what the present vectors were made from, as `Record.sign` returns it; empty if not known.
    """
    # Not at the top: it imports pyarrow, which no other target needs.
    from embedders.output.near_copies import read_counts

    if not Path(path).is_file():
        return False  # Snakemake makes what is missing
    try:
        counts = read_counts(path)
    except ShardError:
        return True
    made_by = {"cosine": counts.cosine, "keep": counts.keep, "column": counts.column}
    has_other_vectors = bool(made_from and counts.made_from) and counts.made_from != made_from
    return settings != made_by or list(counts.rows) != list(shards) or has_other_vectors


def is_search_stale(plan: str, made_from: str) -> bool:
    """Return whether the files of a search are those of other vectors than the present ones.

    Args:
        plan: Path of its plan.
        made_from: Digest of what the present vectors were made from, as `Record.sign` returns it.
    """
    import numpy as np  # not at the top, as above

    if not Path(plan).is_file():
        return False  # Snakemake makes what is missing
    with np.load(plan) as file:
        # A plan of an earlier version has none, and is believed.
        return "signature" in file and str(file["signature"]) != made_from
