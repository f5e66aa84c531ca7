"""Checks on a shard that an embedder keeps the contract of `ImageEmbedder`; `check` prints the findings.

`embedders.testing` is the public interface.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np
import torch

from embedders.base import ImageEmbedder, uses_default_loader
from embedders.checks.loader_contract import (
    Batch,
    Finding,
    check_batches,
    check_ids,
    check_loading_again,
    load_batches,
)
from embedders.checks.verify import compare_vectors
from embedders.errors import EmbedderError, TarquetError, describe_error
from embedders.gpu.failures import explain_failure
from embedders.gpu.visibility import is_cuda_running
from embedders.job.model import Model
from embedders.job.provenance import describe_embedder
from embedders.job.weights import find_modules
from embedders.output.columns import SHARD, Columns
from embedders.output.failed import FailureKind
from embedders.output.vectors import describe_shapes, split_columns
from embedders.output.writer import refuse_twice

# Number of images to try: enough to find rare problems, few enough to take seconds.
IMAGES = {"cpu": 32, "cuda": 256}
# Number of images for timing the loader: more, because the default loader reads ahead.
TIMED_IMAGES = {"cpu": 128, "cuda": 512}
# Minimum cosine similarity of an image's vector alone and in a batch: kernels differ with the batch size, more so in
# half precision.
MIN_COSINE = {"cpu": 0.9999, "cuda": 0.99}


@dataclass
class Speed:
    """The speed of the loader and of the model, each alone; in a job they work in parallel.

    Attributes:
        loaded_per_s: Images per second of the loader.
        embedded_per_s: Images per second of the model after a warm-up.
        dimension: Dimension of the vectors; if an image has several, the sum of their dimensions.
    """

    loaded_per_s: float
    embedded_per_s: float
    dimension: int


def check_embedder(
    embedder: ImageEmbedder | Callable[[], ImageEmbedder],
    tar_path: str | os.PathLike,
    device: str = "cpu",
    id_col: str = "__key__",
    on_speed: Callable[[Speed], None] = lambda speed: None,
    image_suffix: str = "",
    metadata_columns: str | Sequence[str] | Mapping[str, str] = (),
) -> Iterator[Finding]:
    """Try an embedder on the first images of a shard.

    Args:
        embedder: The embedder; or its class or a function without arguments that builds it, which is then tried too.
        tar_path: A shard with at least a few good images.
        device: `"cuda"` or `"cpu"`.
        id_col: The metadata field that identifies a sample.
        on_speed: Called with the measured speed, unless an earlier check fails.
        image_suffix: As in `embed_shards`.
        metadata_columns: As in `embed_shards`.

    Yields:
        One finding for each check. Checks that depend on a failed one are skipped.
    """
    tar_path = str(tar_path)
    if not isinstance(embedder, ImageEmbedder):
        built, findings = build_on_trial(embedder)
        yield from findings
        if built is None:
            return
        embedder = built
    if not hasattr(embedder, "classifiers"):
        name = type(embedder).__name__
        message = f"{name}.__init__ does not call super().__init__(...), which sets what a job needs; add the call"
        yield Finding("class", message, is_wrong=True)
        return
    columns = Columns(id_col, metadata_columns)
    try:
        model = Model(embedder, device, "float32")
        describe_embedder(embedder, model.weights, device)  # what a job writes into the footer
    except TarquetError as error:
        yield Finding("model", str(error), is_wrong=True)
        return
    yield Finding("model", f"loaded {embedder.model_name} on {'the GPU' if device == 'cuda' else 'the CPU'}")
    yield from (Finding("model", note) for note in embedder.notes)
    try:
        batches, failed = load_batches(embedder, tar_path, id_col, device, IMAGES[device], image_suffix)
        findings = list(check_batches(batches, failed, id_col, embedder.metadata_fields))
        if not uses_default_loader(embedder) and not any(finding.is_wrong for finding in findings):
            loaded = sum(len(metadata) for _, metadata in batches)
            missed = failed if loaded < IMAGES[device] else None  # else the loader was stopped before its end
            findings += check_ids(batches, columns, tar_path, missed)
        yield from findings
        # If preprocess fails on some images, the others still form batches to check.
        if not batches or any(finding.is_wrong for finding in findings if not failed):
            return
        start = perf_counter()
        again, _ = load_batches(embedder, tar_path, id_col, device, TIMED_IMAGES[device], image_suffix)
        loaded_per_s = sum(len(metadata) for _, metadata in again) / (perf_counter() - start)
        yield from check_loading_again(batches, again)
    except TarquetError as error:
        yield Finding("loader", str(error), is_wrong=True)
        return
    try:
        first = embed_batch(model, batches[0], tar_path)
        start = perf_counter()
        vectors = [embed_batch(model, batch, tar_path) for batch in batches]
        embedded_per_s = sum(map(len, vectors)) / (perf_counter() - start)
        on_speed(Speed(loaded_per_s, embedded_per_s, vectors[0].shape[1]))
        scores = [classifier.pred_column for classifier in embedder.classifiers or ()]
        refuse_twice([SHARD, *columns.types, *scores, *model.shapes])
        yield from check_model(model, batches[0], first, vectors[0], tar_path)
    except TarquetError as error:
        yield Finding("model", str(error), is_wrong=True)


def build_on_trial(build: Callable[[], ImageEmbedder]) -> tuple[ImageEmbedder | None, list[Finding]]:
    """Build an embedder, and check that this does not start CUDA: only `load_embedding_model` knows the device."""
    cuda_ran = is_cuda_running()
    try:
        embedder = build()
    except EmbedderError as error:
        return None, [Finding("class", str(error), is_wrong=True)]
    except Exception as error:
        message = f"it cannot be built: {describe_error(error)}; expected an embedder; fix the class"
        return None, [Finding("class", message, is_wrong=True)]
    if not isinstance(embedder, ImageEmbedder):
        message = f"it returns a {type(embedder).__name__}; expected an ImageEmbedder; derive the class from it"
        return None, [Finding("class", message, is_wrong=True)]
    findings = [Finding("class", f"{type(embedder).__name__} is found and can be built")]
    if is_cuda_running() and not cuda_ran:
        message = "its module or constructor starts CUDA; expected none before the device is known; move it to "
        findings.append(Finding("class", f"{message}load_embedding_model", is_wrong=True))
    return embedder, findings


def embed_batch(model: Model, batch: Batch, tar_path: str) -> np.ndarray:
    """Return the vectors of a batch from the loader."""
    images, metadata = batch
    return model.embed(images, [sample.get("__key__", sample) for sample in metadata], tar_path)


def check_model(
    model: Model, batch: Batch, vectors: np.ndarray, again: np.ndarray, tar_path: str
) -> Iterator[Finding]:
    """Check the vectors of a batch: they are floats, the same the second time, and the same for an image alone."""
    images, metadata = batch
    bad = np.flatnonzero(model.find_bad(vectors))
    if len(bad):
        key = metadata[bad[0]].get("__key__", metadata[bad[0]])
        share = f"{len(bad)} of {len(vectors)} images fail, bad_vector, for example {key!r}"
        message = f"{share}: {model.explain_bad(vectors[bad[0]])}; {FailureKind.BAD_VECTOR.fix}"
        yield Finding("model", message, is_wrong=True)
        return
    columns = split_columns(vectors, model.shapes).values()
    norms = np.concatenate([np.linalg.norm(column, axis=-1).ravel() for column in columns])
    shape = f"{describe_shapes(model.shapes)} dimensions, all finite, norms {norms.min():.3g} to {norms.max():.3g}"
    yield Finding("model", shape)
    parts = [part for module in find_modules(model.forward) for part in module.modules()]
    training = [type(part).__name__ for part in parts if part.training]
    if training:
        message = f"{training[0]} is in training mode; expected .eval(): dropout and batch statistics change vectors"
        yield Finding("model", message, is_wrong=True)
    if len(vectors) > 1 and len(set(map(bytes, vectors))) == 1:
        message = "all the images have the same vector; expected different ones; check preprocess and the layer used"
        yield Finding("model", message, is_wrong=True)
    limit = MIN_COSINE[model.device]
    twice = min(map(min, map(compare_vectors, vectors, again)))
    if twice < limit:
        message = f"the same batch twice: cosine {twice:.5f}; expected {limit}; remove randomness, call eval()"
        yield Finding("model", message, is_wrong=True)
        return
    yield Finding("model", "the same vectors a second time")
    last = take_last(images)
    try:
        with torch.inference_mode():
            output = model.forward(images if last is None else last)
    except Exception as error:  # batch statistics of one image, for example
        how = "with one image alone" if last is not None else "a second time"
        raise explain_failure(error, f"{tar_path}: {model.embedder.model_name}, {how}", model.device) from error
    dtypes = [torch.as_tensor(part).dtype for part in (output.values() if isinstance(output, Mapping) else [output])]
    if not all(dtype.is_floating_point for dtype in dtypes):
        yield Finding(
            "model",
            f"it returns {', '.join(map(str, dtypes))}; expected floats, the features and not classes",
            is_wrong=True,
        )
    if last is None or len(vectors) == 1:
        why = f"cannot take one out of a {type(images).__name__}" if last is None else "the first batch has only one"
        yield Finding("model", f"an image alone was not tried: {why}")
        return
    alone = min(compare_vectors(vectors[-1], embed_batch(model, (last, metadata[-1:]), tar_path)[0]))
    if alone < limit:
        message = f"an image alone and in a batch: cosine {alone:.5f}; expected {limit}; use no batch statistics"
        yield Finding("model", message, is_wrong=True)
    else:
        yield Finding("model", "the same vector alone as in a batch")


def take_last(batch: Any) -> Any:
    """Return the last image of a batch as a batch; `None` if it is unknown how to take it out."""
    if isinstance(batch, Mapping):
        parts = {name: take_last(part) for name, part in batch.items()}
        return None if any(part is None for part in parts.values()) else parts
    return batch[-1:] if isinstance(batch, torch.Tensor | np.ndarray | list) else None
