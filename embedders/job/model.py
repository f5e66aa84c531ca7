"""An embedder's model on its device: loads it, runs it, and checks what it returns."""

import gc
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from embedders.base import ImageEmbedder, decode_blank, uses_default_loader
from embedders.errors import EmbedderError, GpuError, ShardError, TarquetError, describe_error
from embedders.gpu.failures import explain_failure, is_out_of_memory
from embedders.job.batch import Batch
from embedders.job.weights import load_model
from embedders.output.timings import Timings
from embedders.output.vectors import LIMITS, Shape, describe_shapes, split_columns
from embedders.reading.stack import stack_images

log = logging.getLogger(__name__)

EXPECTED = "vector per image, or (images, parts, dimension): the same number for each"
# Vectors being copied from the device, each part with the event that marks the end of the copy. A batch has several
# parts if the device ran out of memory.
Started = list[tuple[torch.Tensor, torch.cuda.Event | None]]


class Model:
    """An embedder's model on its device, and the checks of what it returns.

    Attributes:
        forward: What `load_embedding_model` returned.
        shapes: Shape of each column of vectors by its name: `(dimension,)`, or `(parts, dimension)` for several
            vectors per image; empty before the first batch. A model that returns a mapping has a column for each of
            its names, other models have one.
        weights: Fingerprint of the weights, from `weights.hash_weights`.
        max_batch_size: Largest batch to run since the device ran out of memory; `None` if it never did.
    """

    def __init__(self, embedder: ImageEmbedder, device: str, dtype: str):
        self.embedder = embedder
        self.device = device
        self.dtype = dtype
        self.shapes: dict[str, Shape] = {}
        self.max_batch_size: int | None = None
        self.forward, self.weights = load_model(embedder, "load_embedding_model", device)

    def embed(self, images: Any, keys: Sequence[Any], tar_path: str) -> np.ndarray:
        """Embed one batch, as `embed_batches` does; `keys` name its images in messages."""
        return self._fetch(self._start(images, keys, tar_path), keys, tar_path)

    def embed_batches(
        self, batches: Iterable[Batch], tar_path: str, timings: Timings
    ) -> Iterator[tuple[Batch, np.ndarray]]:
        """Embed batches. Each is fetched after the next was started, so the GPU is busy while one is written.

        Args:
            batches: What the loader yielded; the images go to the model unchanged and are then released.
            tar_path: The shard, for messages.
            timings: Where the time is recorded.

        Yields:
            Each batch with its vectors: float32 of shape (images, numbers), the parts of an image concatenated, and
            so several columns; `shapes` tells how. A vector may contain NaN or infinity.

        Raises:
            EmbedderError: The model returned something else; the message names the shard and the first sample.
            GpuError: The GPU was lost, or is too small for one image.
        """
        last = None
        for batch in batches:
            with timings.time("model"):
                started = self._start(batch.images, batch.keys, tar_path)
                batch.images = None
                vectors = last and self._fetch(last[0], last[1].keys, tar_path)
            if last:
                yield last[1], vectors
            last = started, batch
        if last:
            with timings.time("model"):
                vectors = self._fetch(last[0], last[1].keys, tar_path)
            yield last[1], vectors

    def _start(self, images: Any, keys: Sequence[Any], tar_path: str) -> Started:
        where = self._describe_place(keys, tar_path)
        # The length of anything else, such as a dict of tensors, is not the number of images.
        if isinstance(images, torch.Tensor | np.ndarray | list) and len(images) != len(keys):
            raise EmbedderError(
                f"{where}: load_dataset_shard yielded {len(images)} images with {len(keys)} dicts of metadata; "
                "expected one dict per image"
            )
        return self._run(images, where)

    def _fetch(self, started: Started, keys: Sequence[Any], tar_path: str) -> np.ndarray:
        where = self._describe_place(keys, tar_path)
        vectors = self._wait(started, where)
        if len(vectors) != len(keys):
            found = ", ".join(str((len(vectors), *shape)) for shape in self.shapes.values())
            raise EmbedderError(
                f"{where}: the model returned shape {found}; expected ({len(keys)}, dimension): one {EXPECTED}"
            )
        return vectors

    def take(self, vectors: np.ndarray, column: str) -> np.ndarray:
        """Return the vectors of one column if the model returns several, otherwise all.

        Raises:
            EmbedderError: There is no such column, or it has several vectors per image.
        """
        column = column if len(self.shapes) > 1 else next(iter(self.shapes))
        shapes = describe_shapes(self.shapes, with_names=True)
        if column not in self.shapes:
            raise EmbedderError(
                f"{self.embedder.model_name} gives the columns {shapes}; {column!r} is none of them; set "
                "embedding_column to one"
            )
        if len(self.shapes[column]) > 1:
            raise EmbedderError(
                f"{self.embedder.model_name} gives several vectors per image in the column {column!r}, {shapes}; "
                "expected one for a classifier; set embedding_column to a column with one"
            )
        return split_columns(vectors, self.shapes)[column]

    def find_bad(self, vectors: np.ndarray) -> np.ndarray:
        """Return for each image whether its vectors cannot be stored: NaN, or numbers too large for the type."""
        return ~(np.abs(vectors) <= LIMITS[self.dtype]).all(axis=1)  # NaN compares false, so it counts as bad

    def explain_bad(self, vector: np.ndarray) -> str:
        """Return what is wrong with a vector that `find_bad` found, and a fix if the class has an option for it."""
        reason = "NaN" if np.isnan(vector).any() else "infinity" if np.isinf(vector).any() else None
        if reason is None:
            return (
                f"its vector has numbers too large for {self.dtype}; expected smaller; set embedding_dtype: float32"
            )
        hint = "; set autocast: false" if getattr(self.embedder, "autocast", False) else ""
        return f"its vector contains {reason}; expected finite numbers{hint}"

    def probe_shapes(self, tar_path: str) -> dict[str, Shape]:
        """Return the shapes of a blank image's vectors, to give an empty shard the same schema as the others."""
        if not uses_default_loader(self.embedder):
            raise ShardError(
                f"{tar_path}: no sample is embedded, so the dimension of the vectors is unknown; expected at least "
                "one, because this embedder has its own loader; leave such shards out"
            )
        where = f"{tar_path}: no sample is embedded, so the dimension is taken from a blank image"
        try:
            image = decode_blank(self.embedder)
        except Exception as error:
            raise EmbedderError(
                f"{where}: preprocess raised {describe_error(error)}; expected it to take one; leave such shards out"
            ) from error
        self._wait(self._run(stack_images([image], [{"__key__": "blank"}], tar_path), where), where)
        return self.shapes

    def _describe_place(self, keys: Sequence[Any], tar_path: str) -> str:
        first = keys[0] if keys else "none"
        return f"{tar_path}: batch that starts at sample {first!r}: {self.embedder.model_name}"

    def _run(self, batch: Any, where: str) -> Started:
        """Start the model; if the device runs out of memory, halve the batch, down to one image."""
        size = len(batch) if isinstance(batch, torch.Tensor) else None
        if size and self.max_batch_size and size > self.max_batch_size:
            return [part for images in batch.split(self.max_batch_size) for part in self._run(images, where)]
        try:
            with torch.inference_mode():
                vectors = self._join(self.forward(batch), where)
                # A copy, queued after the device's own work: the next call may reuse the memory.
                copied = vectors.to("cpu", torch.float32, non_blocking=vectors.is_cuda, copy=True)
                return [(copied, torch.cuda.current_stream().record_event() if vectors.is_cuda else None)]
        except TarquetError:
            raise
        except Exception as error:
            if not is_out_of_memory(error, self.device):
                raise explain_failure(error, where, self.device) from error
            if not size or size < 2:
                raise GpuError(
                    f"{where}: out of memory on the device with {'one image' if size else 'this batch'}; expected "
                    "it to fit; use a smaller model or a larger GPU"
                ) from error
        # Outside the handler, because the exception's traceback references the tensors that must be freed. If the
        # embedder assigned the exception to a variable, a reference cycle keeps them alive too.
        self.max_batch_size = size // 2
        gc.collect()
        torch.cuda.empty_cache()
        log.warning("%s: out of memory with %d images; continuing with %d", where, size, self.max_batch_size)
        return self._run(batch, where)

    def _join(self, output: Any, where: str) -> torch.Tensor:
        """Concatenate the columns that the model returned to one tensor with a row per image."""
        columns = output if isinstance(output, Mapping) else {self.embedder.image_embedding_column: output}
        parts = {str(name): _read_tensor(part, where) for name, part in columns.items()}
        names = [f"{name!r} of " if isinstance(output, Mapping) else "" for name in parts]
        texts = ", ".join(
            f"{name}shape {tuple(part.shape)}" for name, part in zip(names, parts.values(), strict=True)
        )
        is_right = all(part.ndim in (2, 3) and 0 not in part.shape[1:] for part in parts.values())
        if not parts or not is_right or len(set(map(len, parts.values()))) > 1:
            raise EmbedderError(
                f"{where}: the model returned {texts or 'no vectors'}; expected (images, dimension): one {EXPECTED}"
            )
        shapes = {name: tuple(part.shape[1:]) for name, part in parts.items()}
        if self.shapes and shapes != self.shapes:
            raise EmbedderError(
                f"{where}: the model returned dimension {describe_shapes(shapes)}, but "
                f"{describe_shapes(self.shapes)} before; expected the same one"
            )
        self.shapes = self.shapes or shapes
        joined = [parts[name].flatten(1) for name in self.shapes]  # a mapping may have another order in each batch
        return joined[0] if len(joined) == 1 else torch.cat([part.float().to(joined[0].device) for part in joined], 1)

    def _wait(self, started: Started, where: str) -> np.ndarray:
        try:
            for _, copied in started:
                if copied is not None:
                    copied.synchronize()
        except Exception as error:
            raise explain_failure(error, where, self.device) from error
        return np.concatenate([vectors.numpy() for vectors, _ in started])


def _read_tensor(returned: Any, where: str) -> torch.Tensor:
    """Return what a model returned, for one column, as a tensor of real numbers."""
    try:
        tensor = torch.as_tensor(returned).detach()
    except (TypeError, ValueError, RuntimeError) as error:  # a tuple of tensors, None, an object with the tensors
        found = f"a {type(returned).__name__}"
        raise EmbedderError(f"{where}: the model returned {found}; expected a tensor with one {EXPECTED}") from error
    if tensor.is_complex() or tensor.layout is not torch.strided:
        found = f"{tensor.dtype}, {tensor.layout}"
        raise EmbedderError(f"{where}: the model returned {found}; expected floats in a dense tensor; convert it")
    return tensor
