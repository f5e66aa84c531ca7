"""What the outputs of a run depend on besides the shards, according to the configuration."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from embedders.job.sources import describe_recipe, find_deciding_files
from embedders.output.provenance import SCHEMA_VERSION
from embedders.planning.config import name_scores

# The keys that change the output, besides the class and its arguments. The others only change how jobs run, or
# whether a shard fails.
DECIDING_KEYS = ("id_col", "metadata_columns", "image_suffix", "embedding_dtype")


def describe_recipes(config: Mapping[str, Any], hash_file: Callable[[Path], str]) -> dict[str, dict[str, Any]]:
    """Return the recipe of each kind of output by its folder: `embeddings`, `scores/{score}`.

    Raises:
        TarquetError: A class cannot be found.
    """
    embedder = config["embedder"]
    # Keys that are not set are left out, so that a key added by a later version does not embed anything again.
    options = {key: config[key] for key in DECIDING_KEYS if config[key] != ""}
    recipes = {"embeddings": describe_recipe(embedder["class"], embedder["args"], hash_file=hash_file, **options)}
    for name, score in name_scores(config["scores"]).items():
        recipes[f"scores/{name}"] = describe_recipe(score["class"], score["args"], "classifier", hash_file)
    # The version stands for the columns that the configuration does not choose.
    return {kind: recipe | {"schema_version": SCHEMA_VERSION} for kind, recipe in recipes.items()}


def find_files(config: Mapping[str, Any]) -> list[Path]:
    """Return the files that outputs depend on: those of the classes, and each that an argument names."""
    files = find_deciding_files(config["embedder"]["class"], config["embedder"]["args"])
    for score in name_scores(config["scores"]).values():
        files += find_deciding_files(score["class"], score["args"], "classifier")
    return files
