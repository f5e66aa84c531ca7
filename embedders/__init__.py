"""Tarquet: embed the images of WebDataset tar shards into Parquet files.

The names below are imported on first use, so that `python -m embedders` starts without torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what an editor and a type checker see
    from embedders.base import ImageEmbedder
    from embedders.builtin.hugging_face_embedder import HuggingFaceImageEmbedder
    from embedders.builtin.laion import AestheticClassifier, NsfwClassifier
    from embedders.builtin.open_clip_embedder import OpenClipImageEmbedder
    from embedders.builtin.several import SeveralEmbedders
    from embedders.builtin.timm_embedder import TimmImageEmbedder
    from embedders.classifier import ImageClassifier
    from embedders.job.embed import embed_shard
    from embedders.reading.tar_samples import TarSamples

__version__ = "0.1.0"
__all__ = [
    "AestheticClassifier",
    "HuggingFaceImageEmbedder",
    "ImageClassifier",
    "ImageEmbedder",
    "NsfwClassifier",
    "OpenClipImageEmbedder",
    "SeveralEmbedders",
    "TarSamples",
    "TimmImageEmbedder",
    "embed_shard",
]
_MODULES = {
    "AestheticClassifier": "embedders.builtin.laion",
    "HuggingFaceImageEmbedder": "embedders.builtin.hugging_face_embedder",
    "ImageClassifier": "embedders.classifier",
    "ImageEmbedder": "embedders.base",
    "NsfwClassifier": "embedders.builtin.laion",
    "OpenClipImageEmbedder": "embedders.builtin.open_clip_embedder",
    "SeveralEmbedders": "embedders.builtin.several",
    "TarSamples": "embedders.reading.tar_samples",
    "TimmImageEmbedder": "embedders.builtin.timm_embedder",
    "embed_shard": "embedders.job.embed",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'embedders' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
