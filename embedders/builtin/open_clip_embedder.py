"""`OpenClipImageEmbedder`: any model of open_clip as an embedder. The only importer of open_clip."""

import difflib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from embedders.builtin.hub import describe_library_error, fetch_file
from embedders.builtin.light_torch import leave_out_compiler
from embedders.builtin.pixel_model import PixelModel
from embedders.builtin.pretrained import PretrainedImageEmbedder, require_library
from embedders.builtin.resize import Resize, check_growth, resize_jpeg
from embedders.errors import EmbedderError
from embedders.reading.pixels import decode_image

try:
    with leave_out_compiler():
        import open_clip
        from open_clip.transform import PreprocessCfg, image_transform_v2
except ImportError as error:
    open_clip = error

HUB, FOLDER = "hf-hub:", "local-dir:"
_CONFIG = ("open_clip_config.json",)
_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")


class OpenClipImageEmbedder(PretrainedImageEmbedder):
    """Embeds images with the image half of a model of open_clip, preprocessed as open_clip does.

    The vector lies in the space that images share with texts.

    Args:
        model_name: A name that open_clip knows, `hf-hub:organisation/name`, or `local-dir:FOLDER` with
            open_clip_config.json and the weights.
        pretrained: The weights of a name that open_clip knows: one of its tags, or a file. The others bring theirs.
        options: As in `PretrainedImageEmbedder`.

    Raises:
        EmbedderError: open_clip is not installed, or there is no such model.
    """

    def __init__(self, model_name: str, pretrained: str | None = None, **options: Any):
        require_library(open_clip, "open_clip", "open-clip")
        super().__init__(model_name, **options)
        self.pretrained = pretrained
        self._config = _find_config(model_name, pretrained)
        self._resize = _find_resize(self._config)
        # Without the last two, ToTensor and Normalize: the device does both.
        self._transforms = image_transform_v2(PreprocessCfg(**self._config), is_train=False).transforms[:-2]

    def load_embedding_model(self, device: str) -> PixelModel:
        """Load the model; a batch is uint8 of shape (n, 3, height, width), the vectors are float32 (n, D).

        Raises:
            EmbedderError: The weights cannot be had or do not fit.
        """
        name, weights = _find_weights(self.model_name, self.pretrained)
        try:
            model = open_clip.create_model(name, pretrained=weights, require_pretrained=True)
        except Exception as error:
            raise EmbedderError(
                f"open_clip cannot load {self.model_name!r} with weights {weights or 'of its folder'!r}: "
                f"{describe_library_error(error)}; expected weights that fit the model"
            ) from error
        mean, std = ([255 * value for value in self._config[name]] for name in ("mean", "std"))
        return PixelModel(
            ImageHalf(model).eval().to(device), mean, std, device, self.normalize_embeddings, self.autocast
        )

    def decode(self, encoded: bytes) -> torch.Tensor:
        """Turn one encoded image into uint8 of shape (3, height, width), resized and cropped as open_clip would.

        The common JPEG takes a third of the time of open_clip's own transform, and differs from it by 2 of 255 at
        most. Everything else is left to open_clip's own.
        """
        resized = resize_jpeg(encoded, self._resize) if self._resize else None
        if resized is not None:
            return resized
        image = decode_image(encoded, self.background, self._check_growth)
        for transform in self._transforms:
            image = transform(image)
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)

    def describe_preprocessing(self) -> dict:
        """Say, as JSON, what happens to an image before the model: open_clip's configuration of it."""
        return super().describe_preprocessing() | self._config

    def _check_growth(self, size: tuple[int, int]) -> None:
        if self._config["resize_mode"] == "shortest":
            check_growth(size, max(self._config["size"]))


class ImageHalf(torch.nn.Module):
    """The part of a model that embeds images; the weights of the other half stay where they are.

    Args:
        model: A model of open_clip.
    """

    def __init__(self, model: torch.nn.Module):
        super().__init__()
        self.visual = model.visual
        self._encode: Any = model.encode_image

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Embed a normalised batch."""
        return self._encode(pixels)


def _find_resize(config: dict[str, Any]) -> Resize | None:
    """Find the resize of open_clip's transform; `None` where it adds borders, or its size is no square."""
    height, width = config["size"]
    interpolation = "bilinear" if config["interpolation"] == "bilinear" else "bicubic"
    if config["resize_mode"] == "squash":
        return Resize((height, width), (height, width), interpolation)
    return (
        Resize(height, (height, width), interpolation)
        if (config["resize_mode"], height) == ("shortest", width)
        else None
    )


def _find_config(model_name: str, pretrained: str | None) -> dict[str, Any]:
    """Find how a model wants its images, without loading it."""
    if model_name.startswith((HUB, FOLDER)):
        if pretrained is not None:
            raise EmbedderError(f"pretrained {pretrained!r}: {model_name!r} brings its weights; leave pretrained out")
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
    """Find the configuration of a model that open_clip knows, and see that the weights are for it."""
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
    """Find the folder of a model: that of its configuration in the hub's cache, or the one that is named."""
    source, _, place = model_name.partition(":")
    if source == FOLDER[:-1]:
        return Path(place)
    return fetch_file(place, _CONFIG, f"{FOLDER}FOLDER").parent


def _find_weights(model_name: str, pretrained: str | None) -> tuple[str, str | None]:
    """Find the weights; return what `open_clip.create_model` is to take for the model and for its weights."""
    if model_name.startswith(FOLDER):
        return model_name, None
    if model_name.startswith(HUB):
        place = model_name.removeprefix(HUB)
        return f"{FOLDER}{fetch_file(place, _WEIGHTS, f'{FOLDER}FOLDER').parent}", None
    entry = open_clip.get_pretrained_cfg(model_name, pretrained)
    if not entry:
        return model_name, pretrained
    repository, _, file = entry.get("hf_hub", "").rpartition("/")
    if repository:
        return model_name, str(fetch_file(repository, (file,) if file else _WEIGHTS, f"{FOLDER}FOLDER"))
    try:
        return model_name, open_clip.download_pretrained(entry)
    except Exception as error:
        raise EmbedderError(
            f"pretrained {pretrained!r}: {entry['url']} cannot be fetched: {describe_library_error(error)}; fetch it "
            "elsewhere, and set pretrained to the file"
        ) from error
