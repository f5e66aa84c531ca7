"""WebDataset tar shards in, Parquet embeddings out.

The names below are imported when they are first used, so that `python -m embedders` starts without torch.
"""

import importlib

__version__ = "0.1.0"

_MODULES = {
    "AestheticClassifier": "embedders.builtin.laion",
    "ImageClassifier": "embedders.classifier",
    "ImageEmbedder": "embedders.base",
    "NsfwClassifier": "embedders.builtin.laion",
    "TimmImageEmbedder": "embedders.builtin.timm_embedder",
    "embed_shard": "embedders.job.embed",
}
__all__ = [
    "AestheticClassifier",
    "ImageClassifier",
    "ImageEmbedder",
    "NsfwClassifier",
    "TimmImageEmbedder",
    "embed_shard",
]


def __getattr__(name: str):
    if name not in _MODULES:
        raise AttributeError(f"module 'embedders' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)
