"""The timm model of a name, and how its images are prepared. Reads a model's entry, not its weights."""

import difflib
from collections.abc import Mapping
from typing import Any

import torch

from embedders.builtin.hub import FOLDER, HUB, advise_download, describe_library_error
from embedders.builtin.light_torch import leave_out_compiler
from embedders.errors import EmbedderError

with leave_out_compiler():
    import timm
    from timm.data import resolve_data_config
    from timm.models import PretrainedCfg
    from timm.models._hub import load_model_config_from_hf, load_model_config_from_path


def find_entry(model_name: str) -> tuple[PretrainedCfg, dict[str, Any]]:
    """Find the entry of a model in timm, on the Hugging Face hub or in a folder.

    Returns:
        timm's entry, and the arguments of `timm.create_model` that were saved with the model.

    Raises:
        EmbedderError: There is no such model, or its config.json cannot be read.
    """
    source, separator, place = model_name.partition(":")
    if not separator:
        return _find_registered(model_name), {}
    try:
        if source.replace("_", "-") == HUB[:-1]:
            fields, architecture, args = load_model_config_from_hf(place)
        elif source == FOLDER[:-1]:
            fields, architecture, args = load_model_config_from_path(place)
        else:
            raise EmbedderError(f"model_name {model_name!r}: expected timm's name, {HUB}org/name or {FOLDER}/folder")
    except EmbedderError:
        raise
    except Exception as error:
        advice = "expected a folder with the config.json and the weights of a model of timm"
        if source != FOLDER[:-1]:
            advice = advise_download(place, f"{FOLDER}FOLDER")
        raise EmbedderError(
            f"model_name {model_name!r}: its config.json cannot be read: {describe_library_error(error)}; {advice}"
        ) from error
    if not timm.is_model(architecture):
        raise EmbedderError(
            f"model_name {model_name!r}: timm {timm.__version__} has no architecture {architecture!r}; near names: "
            f"{_list_near_names(architecture)}; a newer timm may have it"
        )
    known = {name: value for name, value in fields.items() if name in PretrainedCfg.__dataclass_fields__}
    return PretrainedCfg(**known | {"architecture": architecture}), args or {}


def find_notes(entry: PretrainedCfg, model_name: str, args: Mapping[str, Any]) -> list[str]:
    """Return timm's notes on a model that its users should know."""
    name = f"{entry.architecture}.{entry.tag}" if entry.tag else str(entry.architecture)
    registered = timm.get_pretrained_cfg(name) if timm.is_model_pretrained(name) else None
    notes = [note for note in (registered or entry).notes or () if not note.startswith("Converted from")]
    if "quickgelu" in name or str(args.get("act_layer")).replace("_", "") == "quickgelu":
        notes = [note for note in notes if "quickgelu" not in note.lower()]
    other = name.replace("_clip_", "_clip_quickgelu_")
    hint = f"; that is {other}" if "quickgelu" not in name and timm.is_model_pretrained(other) else ""
    return [f"timm notes of {model_name}: {note}{hint if 'quickgelu' in note.lower() else ''}" for note in notes]


def resolve_layers(args: Mapping[str, Any]) -> dict[str, Any]:
    """Replace the class name of a layer, such as `SwiGLUPacked` or `torch.nn.SiLU`, by the class.

    Names that timm resolves itself, such as `gelu_tanh`, stay.
    """
    resolved = dict(args)
    for name, value in args.items():
        if name.endswith("_layer") and isinstance(value, str):
            class_name = value.rpartition(".")[2]
            found = getattr(timm.layers, class_name, None) or getattr(torch.nn, class_name, None)
            # A partial of a class, as SwiGLUPacked is, has the name of one too.
            resolved[name] = found if callable(found) and class_name[0].isupper() else value
    return resolved


def resolve_config(entry: PretrainedCfg, args: Mapping[str, Any]) -> dict[str, Any]:
    """Resolve timm's data configuration of a model: size and channels follow the arguments that it is made with.

    Raises:
        EmbedderError: Images of this size or these channels cannot be made.
    """
    config = resolve_data_config(pretrained_cfg=entry.to_dict(), use_test_size=True)
    channels, *sides = config["input_size"]
    if args.get("img_size") is not None:
        size = args["img_size"]
        sides = list(size) if isinstance(size, list | tuple) else [size, size]
        if len(sides) != 2 or not all(type(side) is int and side > 0 for side in sides):
            raise EmbedderError(f"model_args: img_size is {size!r}; expected a number of pixels, or [height, width]")
    channels = args.get("in_chans", channels)
    if channels not in (1, 3):
        raise EmbedderError(f"model_args: in_chans is {channels!r}; expected 3 (RGB) or 1 (grey)")
    config["input_size"] = (channels, *sides)
    for name in ("mean", "std"):
        if len(config[name]) != channels:  # as timm's own loader does it
            config[name] = (sum(config[name]) / len(config[name]),) * channels
    return config


def _find_registered(model_name: str) -> PretrainedCfg:
    name, _, tag = model_name.partition(".")
    if not timm.is_model(name):
        hint = f"; of the hub: {HUB}{model_name}; a folder: {FOLDER}{model_name}" if "/" in model_name else ""
        raise EmbedderError(f"timm has no model {name!r}; near names: {_list_near_names(name)}{hint}")
    try:
        # a few architectures have no weights, so no entry: they get timm's defaults
        return timm.get_pretrained_cfg(model_name) or PretrainedCfg(architecture=name)
    except RuntimeError as error:
        tags = ", ".join(timm.list_pretrained(f"{name}.*"))
        raise EmbedderError(f"timm has no weights {tag!r} for {name!r}; it has: {tags or 'none'}") from error


def _list_near_names(name: str) -> str:
    return ", ".join(difflib.get_close_matches(name, timm.list_models(), 3)) or "none"
