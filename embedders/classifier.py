"""`ImageClassifier`: the contract of a small model that scores vectors. Owns no loop and no file.

Constructor and methods are those of `nemo_curator.image.classifiers.ImageClassifier` (NVIDIA NeMo Curator 0.x,
removed since), kept on purpose: a subclass written for it runs here with only its import line changed.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable

import numpy as np
import torch


class Scores(np.ndarray):
    """A numpy array of scores, on which a `postprocess` that was written for cuDF works too.

    In cuDF each row holds its score in a list, so such a `postprocess` reads `series.list.leaves` and sets its
    `index`. Here both properties return the array itself, and the index is ignored.
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
    """Base class of classifiers, which turn each vector into one score. A subclass must implement `load_model`.

    A classifier in an embedder's `classifiers` runs during embedding. One under `scores` in config.yaml runs on the
    vectors that are already stored.

    Attributes:
        model_name: A name for logs and for the provenance in the Parquet footer.
        embedding_column: The column of vectors in a Parquet file; during embedding, the embedder's column is used.
        pred_column: Name of the column of scores.
        pred_type: Type of that column: `float` for float32, or a numpy type, such as `"float64"`, `int` or `bool`.
        batch_size: Vectors that the model takes at once; 0 or less means no limit.
        embedding_size: Dimension of the vectors that the model takes.
        recipe: Class path and arguments, if the classifier was built from these; kept in the Parquet footer.
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
            A callable that takes a float32 tensor of shape (n, embedding_size) on that device and returns scores of
            shape (n,) or (n, 1), of any type, on any device.
        """

    def postprocess(self, scores: Scores) -> np.ndarray:
        """Convert scores before they are stored; by default they stay the same.

        Args:
            scores: A numpy array of shape (n,), all finite.

        Returns:
            The same number of values, in the same order, of a type that fits `pred_type`.
        """
        return scores
