"""The command lines of jobs: options of `python -m embedders embed` and `score` from the configuration."""

import json
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any

from embedders.gpu.terms import Terms
from embedders.planning.recipes import DECIDING_KEYS


def write_shards(shards: Iterable[tuple[str, str, str]], addition: str | None = None) -> str:
    """Return shards and the paths of their results as arguments of `embed`.

    Args:
        shards: For each shard, its path or address, the Parquet file for the vectors, and the one for failed samples.
        addition: Name of the job's part of the record.
    """
    (path, embeddings, ledger), *others = shards
    arguments = [path, embeddings, "--ledger", ledger]
    arguments += ["--addition", addition] if addition else []
    return shlex.join([*arguments, *(argument for paths in others for argument in ("--also", *paths))])


def write_embed_options(config: Mapping[str, Any], folder: str, recipe: Mapping[str, Any]) -> str:
    """Return the embedder and all that its vectors depend on as options of `embed`."""
    options = [
        f"--embedder={config['embedder']['class']}",
        f"--embedder-args={json.dumps(config['embedder']['args'])}",
        f"--record={folder}",
        f"--recipe={json.dumps(recipe)}",
        f"--max-failed-fraction={config['max_failed_fraction']}",
    ]
    for key in DECIDING_KEYS:
        value = json.dumps(config[key]) if key == "metadata_columns" else config[key]
        options.append(f"--{key.replace('_', '-')}={value}")
    options += ["--accept-damaged-shards"] if config["accept_damaged_shards"] else []
    return f"{shlex.join(options)} {write_device_options(config)}"


def write_score_options(
    config: Mapping[str, Any], score: Mapping[str, Any], folder: str, recipe: Mapping[str, Any]
) -> str:
    """Return the classifier and all that its scores depend on as options of `score`."""
    options = [
        f"--classifier={score['class']}",
        f"--classifier-args={json.dumps(score['args'])}",
        f"--record={folder}",
        f"--recipe={json.dumps(recipe)}",
    ]
    return f"{shlex.join(options)} {write_device_options(config)}"


def write_device_options(config: Mapping[str, Any]) -> str:
    """Return the device settings as options of `embed`, `score` and `near-copies`."""
    names = ["device", *(field.name for field in fields(Terms))]
    return shlex.join(f"--{name.replace('_', '-')}={config[name]}" for name in names)
