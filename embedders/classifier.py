"""`ImageClassifier`: the contract of a head, a small model that gives each vector a score. Owns no loop and no file.

Constructor and methods are those of `nemo_curator.image.classifiers.ImageClassifier` (NVIDIA NeMo Curator 0.x,
removed since), kept on purpose: a subclass written for it runs here with only its import line changed.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable

import numpy as np
import torch


class Scores(np.ndarray):
    """The scores of some vectors: a numpy array that also bears with what a `postprocess` for cuDF does.

    There a score per row is a list of one, and the usual `postprocess` takes `series.list.leaves` and sets the
    `index` of that. Here there is nothing to take apart, and no index.
    """

    index = None

    @property
    def list(self) -> "Scores":
        """These scores."""
        return self

    @property
    def leaves(self) -> "Scores":
        """These scores."""
        return self


class ImageClassifier(ABC):
    """Turns the vector of each image into one score. A subclass writes `load_model`.

    Given to an embedder in `classifiers` it runs with it; named in config.yaml under `scores` it runs over the
    vectors that are there.

    Attributes:
        model_name: A name for logs and for the provenance in the Parquet footer.
        embedding_column: The column of vectors in a Parquet file; with an embedder it is the embedder's.
        pred_column: Name of the column of scores.
        pred_type: Type of that column, as numpy knows it: `float` is float32, else `"float64"`, `int`, `bool`, `str`.
        batch_size: Vectors that the model takes at once; 0 or less is all that come.
        embedding_size: Length of the vectors that the model takes.
        recipe: Class path and arguments, where it was built from these; kept in the Parquet footer.
    """

    recipe: dict | None = None

    def __init__(
        self,
        model_name: str,
        embedding_column: str = "image_embedding",
        pred_column: str = "score",
        pred_type: str | type = float,
        batch_size: int = -1,
        embedding_size: int = 768,
    ):
        self.model_name = model_name
        self.embedding_column = embedding_column
        self.pred_column = pred_column
        self.pred_type = pred_type
        self.batch_size = batch_size
        self.embedding_size = embedding_size

    @abstractmethod
    def load_model(self, device: str) -> Callable[[torch.Tensor], torch.Tensor]:
        """Load the model.

        Args:
            device: `"cuda"` for the GPU that the job has leased, or `"cpu"`.

        Returns:
            A callable: float32 tensor of shape (n, embedding_size) on that device -> scores of shape (n,) or (n, 1),
            of any type, on any device.
        """

    def postprocess(self, scores: Scores) -> np.ndarray:
        """Change scores before they are stored.

        Args:
            scores: A numpy array of shape (n,), all finite.

        Returns:
            As many values, in the same order, that fit `pred_type`; by default the same.
        """
        return scores
