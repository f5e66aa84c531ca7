"""An embedder's model on its device: loading it, running it, and the checks of what it gives back."""

import gc
import io
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from time import perf_counter
from typing import Any

import numpy as np
import torch
from PIL import Image

from embedders.base import ImageEmbedder, uses_default_loader
from embedders.errors import EmbedderError, GpuError, ShardError, TarquetError, describe_error
from embedders.job.batch import Batch
from embedders.job.gpu_failures import explain_failure, is_out_of_memory
from embedders.job.provenance import hash_weights
from embedders.output.timings import Timings

log = logging.getLogger(__name__)

# Vectors on their way from the device, with the event after which they are there; in parts, where memory was short.
Started = list[tuple[torch.Tensor, torch.cuda.Event | None]]


class Model:
    """An embedder's model on its device, and the checks of what it returns.

    Attributes:
        forward: What `load_embedding_model` gave.
        columns: Dimension of each column of vectors, by its name, once the first batch has shown it. One is the rule;
            a model that returns a mapping has one for each of its names.
        weights: Fingerprint of the weights, as `provenance.hash_weights` gives it.
        max_batch_size: Images that the device holds at once, where it has run out of memory; else `None`.
    """

    def __init__(self, embedder: ImageEmbedder, device: str, dtype: str):
        self.embedder = embedder
        self.device = device
        self.dtype = dtype
        self.columns: dict[str, int] = {}
        self.max_batch_size: int | None = None
        self.forward, self.weights = load_model(embedder, "load_embedding_model", device)

    def embed(self, images: Any, keys: Sequence[Any], tar_path: str) -> np.ndarray:
        """Embed one batch, as `embed_batches` does; `keys` name its images in messages."""
        return self._fetch(self._start(images, keys, tar_path), keys, tar_path)

    def embed_batches(
        self, batches: Iterable[Batch], tar_path: str, timings: Timings
    ) -> Iterator[tuple[Batch, np.ndarray]]:
        """Embed batches, each fetched after the next one was started: a GPU has work while the last one is written.

        Args:
            batches: What the loader yielded; the images of each go to the model as they are, and are let go.
            tar_path: The shard, for messages.
            timings: Where the time is put down.

        Yields:
            Each batch with its vectors: float32 of shape (images, dimension), the columns one behind the other. A
            vector may hold NaN or infinity.

        Raises:
            EmbedderError: Something else came back; names the shard and the first sample concerned.
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
        # What else a loader yields, a dict of tensors say, has no length that means images.
        if isinstance(images, torch.Tensor | np.ndarray | list) and len(images) != len(keys):
            raise EmbedderError(
                f"{where}: load_dataset_shard gave {len(images)} images with {len(keys)} dicts of metadata; "
                "expected one dict per image"
            )
        return self._run(images, where)

    def _fetch(self, started: Started, keys: Sequence[Any], tar_path: str) -> np.ndarray:
        where = self._describe_place(keys, tar_path)
        vectors = self._wait(started, where)
        if vectors.ndim != 2 or len(vectors) != len(keys):
            raise EmbedderError(
                f"{where}: the model gave shape {vectors.shape}; expected ({len(keys)}, dimension): one vector "
                "per image"
            )
        return vectors

    def take(self, vectors: np.ndarray, column: str) -> np.ndarray:
        """Take the vectors of one column, where the model gives several; else all.

        Raises:
            EmbedderError: There is no such column.
        """
        if len(self.columns) < 2:
            return vectors
        parts = split_columns(vectors, self.columns)
        if column not in parts:
            raise EmbedderError(
                f"{self.embedder.model_name} gives the columns {', '.join(parts)}; {column!r} is none of them; set "
                "embedding_column to one"
            )
        return parts[column]

    def find_bad(self, vectors: np.ndarray) -> np.ndarray:
        """Return for each vector whether it cannot be stored: it holds NaN, or numbers beyond the stored type."""
        limit = np.finfo(self.dtype).max
        return ~(np.abs(vectors) <= limit).all(axis=1)  # NaN compares false, so it counts as bad

    def explain_bad(self, vector: np.ndarray) -> str:
        """Say what is wrong with a vector that `find_bad` found, and what may help where the class has it."""
        reason = "NaN" if np.isnan(vector).any() else "infinity" if np.isinf(vector).any() else None
        if reason is None:
            return f"its vector holds numbers beyond {self.dtype}; expected less; set embedding_dtype: float32"
        hint = "; set autocast: false" if getattr(self.embedder, "autocast", False) else ""
        return f"its vector holds {reason}; expected finite numbers{hint}"

    def probe_columns(self, tar_path: str) -> dict[str, int]:
        """Learn the dimensions from a blank image, for a shard that holds none: its schema must be the others'."""
        if not uses_default_loader(self.embedder):
            raise ShardError(
                f"{tar_path}: no sample to learn the dimension of the vectors from; expected at least one, "
                "since this embedder has a loader of its own; leave empty shards out"
            )
        where = f"{tar_path}: no sample; a blank image to learn the dimension from"
        blank = io.BytesIO()
        Image.new("RGB", (64, 64)).save(blank, "PNG")
        try:
            image = self.embedder.decode(blank.getvalue())
        except Exception as error:
            raise EmbedderError(f"{where}: preprocess raised {describe_error(error)}") from error
        self._wait(self._run(image.unsqueeze(0), where), where)
        return self.columns

    def _describe_place(self, keys: Sequence[Any], tar_path: str) -> str:
        first = keys[0] if keys else "none"
        return f"{tar_path}: batch that starts at sample {first!r}: {self.embedder.model_name}"

    def _run(self, batch: Any, where: str) -> Started:
        """Start the model; when the device runs out of memory, halve the batch, down to one image."""
        size = len(batch) if isinstance(batch, torch.Tensor) else None
        if size and self.max_batch_size and size > self.max_batch_size:
            return [part for images in batch.split(self.max_batch_size) for part in self._run(images, where)]
        try:
            with torch.inference_mode():
                vectors = self._join(self.forward(batch), where)
                # A copy, in the order of the device's own work: the next call may use the same memory again.
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
                    "it to fit; take a smaller model or a larger GPU"
                ) from error
        # Outside the handler: the exception's traceback holds the tensors that are to be freed. Where the embedder
        # put the exception into a variable on its way, a cycle holds them too.
        self.max_batch_size = size // 2
        gc.collect()
        torch.cuda.empty_cache()
        log.warning("%s: out of memory with %d images; going on with %d", where, size, self.max_batch_size)
        return self._run(batch, where)

    def _join(self, output: Any, where: str) -> torch.Tensor:
        """Join the columns of what the model gave to one tensor, which it is for one column."""
        if not isinstance(output, Mapping):
            vectors = torch.as_tensor(output).detach()
            if vectors.ndim != 2:
                return vectors  # `_fetch` refuses it, and knows how many images there were
            output = {self.embedder.image_embedding_column: vectors}
        parts = {str(name): torch.as_tensor(part).detach() for name, part in output.items()}
        shapes = ", ".join(f"{name!r} of shape {tuple(part.shape)}" for name, part in parts.items())
        rows = {len(part) for part in parts.values() if part.ndim == 2}
        if not parts or any(part.ndim != 2 for part in parts.values()) or len(rows) > 1:
            raise EmbedderError(
                f"{where}: the model gave {shapes or 'no vectors'}; expected (images, dimension): a vector per image"
            )
        columns = {name: part.shape[1] for name, part in parts.items()}
        if self.columns and columns != self.columns:
            raise EmbedderError(
                f"{where}: the model gave dimension {describe_columns(columns)}, but "
                f"{describe_columns(self.columns)} before; expected one"
            )
        self.columns = columns
        joined = list(parts.values())
        return joined[0] if len(joined) == 1 else torch.cat([part.float().to(joined[0].device) for part in joined], 1)

    def _wait(self, started: Started, where: str) -> np.ndarray:
        try:
            for _, copied in started:
                if copied is not None:
                    copied.synchronize()
        except Exception as error:
            raise explain_failure(error, where, self.device) from error
        return np.concatenate([vectors.numpy() for vectors, _ in started])


