"""`ImageEmbedder`: the contract between a model and the pipeline. Owns no loop, no GPU and no file.

The two methods are those of `nemo_curator.image.embedders.ImageEmbedder` (NVIDIA NeMo Curator 0.x, removed
since), kept on purpose: a subclass written for it runs here with only its import line changed.
"""

import io
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps

from embedders.reading.loader import load_batches
from embedders.reading.pixels import decode_image


class ImageEmbedder(ABC):
    """Base class of embedders, which turn the images of a shard into vectors.

    A subclass must implement `load_embedding_model`. It overrides `preprocess` if its model needs other pixels than
    the default, and `load_dataset_shard` if it has a loader of its own.

    Attributes:
        model_name: A name for logs and for the provenance in the Parquet footer.
        image_embedding_column: Name of the column of vectors.
        classifiers: Instances of `ImageClassifier`; the score of each becomes a column before the vectors.
        batch_size: Images in a batch of the default loader; the last batch of a shard may be smaller.
        num_threads_per_worker: Decoding threads of the default loader; `None` uses all the threads of the job.
        background: Colour behind transparent images: a name that Pillow knows, or `#rrggbb`.
        metadata_fields: Names of metadata fields that `decode` needs, such as `caption`. With any, the default loader
            calls `decode(encoded, metadata)`, where `metadata` is a dict with `__key__` and the fields of the sample.
        notes: What a user should know about this model. The log and `check` show it, and the Parquet footer keeps it.
        recipe: Class path and arguments, if the embedder was built from these; kept in the Parquet footer.
    """

    batch_size: int = 64
    num_threads_per_worker: int | None = None
    background: str = "white"
    metadata_fields: Sequence[str] = ()
    notes: Sequence[str] = ()
    recipe: dict | None = None

    def __init__(
        self,
        model_name: str = "",
        image_embedding_column: str = "image_embedding",
        classifiers: Sequence = (),
    ):
        self.model_name = model_name or type(self).__name__
        self.image_embedding_column = image_embedding_column
        self.classifiers = classifiers

    def load_dataset_shard(self, tar_path: str) -> Iterable[tuple[Any, list[dict]]]:
        """Read a shard as batches.

        The default reads images of any common format, decodes them on threads with `decode`, keeps tar order,
        and records every sample that it cannot use. A loader of your own that reads with `embedders.TarSamples` does
        the same.

        Args:
            tar_path: Path of a WebDataset shard.

        Returns:
            Pairs of a batch, which is passed to the model unchanged, and a list with one dict per image, in the
            same order. Each dict holds the id column of the dataset (and `__key__` if it is known).
        """
        return load_batches(
            tar_path, self.decode, self.batch_size, self.num_threads_per_worker, bool(self.metadata_fields)
        )

    @abstractmethod
    def load_embedding_model(self, device: str) -> Callable[[Any], torch.Tensor | Mapping[str, torch.Tensor]]:
        """Load the model.

        Args:
            device: `"cuda"` for the GPU that the job has leased, or `"cpu"`.

        Returns:
            A callable that takes a batch and returns a tensor of shape (len(batch), dimension), or for several
            vectors per image (len(batch), parts, dimension), of any float type, on any device; or a mapping of names
            to such tensors, each of which becomes a column.
        """

    def decode(self, encoded: bytes) -> torch.Tensor:
        """Decode one image to one row of a batch: by default, `preprocess` is applied to its 8-bit RGB pixels.

        Several threads call this at once.
        """
        return self.preprocess(decode_image(encoded, self.background))

    def preprocess(self, image: Image.Image) -> torch.Tensor:
        """Convert an RGB image to the tensor that the model takes. Several threads call this at once.

        Returns:
            A tensor of the same shape for every image. The default is float32 of shape (3, 224, 224) in 0..1, with
            the short side resized to 224 (bicubic) and the centre cropped.
        """
        # `fit` crops before it resizes: resized first, an image of one pixel in height would not fit into memory.
        image = ImageOps.fit(image, (224, 224), Image.Resampling.BICUBIC)
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255

    def describe_preprocessing(self) -> dict:
        """Return, as values for JSON, what happens to an image before the model; kept in the Parquet footer."""
        return {"background": self.background}


def uses_default_loader(embedder: ImageEmbedder) -> bool:
    """Return whether shards are read by `embedders.reading.loader`, which keeps the ledger itself."""
    return type(embedder).load_dataset_shard is ImageEmbedder.load_dataset_shard


def decode_blank(embedder: ImageEmbedder) -> torch.Tensor:
    """Return what the default loader makes of a blank image, with a zero in each of `metadata_fields`."""
    blank = io.BytesIO()
    Image.new("RGB", (64, 64)).save(blank, "PNG")
    decode: Callable[..., torch.Tensor] = embedder.decode
    if not embedder.metadata_fields:
        return decode(blank.getvalue())
    with suppress(Exception):  # a text, which most code can also read as a number
        return decode(blank.getvalue(), {"__key__": "blank", **dict.fromkeys(embedder.metadata_fields, "0")})
    return decode(blank.getvalue(), {"__key__": "blank", **dict.fromkeys(embedder.metadata_fields, 0)})
