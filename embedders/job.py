"""`embed_shard`: the loop from a shard to its Parquet file. Owns the checks of what an embedder gives back.

The model runs in the caller's thread while `load_dataset_shard` reads ahead in another.
"""

import io
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from PIL import Image

from embedders import __version__
from embedders.base import ImageEmbedder
from embedders.errors import EmbedderError, GpuError, ShardError, TarquetError
from embedders.ledger import FailedSample, Ledger
from embedders.outputs import write_whole
from embedders.parquet import Columns, EmbeddingWriter, write_ledger
from embedders.prefetch import prefetch
from embedders.shards import check_exists, read_metadata, read_samples

log = logging.getLogger(__name__)


def embed_shard(
    embedder: ImageEmbedder,
    tar_path: str | Path,
    parquet_path: str | Path,
    *,
    ledger_path: str | Path | None = None,
    id_col: str = "__key__",
    metadata_columns: str | Sequence[str] | Mapping[str, str] = (),
    embedding_dtype: str = "float32",
    max_failed_fraction: float = 0.1,
    device: str | None = None,
) -> Ledger:
    """Embed one shard.

    Args:
        embedder: The embedder; its model is loaded once and kept for the next shard.
        tar_path: The shard.
        parquet_path: Where the vectors go; the file appears whole or not at all.
        ledger_path: Where the samples that failed are named, one row each; `None` leaves them to the log and to
            the value returned.
        id_col: The metadata field that identifies a sample.
        metadata_columns: As in `parquet.Columns`.
        embedding_dtype: `float32` or `float16`.
        max_failed_fraction: With more failed samples than this share the shard fails.
        device: `"cuda"` or `"cpu"`; `None` takes CUDA where torch sees it.

    Returns:
        The ledger: counts, and the samples that failed.

    Raises:
        ShardError: The shard is missing or damaged, or too much of it failed.
        EmbedderError: The embedder breaks its contract.
        OutputError: The result cannot be written.
        GpuError: The GPU was lost.
    """
    tar_path = str(tar_path)
    check_exists(tar_path)
    if embedder.classifiers:
        raise EmbedderError(f"{embedder.model_name}: classifiers are not run by this version; expected none")
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    columns = Columns(id_col, metadata_columns)
    ledger = embedder.ledger = Ledger(tar_path)
    start = perf_counter()
    with write_whole(parquet_path) as file:
        writer = EmbeddingWriter(file, columns, embedder.image_embedding_column, embedding_dtype)
        model = Model(embedder, device, tar_path, embedding_dtype)
        ids = {} if uses_default_loader(embedder) else count_samples(tar_path, id_col, ledger)
        for batch, metadata in prefetch(embedder.load_dataset_shard(tar_path), depth=2):
            vectors = model.embed(batch, metadata)
            writer.write([columns.read(sample, tar_path) for sample in metadata], vectors)
            for sample in metadata:
                settle_sample(ledger, sample, id_col, ids)
        for key in ledger.unsettled():
            ledger.fail(FailedSample(key, "not_loaded", "load_dataset_shard did not yield it"))
        ledger.check(max_failed_fraction)
        writer.close(model.dimension or model.probe_dimension(), provenance := describe_run(model, ledger))
        if ledger_path is not None:
            # First, so that vectors never stand without the account of what is not among them.
            with write_whole(ledger_path) as ledger_file:
                write_ledger(ledger_file, ledger.failed, provenance)
    seconds = perf_counter() - start
    log.info(
        "%s: %d samples, %d embedded, %d failed in %.1f s (%.0f images/s) on %s",
        *(
            tar_path,
            ledger.seen,
            ledger.embedded,
            len(ledger.failed),
            seconds,
            ledger.embedded / seconds,
            device,
        ),
    )
    return ledger


