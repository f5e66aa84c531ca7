"""`Batch`: images on their way to the model, and the rows that they become."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa


@dataclass
class Batch:
    """Images on their way to the model, and the rows that they become.

    Attributes:
        images: What the loader yielded; handed to the model as it is.
        keys: The key of each image; `None` where the loader's metadata does not tell it.
        columns: The columns beside the vectors, one row per image.
        bad: For each image, whether it has failed already and its row is not to be stored.
    """

    images: Any
    keys: list[Any]
    columns: pa.RecordBatch
    bad: np.ndarray

    def drop_bad(self, vectors: np.ndarray) -> np.ndarray:
        """Drop the rows of images that have failed, and return the vectors of the others."""
        if not self.bad.any():
            return vectors
        good = np.flatnonzero(~self.bad)
        self.keys = [self.keys[row] for row in good]
        self.columns = self.columns.take(pa.array(good))
        self.bad = np.zeros(len(good), bool)
        return vectors[good]
