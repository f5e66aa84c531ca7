"""What open_clip knows about a model before it is loaded: preprocessing, weights and tokenizer."""

import difflib
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from embedders.builtin.hub import FOLDER, HUB, describe_library_error, fetch_file
from embedders.builtin.light_torch import leave_out_compiler
from embedders.builtin.resize import Resize
from embedders.errors import EmbedderError

try:
    with leave_out_compiler():
        import open_clip
        from open_clip.transform import PreprocessCfg
except ImportError as error:
    open_clip = error

_CONFIG = ("open_clip_config.json",)
_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")


def find_resize(config: dict[str, Any]) -> Resize | None:
    """Return the resize of open_clip's transform; `None` if it adds borders, or is not square."""
    height, width = config["size"]
    interpolation = "bilinear" if config["interpolation"] == "bilinear" else "bicubic"
    if config["resize_mode"] == "squash":
        return Resize((height, width), (height, width), interpolation)
    if config["resize_mode"] == "shortest" and height == width:
        return Resize(height, (height, width), interpolation)
    return None


def find_config(model_name: str, pretrained: str | None) -> dict[str, Any]:
    """Return how open_clip prepares the images of a model, without loading it.

    Raises:
        EmbedderError: There is no such model, or it does not have these weights.
    """
    if model_name.startswith((HUB, FOLDER)):
        if pretrained is not None:
            raise EmbedderError(
                f"pretrained {pretrained!r}: {model_name!r} includes its weights; leave pretrained out"
            )
        path = _find_folder(model_name) / _CONFIG[0]
        try:
            settings = json.loads(path.read_text(encoding="utf-8"))
            model, preprocessing = settings["model_cfg"], settings.get("preprocess_cfg", {})
        except (OSError, ValueError, KeyError, AttributeError) as error:
            raise EmbedderError(
                f"model_name {model_name!r}: {str(path)!r} cannot be used: {describe_library_error(error)}; expected "
                "the file of that name that open_clip saves with a model, with a 'model_cfg'"
            ) from error
    else:
        model = _find_known(model_name, pretrained)
        preprocessing = open_clip.get_pretrained_cfg(model_name, pretrained)
    size = model["vision_cfg"].get("image_size", 224)
    preprocessing = {
        name: value
        for name, value in preprocessing.items()
        if name in PreprocessCfg.__dataclass_fields__ and value is not None
    }
    config = asdict(PreprocessCfg(**preprocessing | {"size": size}))
    for name in ("size", "mean", "std"):
        value = config[name]
        config[name] = tuple(value) if isinstance(value, list | tuple) else (value,) * (2 if name == "size" else 3)
    return config


def _find_known(model_name: str, pretrained: str | None) -> dict[str, Any]:
    """Return the configuration of a model that open_clip knows, after checking that the weights are for it."""
    model = open_clip.get_model_config(model_name)
    if model is None:
        near = ", ".join(difflib.get_close_matches(model_name, open_clip.list_models(), 3)) or "none"
        raise EmbedderError(
            f"open_clip has no model {model_name!r}; near names: {near}; of the hub: {HUB}organisation/name; a "
            f"folder: {FOLDER}FOLDER"
        )
    tags = open_clip.list_pretrained_tags_by_model(model_name)
    if pretrained is None or not (pretrained in tags or Path(pretrained).is_file()):
        raise EmbedderError(
            f"pretrained {pretrained!r}: {model_name!r} needs weights; expected a file, or one of open_clip's tags: "
            f"{', '.join(tags) or 'none'}"
        )
    is_quick = bool(model.get("quick_gelu"))
    was_quick = bool(open_clip.get_pretrained_cfg(model_name, pretrained).get("quick_gelu", is_quick))
    other = f"{model_name}-quickgelu" if was_quick else model_name.removesuffix("-quickgelu")
    if was_quick != is_quick and other in open_clip.list_models():
        raise EmbedderError(
            f"pretrained {pretrained!r} was trained {'with' if was_quick else 'without'} QuickGELU, and the vectors "
            f"of {model_name!r} would be wrong; set model_name: {other}"
        )
    return model


def _find_folder(model_name: str) -> Path:
    """Return the folder of a model: the named one, or that of its configuration in the hub's cache."""
    source, _, place = model_name.partition(":")
    if source == FOLDER[:-1]:
        return Path(place)
    return fetch_file(place, _CONFIG).parent


def find_tokenizer(model_name: str) -> Callable[[str], torch.Tensor]:
    """Return the function that turns a text into the tokens of a model.

    Raises:
        EmbedderError: It cannot be loaded.
    """
    try:
        if model_name.startswith(HUB):
            folder = _find_folder(model_name)
            text = json.loads((folder / _CONFIG[0]).read_text(encoding="utf-8"))["model_cfg"].get("text_cfg", {})
            if not text.get("hf_tokenizer_name"):  # open_clip's own, which needs no file of the hub
                return open_clip.get_tokenizer(f"{FOLDER}{folder}")
        return open_clip.get_tokenizer(model_name)
    except Exception as error:
        raise EmbedderError(
            f"with_text: the tokenizer of {model_name!r} cannot be loaded: {describe_library_error(error)}; expected "
            "it on the hub, in its cache or in the model's folder; copy the folder with the tokenizer's files"
        ) from error


def find_weights(model_name: str, pretrained: str | None) -> tuple[str, str | None]:
    """Fetch the weights of a model; return the model and the weights as `open_clip.create_model` takes them."""
    if model_name.startswith(FOLDER):
        return model_name, None
    if model_name.startswith(HUB):
        place = model_name.removeprefix(HUB)
        return f"{FOLDER}{fetch_file(place, _WEIGHTS).parent}", None
    entry = open_clip.get_pretrained_cfg(model_name, pretrained)
    if not entry:
        return model_name, pretrained
    repository, _, file = entry.get("hf_hub", "").rpartition("/")
    if repository:
        return model_name, str(fetch_file(repository, (file,) if file else _WEIGHTS))
    try:
        return model_name, open_clip.download_pretrained(entry)
    except Exception as error:
        raise EmbedderError(
            f"pretrained {pretrained!r}: {entry['url']} cannot be fetched: {describe_library_error(error)}; fetch it "
            "elsewhere, and set pretrained to the file"
        ) from error