class Model:
    """An embedder's model on its device, and the checks of what it returns.

    Attributes:
        dimension: Length of a vector, once the first batch has shown it.
        max_batch_size: Images that the device holds at once, where it has run out of memory; else `None`.
    """

    def __init__(self, embedder: ImageEmbedder, device: str, tar_path: str, dtype: str):
        self.embedder = embedder
        self.device = device
        self.tar_path = tar_path
        self.dtype = dtype
        self.dimension: int | None = None
        self.max_batch_size: int | None = None
        self._forward = load_model(embedder, device)

    def embed(self, batch: Any, metadata: list[dict]) -> np.ndarray:
        """Embed a batch.

        Returns:
            float32 of shape (len(metadata), dimension), all finite.

        Raises:
            EmbedderError: Anything else came back; names the shard and the first sample concerned.
        """
        first = metadata[0].get("__key__", metadata[0]) if metadata else "none"
        where = f"{self.tar_path}: batch that starts at sample {first!r}: {self.embedder.model_name}"
        if hasattr(batch, "__len__") and len(batch) != len(metadata):
            raise EmbedderError(
                f"{where}: load_dataset_shard gave {len(batch)} images with {len(metadata)} dicts of metadata; "
                "expected one dict per image"
            )
        vectors = self._run(batch, where)
        if vectors.ndim != 2 or len(vectors) != len(metadata):
            raise EmbedderError(
                f"{where}: the model gave shape {vectors.shape}; expected ({len(metadata)}, dimension): one vector "
                "per image"
            )
        if self.dimension not in (None, vectors.shape[1]):
            raise EmbedderError(
                f"{where}: the model gave dimension {vectors.shape[1]}, but {self.dimension} before; expected one"
            )
        limit = np.finfo(self.dtype).max
        bad = np.flatnonzero(~(np.abs(vectors) <= limit).all(axis=1))  # NaN compares false, so it counts as bad
        if len(bad):
            sample = metadata[bad[0]]
            raise EmbedderError(
                f"{where}: the vector of sample {sample.get('__key__', sample)!r} holds NaN, or numbers beyond "
                f"{self.dtype}; expected finite vectors; check the weights, or set autocast: false"
            )
        self.dimension = vectors.shape[1]
        return vectors

    def probe_dimension(self) -> int:
        """Learn the dimension from a blank image, for a shard that holds none: its schema must be the others'."""
        if not uses_default_loader(self.embedder):
            raise ShardError(
                f"{self.tar_path}: no sample to learn the dimension of the vectors from; expected at least one, "
                "since this embedder has a loader of its own; leave empty shards out"
            )
        blank = io.BytesIO()
        Image.new("RGB", (64, 64)).save(blank, "PNG")
        return self._run(self.embedder.decode(blank.getvalue()).unsqueeze(0), f"{self.tar_path}: blank image").shape[
            1
        ]

    def _run(self, batch: Any, where: str) -> np.ndarray:
        """Run the model; when the device runs out of memory, halve the batch, down to one image."""
        size = len(batch) if isinstance(batch, torch.Tensor) else None
        if size and self.max_batch_size and size > self.max_batch_size:
            return np.concatenate([self._run(part, where) for part in batch.split(self.max_batch_size)])
        try:
            with torch.inference_mode():
                vectors = self._forward(batch)
            return torch.as_tensor(vectors).detach().to("cpu", torch.float32).numpy()
        except torch.cuda.OutOfMemoryError as error:
            if size is None or size < 2:
                raise GpuError(
                    f"{where}: out of memory on the device with {'one image' if size else 'this batch'}; expected "
                    "it to fit; take a smaller model or a larger GPU"
                ) from error
        except TarquetError:
            raise
        except Exception as error:
            raise explain_failure(error, where) from error
        # Outside the handler: the exception's traceback holds the tensors that are to be freed.
        self.max_batch_size = size // 2
        torch.cuda.empty_cache()
        log.warning("%s: out of memory with %d images; going on with %d", where, size, self.max_batch_size)
        return self._run(batch, where)


def load_model(embedder: ImageEmbedder, device: str) -> Callable[[Any], torch.Tensor]:
    """Load an embedder's model, or give the one that it has loaded for this device before."""
    models = embedder.__dict__.setdefault("_loaded_models", {})
    if device not in models:
        start = perf_counter()
        try:
            models[device] = embedder.load_embedding_model(device)
        except TarquetError:
            raise
        except Exception as error:
            raise explain_failure(error, f"{embedder.model_name}: load_embedding_model({device!r})") from error
        if isinstance(models[device], torch.nn.Module):
            models[device].eval()  # else dropout and batch statistics make a vector depend on its neighbours
        log.info("loaded %s on %s in %.1f s", embedder.model_name, device, perf_counter() - start)
    return models[device]


def uses_default_loader(embedder: ImageEmbedder) -> bool:
    """Whether the shard is read by `embedders.loader`, which keeps the ledger itself."""
    return type(embedder).load_dataset_shard is ImageEmbedder.load_dataset_shard


def count_samples(tar_path: str, id_col: str, ledger: Ledger) -> dict[str, str]:
    """Open an account for every sample that the tar itself holds, for a loader that does not tell.

    Returns:
        Key by id, for loaders whose metadata has no `__key__`.
    """
    needs_json = id_col != "__key__"
    ids = {}
    for sample in read_samples(tar_path, wants=lambda name: needs_json and name.lower().endswith(".json")):
        ledger.open(sample.key)
        if needs_json and sample.members.get("json"):
            try:
                ids[str(read_metadata(sample).get(id_col))] = sample.key
            except ValueError:
                continue  # its id stays unknown; if the loader yields it, the loader could read it
    ledger.is_counted = True
    return ids


def settle_sample(ledger: Ledger, metadata: dict, id_col: str, ids: dict[str, str]) -> None:
    """Settle the account of an embedded sample.

    Raises:
        EmbedderError: The tar has no such sample, or it was yielded before.
    """
    key = metadata.get("__key__")
    if key is None:
        key = ids.get(str(metadata[id_col]), str(metadata[id_col]))
    if not ledger.settle(str(key)):
        raise EmbedderError(
            f"{ledger.shard}: load_dataset_shard yielded a sample {key!r} that the tar does not hold, or yielded it "
            "twice; expected each sample of the tar once, known by its __key__ or its id_col"
        )


def explain_failure(error: Exception, where: str) -> TarquetError:
    """Tell a lost device from a defect in the embedder: only the first is worth a retry elsewhere."""
    text = str(error).strip().splitlines()[0] if str(error).strip() else ""
    if isinstance(error, getattr(torch, "AcceleratorError", ())) or "CUDA error" in text:
        uuid = os.environ.get("CUDA_VISIBLE_DEVICES", "unknown")
        return GpuError(f"{where}: the GPU {uuid} failed: {text}; expected it to work; run again on another one")
    return EmbedderError(f"{where}: the model raised {type(error).__name__}: {text}")


def describe_run(model: Model, ledger: Ledger) -> dict:
    """Say in the footer how the vectors were made. No times: the same run twice gives the same bytes."""
    embedder = model.embedder
    return {
        "schema_version": 1,
        "tarquet": __version__,
        "torch": torch.__version__,
        "embedder": f"{type(embedder).__module__}:{type(embedder).__qualname__}",
        "model_name": embedder.model_name,
        "device": torch.cuda.get_device_name() if model.device == "cuda" else model.device,
        "max_batch_size": model.max_batch_size,
        "shard": ledger.shard,
        "samples": ledger.seen,
        "embedded": ledger.embedded,
        "failed": ledger.count_kinds(),
    }
