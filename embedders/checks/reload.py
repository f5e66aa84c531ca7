"""Loads the models again that outputs were made with, as their footers name them."""

import json
from dataclasses import dataclass
from typing import Any

from embedders.base import ImageEmbedder
from embedders.job.locate import build_embedder
from embedders.job.model import Model
from embedders.job.provenance import describe_embedder
from embedders.output.provenance import EmbedderRecord


@dataclass(frozen=True)
class Reloaded:
    """A model of today, loaded with the class and the arguments in a footer.

    Attributes:
        embedder: The embedder.
        model: Its model.
        record: What a footer would say of it, as JSON.
    """

    embedder: ImageEmbedder
    model: Model
    record: dict[str, Any]


class Reloader:
    """Loads the models of outputs, one after the other. Outputs of one model that follow each other share it.

    Args:
        device: `"cuda"` or `"cpu"`.
    """

    def __init__(self, device: str):
        self.device = device
        self._key = ""
        self._last: Reloaded | None = None

    def load(self, made: EmbedderRecord, dtype: str) -> Reloaded:
        """Load the model of an output.

        Args:
            made: What its footer says of the embedder, with arguments.
            dtype: The type of its vectors: `float32`, `float16` or `int8`.

        Raises:
            EmbedderError: The class or the model cannot be loaded any more.
            GpuError: The GPU is lost or out of memory.
        """
        key = json.dumps([made.class_path, made.args, dtype], sort_keys=True)
        if self._last is None or key != self._key:
            self._last = None  # frees its memory before the next one is loaded
            embedder = build_embedder(made.class_path, made.args or {})
            model = Model(embedder, self.device, dtype)
            # By JSON, as a footer is, so that a tuple equals the list that is read.
            record = json.loads(json.dumps(describe_embedder(embedder, model.weights, self.device).as_json()))
            self._key, self._last = key, Reloaded(embedder, model, record)
        return self._last
