"""`SeveralEmbedders`: several models in one reading of the images. Owns the row of bytes of all their pixels."""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch

from embedders.base import ImageEmbedder, decode_blank, uses_default_loader
from embedders.builtin.resize import share_pixels
from embedders.errors import EmbedderError
from embedders.job.locate import build_embedder
from embedders.job.weights import find_modules, load_model


class SeveralEmbedders(ImageEmbedder):
    """Embeds images with several embedders; the vectors of each are a column of their own.

    An image is read and decoded once, and resized once where the preprocessing of two is the same.

    Args:
        embedders: For each its `class` and `args`, as under `embedder` in config.yaml; `image_embedding_column` in
            `args` names its column.
        batch_size: Images in a batch, for all of them.
        num_threads_per_worker: Decoding threads; `None` uses all the threads of the job.

    Raises:
        EmbedderError: One of them cannot be built or has a loader of its own, or two have one column.
    """

    def __init__(
        self, embedders: Sequence[Mapping[str, Any]], batch_size: int = 64, num_threads_per_worker: int | None = None
    ):
        if not isinstance(embedders, Sequence) or not embedders or not all(map(_is_described, embedders)):
            raise EmbedderError(f"embedders {embedders!r}: expected a list of {{class: ..., args: {{...}}}}")
        self.embedders = [build_embedder(entry["class"], entry.get("args") or {}) for entry in embedders]
        self.batch_size = batch_size
        self.num_threads_per_worker = num_threads_per_worker
        self._layout: list[tuple[torch.Size, torch.dtype]] | None = None
        columns = [embedder.image_embedding_column for embedder in self.embedders]
        for embedder, column in zip(self.embedders, columns, strict=True):
            if columns.count(column) > 1:
                raise EmbedderError(
                    f"embedders: two of them write the column {column!r}; set image_embedding_column in the args of "
                    "each to a name of its own"
                )
            if not uses_default_loader(embedder) or embedder.classifiers:
                raise EmbedderError(
                    f"embedders: {embedder.model_name} has a loader or classifiers of its own; expected neither; "
                    "name classifiers under scores"
                )
        super().__init__(" + ".join(embedder.model_name for embedder in self.embedders), columns[0])
        self.metadata_fields = tuple(
            dict.fromkeys(field for embedder in self.embedders for field in embedder.metadata_fields)
        )
        self.notes = [note for embedder in self.embedders for note in embedder.notes]

    def decode(self, encoded: bytes, metadata: Mapping[str, Any] | None = None) -> torch.Tensor:
        """Decode one image to the pixels of each embedder, concatenated as bytes."""
        images = []
        with share_pixels():
            for embedder in self.embedders:
                decode: Callable[..., torch.Tensor] = embedder.decode
                image = decode(encoded, metadata) if embedder.metadata_fields else decode(encoded)
                images.append(image.contiguous())
        layout = [(image.shape, image.dtype) for image in images]
        self._layout = self._layout or layout
        if layout != self._layout:
            raise EmbedderError(f"{self.model_name}: preprocess gave {layout}, but {self._layout} before")
        return torch.cat([image.flatten().view(torch.uint8) for image in images])

    def load_embedding_model(self, device: str) -> "SeveralModels":
        """Load all the models; the callable returns the vectors of each by the name of its column."""
        if self._layout is None:  # it must be known before the first batch
            with suppress(Exception):  # a blank image may lack metadata that an embedder needs
                decode_blank(self)
        models = [load_model(embedder, "load_embedding_model", device)[0] for embedder in self.embedders]
        columns = [embedder.image_embedding_column for embedder in self.embedders]
        return SeveralModels(dict(zip(columns, models, strict=True)), self._split)

    def describe_preprocessing(self) -> dict[str, Any]:
        """Return, as values for JSON, what happens to an image before each model, by its column."""
        return {embedder.image_embedding_column: embedder.describe_preprocessing() for embedder in self.embedders}

    def _split(self, batch: torch.Tensor) -> list[torch.Tensor]:
        """Split a batch of bytes into one batch of pixels for each embedder."""
        batches, start = [], 0
        for shape, dtype in self._layout or ():
            size = math.prod(shape) * dtype.itemsize
            part = batch[:, start : start + size].clone(memory_format=torch.contiguous_format)
            batches.append(part.view(dtype).view(len(batch), *shape))
            start += size
        return batches


class SeveralModels:
    """Turns a batch of bytes into the vectors of each model, by its column.

    Args:
        models: By their columns.
        split: Splits a batch into one for each model.
    """

    def __init__(
        self, models: Mapping[str, Callable[[Any], torch.Tensor]], split: Callable[[torch.Tensor], list[torch.Tensor]]
    ):
        self.models = models
        self.split = split
        # Where a job looks for the weights.
        self.parts = torch.nn.ModuleList([module for model in models.values() for module in find_modules(model)])
        self.parts.training = False  # the list's own; each model keeps its mode, which `check` looks at

    def __call__(self, batch: torch.Tensor) -> dict[str, torch.Tensor]:
        columns: dict[str, Any] = {}
        for (column, model), pixels in zip(self.models.items(), self.split(batch), strict=True):
            output = model(pixels)
            named = output if isinstance(output, Mapping) else {column: output}
            for name, vectors in named.items():
                if name in columns:
                    raise EmbedderError(
                        f"embedders: two of them write the column {name!r}; set image_embedding_column, or "
                        "text_embedding_column, in the args of each to a name of its own"
                    )
                columns[name] = vectors
        return columns


def _is_described(entry: Any) -> bool:
    return isinstance(entry, Mapping) and "class" in entry and entry.keys() <= {"class", "args"}
