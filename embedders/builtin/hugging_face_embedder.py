"""`HuggingFaceImageEmbedder`: a vision model of transformers as an embedder. The only importer of transformers."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from embedders.builtin.hub import advise_download, describe_library_error
from embedders.builtin.light_torch import leave_out_compiler
from embedders.builtin.pixel_model import PixelModel
from embedders.builtin.pretrained import PretrainedImageEmbedder, require_library, require_pool
from embedders.builtin.resize import Resize, check_growth, resize_any
from embedders.errors import EmbedderError
from embedders.reading.pixels import decode_image

transformers: Any
try:
    with leave_out_compiler():
        import transformers
except ImportError as error:
    transformers = error

# By Pillow's numbers, which a processor's configuration has.
_INTERPOLATIONS = {2: "bilinear", 3: "bicubic"}
# Height and width of the images with which the fast way is compared.
_TRIED = ((61, 97), (97, 61), (150, 40), (40, 150), (33, 32))


class HuggingFaceImageEmbedder(PretrainedImageEmbedder):
    """Embeds images with a vision model of transformers, preprocessed by the model's own image processor.

    Args:
        model_name: A name on the Hugging Face hub, `organisation/name`, or the path of a folder.
        pool: How the vector is made. `head`: by the model itself, which returns the vector in the space shared with
            texts (CLIP, SigLIP) or its pooled output; `cls`: from the class token; `mean`: from the mean of the
            patches; `cls+mean`: from both, concatenated. `tokens` keeps all the tokens, a vector for each.
        options: As in `PretrainedImageEmbedder`.

    Raises:
        EmbedderError: transformers is not installed, or there is no such model.
    """

    def __init__(self, model_name: str, pool: str = "head", **options: Any):
        require_library(transformers, "transformers", "transformers")
        super().__init__(model_name, **options)
        require_pool(pool)
        self.pool = pool
        # First, because transformers asks the hub for three files before it says that there is no processor.
        self._load(transformers.AutoConfig)
        self._processor = self._load(transformers.AutoImageProcessor)
        self._config = json.loads(self._processor.to_json_string())
        self._mean, self._std = _find_normalization(self._config)
        self._resize = self._find_fast_way()

    def load_embedding_model(self, device: str) -> PixelModel:
        """Load the model; the vectors are float32 (n, D), or (n, tokens, D).

        Raises:
            EmbedderError: The weights cannot be loaded or do not fit.
        """
        transformers.utils.logging.disable_progress_bar()  # the log of a job is a file
        model, report = self._load(transformers.AutoModel, output_loading_info=True)
        missing = sorted(report["missing_keys"])
        if self.pool != "head":
            missing = [name for name in missing if not _is_pooler(name)]
        if missing:
            is_pooler = all(map(_is_pooler, missing))
            fix = "set pool: cls or pool: mean" if is_pooler else "give weights of this model"
            raise EmbedderError(
                f"{self.model_name!r} has no weights for {len(missing)} parts of its {type(model).__name__}, such as "
                f"{missing[0]!r}: they would be random; {fix}"
            )
        model = PooledModel(model.float(), self.pool, self.model_name).eval().to(device)
        scale = (self._mean, self._std) if self._resize else ([0.0], [1.0])
        return PixelModel(model, *scale, device, self.normalize_embeddings, self.autocast)

    def decode(self, encoded: bytes) -> torch.Tensor:
        """Decode one image and preprocess it as the model's image processor does.

        Returns:
            uint8 of shape (3, height, width), which is normalized on the device, if the processor resizes and crops
            as most do; otherwise the processor's own output.
        """
        if self._resize is None:
            image = decode_image(encoded, self.background, self._check_growth)
            return self._processor(images=image, return_tensors="pt")["pixel_values"][0]
        return resize_any(encoded, self.background, self._resize)

    def describe_preprocessing(self) -> dict:
        """Return, as values for JSON, what happens to an image before the model: the processor's configuration."""
        return super().describe_preprocessing() | self._config

    def _load(self, loader: Any, **options: Any) -> Any:
        """Load a part of the model: from its folder or the hub's cache, which needs no network; else from the hub."""
        with suppress(Exception):
            return loader.from_pretrained(self.model_name, local_files_only=True, **options)
        try:
            return loader.from_pretrained(self.model_name, **options)
        except Exception as error:
            if Path(self.model_name).exists():
                advice = "expected a folder with config.json, preprocessor_config.json and weights, as the hub has it"
            elif self.model_name.startswith(("/", "./", "../", "~")):
                advice = "there is no such folder; expected its path, without ~"
            else:
                advice = "expected a name on the hub or a folder; " + advise_download(self.model_name, "FOLDER")
            raise EmbedderError(
                f"model_name {self.model_name!r} cannot be loaded: {describe_library_error(error)}; {advice}"
            ) from error

    def _find_fast_way(self) -> Resize | None:
        """Return the resize and crop that give the processor's pixels; `None` if it does anything else."""
        size, crop = self._config.get("size") or {}, self._config.get("crop_size") or {}
        interpolation = _INTERPOLATIONS.get(self._config.get("resample"))
        crops = self._config.get("do_center_crop")
        if interpolation is None or not self._config.get("do_resize"):
            return None
        if crops and size.keys() == {"shortest_edge"} and min(crop.values(), default=0) <= size["shortest_edge"]:
            resize = Resize(size["shortest_edge"], (crop["height"], crop["width"]), interpolation, int)
        elif size.keys() == {"height", "width"} and not crops:
            resize = Resize((size["height"], size["width"]), (size["height"], size["width"]), interpolation)
        else:
            return None
        return resize if all(self._equals_processor(resize, *sides) for sides in _TRIED) else None

    def _equals_processor(self, resize: Resize, height: int, width: int) -> bool:
        """Return whether a resize of noise gives the pixels of the processor, up to a difference of 1 of 255."""
        pixels = torch.randint(256, (3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        expected = self._processor(images=pixels, return_tensors="pt")["pixel_values"][0]
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (self._mean, self._std))
        found = resize(pixels)
        return found.shape == expected.shape and bool(((expected * std + mean - found).abs() < 1.01).all())

    def _check_growth(self, size: tuple[int, int]) -> None:
        short_side = (self._config.get("size") or {}).get("shortest_edge")
        if short_side:
            check_growth(size, short_side)


class PooledModel(torch.nn.Module):
    """A model whose output is one vector per image, or a vector for each token.

    Args:
        model: A model of transformers.
        pool: One of `pretrained.POOLS`.
        name: The model's name, for messages.
    """

    def __init__(self, model: torch.nn.Module, pool: str, name: str):
        super().__init__()
        self.pool = pool
        self._name = name
        if hasattr(model, "text_model"):
            del model.text_model  # it takes half of the memory and is not used
        self.model: Any = model if pool == "head" else getattr(model, "vision_model", model)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Embed a normalized batch."""
        if self.pool != "head":
            return self._pool_tokens(pixels)
        is_shared = hasattr(self.model, "get_image_features")
        output = (self.model.get_image_features if is_shared else self.model)(pixel_values=pixels)
        vectors = output if isinstance(output, torch.Tensor) else getattr(output, "pooler_output", None)
        if vectors is None:
            raise EmbedderError(f"pool 'head': {self._name!r} has no pooled output; expected 'cls' or 'mean'")
        return vectors.flatten(1)

    def _pool_tokens(self, pixels: torch.Tensor) -> torch.Tensor:
        features = self.model(pixel_values=pixels).last_hidden_state
        if features.ndim == 4:  # of a convolutional network
            features = features.flatten(2).transpose(1, 2)
            prefix = 0
        else:
            patch = self.model.config.patch_size
            # The class token and registers, which come before the patches and are not parts of the image.
            prefix = features.shape[1] - (pixels.shape[2] // patch) * (pixels.shape[3] // patch)
        if self.pool == "tokens":
            return features
        if "cls" in self.pool and prefix == 0:
            raise EmbedderError(f"pool {self.pool!r}: {self._name!r} has no class token; expected 'head' or 'mean'")
        parts = {"cls": features[:, 0], "mean": features[:, prefix:].mean(1)}
        return torch.cat([parts[part] for part in self.pool.split("+")], dim=1)


def _is_pooler(weight: str) -> bool:
    return "pooler" in weight.split(".")


def _find_normalization(config: dict[str, Any]) -> tuple[list[float], list[float]]:
    """Return what to subtract from pixels of 0 to 255, and what to divide them by then."""
    factor = config["rescale_factor"] if config.get("do_rescale") else 1.0
    mean, std = [0.0] * 3, [1.0] * 3
    if config.get("do_normalize"):
        mean, std = config["image_mean"], config["image_std"]
    return [value / factor for value in mean], [value / factor for value in std]
