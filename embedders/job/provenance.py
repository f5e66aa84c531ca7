"""Describes what vectors were made from, for the footer of their Parquet file: embedder, weights and shard."""

import inspect
import json
import platform
import sys
from pathlib import Path
from typing import Any

import PIL
import torch

from embedders import __version__
from embedders.base import ImageEmbedder
from embedders.classifier import ImageClassifier
from embedders.errors import EmbedderError, ShardError, describe_error
from embedders.output.hashes import hash_file
from embedders.output.provenance import ClassifierRecord, EmbedderRecord, FileRecord

# Whose versions decide the vectors, where they are used at all.
LIBRARIES = ("simplejpeg", "torchvision", "timm", "open_clip", "transformers")


def describe_embedder(embedder: ImageEmbedder, weights: str | None, device: str) -> EmbedderRecord:
    """Return the description of an embedder whose model is loaded.

    Args:
        embedder: The embedder.
        weights: Fingerprint of the model's weights, from `weights.hash_weights`.
        device: `"cuda"` or `"cpu"`.

    Raises:
        EmbedderError: Its preprocessing cannot be described.
    """
    versions = {"tarquet": __version__, "python": platform.python_version()}
    # Pillow, because 13 resizes tall images differently from 12.
    versions |= {"torch": torch.__version__, "pillow": PIL.__version__}
    loaded = {name: sys.modules.get(name) for name in LIBRARIES}
    versions |= {name: module.__version__ for name, module in loaded.items() if module}
    return EmbedderRecord(
        **_describe_recipe(embedder),
        model_name=embedder.model_name,
        source_sha256=hash_source(type(embedder)),
        weights_sha256=weights,
        preprocessing=_describe_preprocessing(embedder),
        notes=list(embedder.notes),
        # an embedder may use the GPU without torch; torch only knows the name if it was initialized
        device=torch.cuda.get_device_name() if device == "cuda" and torch.cuda.is_initialized() else device,
        versions=versions,
    )


def describe_classifier(classifier: ImageClassifier, weights: str | None) -> ClassifierRecord:
    """Return the description of a classifier whose model is loaded; `weights` comes from `weights.hash_weights`."""
    return ClassifierRecord(
        **_describe_recipe(classifier),
        model_name=classifier.model_name,
        pred_column=classifier.pred_column,
        source_sha256=hash_source(type(classifier)),
        weights_sha256=weights,
    )


def _describe_preprocessing(embedder: ImageEmbedder) -> dict[str, Any]:
    try:
        described = embedder.describe_preprocessing()
        json.dumps(described)
    except Exception as error:
        raise EmbedderError(
            f"{embedder.model_name}: describe_preprocessing: {describe_error(error)}; expected a dict of values for "
            "JSON; fix it, or leave it out"
        ) from error
    return described


def _describe_recipe(owner: ImageEmbedder | ImageClassifier) -> dict[str, Any]:
    recipe = owner.recipe or {"class": f"{type(owner).__module__}:{type(owner).__qualname__}", "args": None}
    return {"class_path": recipe["class"], "args": recipe["args"]}


def describe_shard(tar_path: str) -> FileRecord:
    """Return the path, hash and size of a shard.

    Raises:
        ShardError: The shard cannot be read.
    """
    try:
        return FileRecord(tar_path, hash_file(tar_path), Path(tar_path).stat().st_size)
    except OSError as error:
        raise ShardError(f"{tar_path!r}: cannot be read ({error.strerror}); expected a .tar file") from error


def hash_source(embedder_class: type) -> str | None:
    """Return the SHA-256 of the file that defines a class; `None` if there is no file (in a notebook)."""
    try:
        source = inspect.getsourcefile(embedder_class)
        return None if source is None else hash_file(source)
    except (TypeError, OSError):
        return None
