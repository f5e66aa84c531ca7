"""`Batch`: images that go to the model, and the rows that are written for them."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from embedders.output.arrays import wrap_array


@dataclass
class Batch:
    """Images that go to the model, and the rows that are written for them.

    Attributes:
        images: What the loader yielded; passed to the model unchanged.
        keys: The key of each image; `None` if the loader's metadata does not contain it.
        columns: The columns next to the vectors, one row per image.
        bad: For each image, whether it has failed, so that its row must not be stored.
    """

    images: Any
    keys: list[Any]
    columns: pa.RecordBatch
    bad: np.ndarray

    def drop_bad(self, vectors: np.ndarray) -> np.ndarray:
        """Drop the rows of failed images, and return the vectors of the others."""
        if not self.bad.any():
            return vectors
        good = np.flatnonzero(~self.bad)
        self.keys = [self.keys[row] for row in good]
        self.columns = self.columns.take(wrap_array(good))
        self.bad = np.zeros(len(good), bool)
        return vectors[good]