def split_columns(vectors: np.ndarray, columns: Mapping[str, int]) -> dict[str, np.ndarray]:
    """Split vectors into their columns, of which each has a dimension."""
    ends = np.cumsum(list(columns.values()))
    return dict(zip(columns, np.split(vectors, ends[:-1], axis=1), strict=True))


def describe_columns(columns: Mapping[str, int]) -> str:
    """Say how long vectors are: a number, or one for each column."""
    if len(columns) == 1:
        return str(*columns.values())
    return ", ".join(f"{dimension} ({name})" for name, dimension in columns.items())


def load_model(owner: Any, method: str, device: str) -> tuple[Callable[[Any], torch.Tensor], str | None]:
    """Load a model by a method of its embedder or classifier, and fingerprint its weights; once for each device."""
    models = owner.__dict__.setdefault("_loaded_models", {})
    if device not in models:
        start = perf_counter()
        try:
            model = getattr(owner, method)(device)
            if not callable(model):
                raise EmbedderError(
                    f"{owner.model_name}: {method} gave a {type(model).__name__}; expected a function of a batch; "
                    "return the model"
                )
            if isinstance(model, torch.nn.Module):
                model.eval()  # else dropout and batch statistics make a vector depend on its neighbours
            models[device] = model, hash_weights(model)  # reads the device, and so may be what finds it lost
        except TarquetError:
            raise
        except Exception as error:
            raise explain_failure(error, f"{owner.model_name}: {method}", device) from error
        for note in getattr(owner, "notes", ()):  # a classifier has none
            log.warning("%s", note)
        log.info("loaded %s on %s in %.1f s", owner.model_name, device, perf_counter() - start)
    return models[device]
