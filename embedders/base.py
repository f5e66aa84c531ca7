"""`ImageEmbedder`: the contract between a model and the pipeline. Owns no loop, no GPU and no file.

The two methods are those of `nemo_curator.image.embedders.ImageEmbedder` (NVIDIA NeMo Curator 0.x, removed
since), kept on purpose: a subclass written for it runs here with only its import line changed.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps

from embedders.reading.loader import load_batches
from embedders.reading.pixels import decode_image


class ImageEmbedder(ABC):
    """Turns the images of a shard into vectors.

    A subclass with a model only writes `load_embedding_model`, and `preprocess` where its model wants other
    pixels than the default; one with a loader of its own writes `load_dataset_shard` too.

    Attributes:
        model_name: A name for logs and for the provenance in the Parquet footer.
        image_embedding_column: Name of the column of vectors.
        classifiers: Objects of `ImageClassifier`; the score of each becomes a column before the vectors.
        batch_size: Images in a batch of the default loader; the last one of a shard may hold fewer.
        num_threads_per_worker: Decoding threads of the default loader; `None` takes what the job was given.
        background: What transparency is laid on, any colour that Pillow knows by name or `#rrggbb`.
        notes: What a user should know of this model: said in the log and by `check`, and kept in the Parquet footer.
        recipe: Class path and arguments, where the embedder was built from these; kept in the Parquet footer.
    """

    batch_size: int = 64
    num_threads_per_worker: int | None = None
    background: str = "white"
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

        The default reads images of any common format, decodes them on threads through `decode`, keeps tar order,
        and names every sample that it cannot use.

        Args:
            tar_path: Path of a WebDataset shard.

        Returns:
            Pairs of a batch, which is handed to the model as it is, and a list with one dict per image, in the
            same order, each holding the data set's id column (and `__key__` where it is known).
        """
        return load_batches(tar_path, self.decode, self.batch_size, self.num_threads_per_worker)

    @abstractmethod
    def load_embedding_model(self, device: str) -> Callable[[Any], torch.Tensor | Mapping[str, torch.Tensor]]:
        """Load the model.

        Args:
            device: `"cuda"` for the GPU that the job has leased, or `"cpu"`.

        Returns:
            A callable: batch -> tensor of shape (len(batch), dimension), of any float type, on any device; or a
            mapping of names to such tensors, each of which becomes a column of its name.
        """

    def decode(self, encoded: bytes) -> torch.Tensor:
        """Turn one encoded image into one row of a batch; by default `preprocess` of its 8-bit RGB pixels.

        Runs on several threads at once.
        """
        return self.preprocess(decode_image(encoded, self.background))

    def preprocess(self, image: Image.Image) -> torch.Tensor:
        """Turn an RGB image into the tensor that the model takes. Runs on several threads at once.

        Returns:
            Every image in the same shape. The default: float32 of shape (3, 224, 224) in 0..1, the short side
            resized to 224 (bicubic) and the centre cropped.
        """
        # Crops before it resizes: an image of one pixel in height would grow beyond all memory.
        image = ImageOps.fit(image, (224, 224), Image.Resampling.BICUBIC)
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255

    def describe_preprocessing(self) -> dict:
        """Say, as JSON, what happens to an image before the model; kept in the Parquet footer."""
        return {"background": self.background}


def uses_default_loader(embedder: ImageEmbedder) -> bool:
    """Whether the shard is read by `embedders.reading.loader`, which keeps the ledger itself."""
    return type(embedder).load_dataset_shard is ImageEmbedder.load_dataset_shard
