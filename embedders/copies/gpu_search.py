"""Searches vectors by cosine similarity on a GPU, by torch: faiss finds no pairs above a cosine there."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from embedders.copies.search import ROUNDING, Pairs, join_pairs, keep_nearest
from embedders.gpu.failures import explain_gpu_failure

# Maximum size of a matrix of cosines: 256 MB, and as much again while its elements are compared.
_CELLS = 64 << 20


class GpuSearch:
    """Searches by torch. float32 stays float32: torch uses TF32 only if asked.

    Args:
        device: `"cuda"`; tests use `"cpu"`.
    """

    def __init__(self, device: str):
        self.device = torch.device(device)

    def find_nearest(self, vectors: np.ndarray, centres: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Find the nearest centres, as in `Search`."""
        cosines = np.empty((len(vectors), count), np.float32)
        nearest = np.empty((len(vectors), count), np.int64)
        with self._explain_failures():
            for start, similarities in self._compare(vectors, centres):
                top = similarities.topk(count)
                rows = slice(start, start + len(similarities))
                cosines[rows], nearest[rows] = top.values.cpu().numpy(), top.indices.cpu().numpy()
        return cosines, nearest

    def find_near(self, queries: np.ndarray, block: np.ndarray, cosine: float) -> Pairs:
        """Find pairs, as in `Search`."""
        found = []
        with self._explain_failures():
            for start, similarities in self._compare(queries, block):
                numbers, rows = torch.nonzero(similarities >= cosine - ROUNDING, as_tuple=True)
                cosines = similarities[numbers, rows].cpu().numpy()
                found.append(keep_nearest(numbers.cpu().numpy() + start, rows.cpu().numpy(), cosines))
        return join_pairs(found)

    def _compare(self, vectors: np.ndarray, others: np.ndarray) -> Iterator[tuple[int, torch.Tensor]]:
        """Yield the cosines of some vectors with all others, and the index of the first of these vectors."""
        columns = torch.from_numpy(others).to(self.device).T
        at_once = max(1, _CELLS // max(1, len(others)))
        for start in range(0, len(vectors), at_once):
            yield start, torch.from_numpy(vectors[start : start + at_once]).to(self.device) @ columns

    @contextmanager
    def _explain_failures(self) -> Iterator[None]:
        """Raise what a lost or full GPU reports as a `GpuError`."""
        try:
            yield
        except RuntimeError as error:
            failure = explain_gpu_failure(error, "near_copies", self.device.type)
            if failure is None:
                raise
            raise failure from error
