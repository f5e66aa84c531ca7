"""`OpenClipImageEmbedder`: any model of open_clip as an embedder, for images and, if asked, their captions."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from embedders.builtin.captions import CaptionedModel, Captions
from embedders.builtin.hub import describe_library_error
from embedders.builtin.open_clip_source import find_config, find_resize, find_tokenizer, find_weights, open_clip
from embedders.builtin.pixel_model import PixelModel
from embedders.builtin.pretrained import PretrainedImageEmbedder, require_flags, require_library
from embedders.builtin.resize import check_growth, resize_jpeg
from embedders.errors import EmbedderError
from embedders.reading.pixels import decode_image


class OpenClipImageEmbedder(PretrainedImageEmbedder):
    """Embeds images with the image half of a model of open_clip, preprocessed as open_clip does.

    The vector lies in the space that images share with texts.

    Args:
        model_name: A name that open_clip knows, `hf-hub:organisation/name`, or `local-dir:FOLDER` with
            open_clip_config.json and the weights.
        pretrained: The weights of a name that open_clip knows: one of its tags, or a file. Other models have theirs.
        with_text: Whether the vector of each image's caption becomes a second column.
        text_field: The metadata field of the caption; `caption` is the sample's `.txt` or that field of its `.json`.
        text_embedding_column: Name of the column of the captions' vectors.
        options: As in `PretrainedImageEmbedder`.

    Raises:
        EmbedderError: open_clip is not installed, there is no such model, or its tokenizer cannot be loaded.
    """

    def __init__(
        self,
        model_name: str,
        pretrained: str | None = None,
        with_text: bool = False,
        text_field: str = "caption",
        text_embedding_column: str = "text_embedding",
        **options: Any,
    ):
        require_library(open_clip, "open_clip", "open-clip")
        super().__init__(model_name, **options)
        require_flags(with_text=with_text)
        self.pretrained = pretrained
        self._config = find_config(model_name, pretrained)
        self._resize = find_resize(self._config)
        self.text_embedding_column = text_embedding_column
        if with_text and text_embedding_column == self.image_embedding_column:
            raise EmbedderError(
                f"text_embedding_column {text_embedding_column!r}: that is the column of the images; expected another"
            )
        self._captions = Captions(text_field, find_tokenizer(model_name)) if with_text else None
        self.metadata_fields = (text_field,) if with_text else ()
        # Without the last two, ToTensor and Normalize: the device does both.
        self._transforms = _list_transforms(self._config)[:-2]

    def load_embedding_model(self, device: str) -> PixelModel | CaptionedModel:
        """Load the model; a batch is uint8 of shape (n, 3, height, width), the vectors are float32 (n, D).

        With captions, a batch is uint8 of shape (n, bytes), and the vectors are those of images and of captions.

        Raises:
            EmbedderError: The weights cannot be loaded or do not fit.
        """
        name, weights = find_weights(self.model_name, self.pretrained)
        try:
            model = open_clip.create_model(name, pretrained=weights, require_pretrained=True)
        except Exception as error:
            raise EmbedderError(
                f"open_clip cannot load {self.model_name!r} with weights {weights or 'of its folder'!r}: "
                f"{describe_library_error(error)}; expected weights that fit the model"
            ) from error
        mean, std = ([255 * value for value in self._config[name]] for name in ("mean", "std"))
        if self._captions:
            model = model.eval().to(device)
        half = ImageHalf(model).eval().to(device)
        images = PixelModel(half, mean, std, device, self.normalize_embeddings, self.autocast)
        if not self._captions:
            return images
        shape, columns = (3, *self._config["size"]), (self.image_embedding_column, self.text_embedding_column)
        return CaptionedModel(images, model, model.encode_text, shape, columns)

    def decode(self, encoded: bytes, metadata: Mapping[str, Any] | None = None) -> torch.Tensor:
        """Decode one image to uint8 of shape (3, height, width), resized and cropped as open_clip does.

        With captions, the pixels and the tokens of the caption become one row of bytes.

        A common JPEG takes a third of the time of open_clip's own transform, and the pixels differ from it by at most
        2 of 255. Other images go through open_clip's own.
        """
        if self._captions:
            tokens = self._captions.read(metadata or {})
            return torch.cat([self._decode_image(encoded).flatten(), tokens])
        return self._decode_image(encoded)

    def _decode_image(self, encoded: bytes) -> torch.Tensor:
        resized = resize_jpeg(encoded, self._resize) if self._resize else None
        if resized is not None:
            return resized
        image = decode_image(encoded, self.background, self._check_growth)
        for transform in self._transforms:
            image = transform(image)
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)

    def describe_preprocessing(self) -> dict:
        """Return, as values for JSON, what happens to an image before the model: open_clip's configuration of it."""
        return super().describe_preprocessing() | self._config

    def _check_growth(self, size: tuple[int, int]) -> None:
        if self._config["resize_mode"] == "shortest":
            check_growth(size, max(self._config["size"]))


class ImageHalf(torch.nn.Module):
    """The half of a model that embeds images; the weights of the other half stay on the CPU.

    Args:
        model: A model of open_clip.
    """

    def __init__(self, model: torch.nn.Module):
        super().__init__()
        self.visual = model.visual
        self._encode: Any = model.encode_image

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Embed a normalized batch."""
        return self._encode(pixels)


def _list_transforms(config: Mapping[str, Any]) -> list[Any]:
    """Return the steps of open_clip's own preprocessing."""
    preprocessing = open_clip.transform.PreprocessCfg(**config)
    return open_clip.transform.image_transform_v2(preprocessing, is_train=False).transforms
