"""Does an embedder keep the contract of `ImageEmbedder`? Tries it on a shard; `check` prints what it finds.

In a test-suite of your own: `assert not [f for f in check_embedder(MyEmbedder(), "some.tar") if f.is_wrong]`.
"""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np
import torch

from embedders.base import ImageEmbedder
from embedders.errors import TarquetError, make_one_line
from embedders.ledger import Ledger
from embedders.model import Model
from embedders.provenance import find_modules
from embedders.reader import add_key, count_samples, read_batches
from embedders.verify import compare_vectors

# Images that are tried: enough for the slow parts to show, few enough for seconds.
IMAGES = 128
# Between a vector alone and the same in a batch: kernels differ with the batch's size, half precision more so.
MIN_COSINE = {"cpu": 0.9999, "cuda": 0.99}

Batch = tuple[Any, list[dict]]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        subject: What was looked at: `class`, `loader`, `model`, `shard`.
        message: What was found; where it is wrong, what was expected and what to do.
        is_wrong: Whether the embedder or the shard has to change.
    """

    subject: str
    message: str
    is_wrong: bool = False

    def __str__(self) -> str:
        return f"{'wrong' if self.is_wrong else 'ok':5}  {self.subject}: {make_one_line(self.message)}"


@dataclass
class Speed:
    """How fast the tried images went through.

    Attributes:
        images: Images that were loaded and embedded.
        seconds: Time that it took, without loading the model.
        dimension: Length of a vector.
    """

    images: int
    seconds: float
    dimension: int


def check_embedder(
    embedder: ImageEmbedder,
    tar_path: str,
    device: str = "cpu",
    id_col: str = "__key__",
    on_speed: Callable[[Speed], None] = lambda speed: None,
) -> Iterator[Finding]:
    """Try an embedder on the first images of a shard.

    Args:
        embedder: The embedder, built.
        tar_path: A shard with at least a few good images.
        device: `"cuda"` or `"cpu"`.
        id_col: The metadata field that identifies a sample.
        on_speed: Called with the speed that was seen, if the embedder came so far.

    Yields:
        One finding for each thing that was looked at. After one that is wrong, what builds on it is left out.
    """
    if torch.cuda.is_initialized() and device == "cpu":
        message = "the constructor or the module uses CUDA before a GPU is given; move it to load_embedding_model"
        yield Finding("class", message, is_wrong=True)
    if not hasattr(embedder, "classifiers"):
        name = type(embedder).__name__
        yield Finding("class", f"{name}.__init__ does not call super().__init__(...); add the call", is_wrong=True)
        return
    try:
        model = Model(embedder, device, "float32")
        yield Finding("model", f"loaded {embedder.model_name} on {device}")
        start = perf_counter()
        batches = load_batches(embedder, tar_path, id_col, device, IMAGES)
        loading_s = perf_counter() - start
    except TarquetError as error:
        yield Finding("loader" if "load_dataset_shard" in str(error) else "model", str(error), is_wrong=True)
        return
    loader_findings = list(check_batches(batches, id_col))
    yield from loader_findings
    if any(finding.is_wrong for finding in loader_findings):
        return
    yield from check_loading_again(embedder, tar_path, id_col, device, batches[0])
    start, vectors = perf_counter(), []
    try:
        for batch, metadata in batches:
            vectors.append(model.embed(batch, metadata, tar_path))
    except TarquetError as error:
        yield Finding("model", str(error), is_wrong=True)
        return
    images = sum(map(len, vectors))
    on_speed(Speed(images, loading_s + perf_counter() - start, model.dimension))
    yield from check_model(model, batches[0], vectors[0], tar_path)


def load_batches(embedder: ImageEmbedder, tar_path: str, id_col: str, device: str, images: int) -> list[Batch]:
    """Load the first batches of a shard, of about so many images together.

    Raises:
        EmbedderError: The loader raised, or yields something else than it should.
    """
    embedder = copy.copy(embedder)
    embedder.ledger = Ledger(tar_path, accept_damage=True)
    ids = count_samples(tar_path, id_col, Ledger(tar_path, accept_damage=True))
    batches, count = [], 0
    for batch, metadata in read_batches(embedder, tar_path, device):
        batches.append((batch, [add_key(sample, id_col, ids) for sample in metadata]))
        count += len(metadata)
        if count >= images:
            break
    return batches


def check_batches(batches: list[Batch], id_col: str) -> Iterator[Finding]:
    """Look at what the loader yielded."""
    images = sum(len(metadata) for _, metadata in batches)
    if not images:
        message = "load_dataset_shard yielded no image; expected some; see what the shard holds below"
        yield Finding("loader", message, is_wrong=True)
        return
    for batch, metadata in batches:
        sized = isinstance(batch, torch.Tensor | np.ndarray | list)
        if sized and len(batch) != len(metadata):
            message = f"a batch of {len(batch)} images came with {len(metadata)} dicts; expected one dict per image"
            yield Finding("loader", message, is_wrong=True)
            return
        without = [sample for sample in metadata if id_col not in sample]
        if without:
            named = ", ".join(map(repr, sorted(map(str, without[0]))))
            message = f"metadata without {id_col!r}, the id_col, but with {named}; set id_col, or add it"
            yield Finding("loader", message, is_wrong=True)
            return
    shape = f", {tuple(batches[0][0].shape)} {batches[0][0].dtype}" if isinstance(batches[0][0], torch.Tensor) else ""
    yield Finding("loader", f"{len(batches)} batches of {images} images{shape}, each with its metadata")


def check_loading_again(
    embedder: ImageEmbedder, tar_path: str, id_col: str, device: str, first: Batch
) -> Iterator[Finding]:
    """See that the loader gives the same images a second time."""
    again = load_batches(embedder, tar_path, id_col, device, 1)[0]
    same = again[1] == first[1]
    if isinstance(first[0], torch.Tensor):
        same = same and torch.equal(first[0], again[0])
    if not same:
        message = "the loader gives other images the second time; expected the same; remove random augmentation"
        yield Finding("loader", message, is_wrong=True)
    else:
        yield Finding("loader", "the same images a second time")


def check_model(model: Model, batch: Batch, vectors: np.ndarray, tar_path: str) -> Iterator[Finding]:
    """Look at what the model makes of one batch: finite, floats, the same twice, the same alone."""
    images, metadata = batch
    norms = np.linalg.norm(vectors, axis=1)
    shape = f"{vectors.shape[1]} numbers per image, all finite, lengths {norms.min():.3g} to {norms.max():.3g}"
    yield Finding("model", shape)
    training = [type(module).__name__ for module in find_modules(model.forward) if module.training]
    if training:
        message = f"{training[0]} is in training mode; expected .eval(): dropout and batch statistics move vectors"
        yield Finding("model", message, is_wrong=True)
    with torch.inference_mode():
        dtype = torch.as_tensor(model.forward(images)).dtype
    if not dtype.is_floating_point:
        yield Finding("model", f"it gives {dtype}; expected floats, the features and no classes", is_wrong=True)
    if not len(set(map(bytes, vectors))) > 1 and len(vectors) > 1:
        message = "all the images have one vector; expected different ones; check preprocess and the layer used"
        yield Finding("model", message, is_wrong=True)
    limit = MIN_COSINE[model.device]
    twice = min(map(min, map(compare_vectors, vectors, model.embed(images, metadata, tar_path))))
    if twice < limit:
        message = f"the same batch twice: cosine {twice:.5f}; expected {limit}; remove randomness, call eval()"
        yield Finding("model", message, is_wrong=True)
        return
    yield Finding("model", "the same vectors a second time")
    if isinstance(images, torch.Tensor) and len(images) > 1:
        alone = min(compare_vectors(vectors[-1], model.embed(images[-1:], metadata[-1:], tar_path)[0]))
        if alone < limit:
            message = f"an image alone and in a batch: cosine {alone:.5f}; expected {limit}; use no batch statistics"
            yield Finding("model", message, is_wrong=True)
        else:
            yield Finding("model", "the same vector alone as in a batch")
