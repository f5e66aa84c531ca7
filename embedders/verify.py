"""Is a finished output what it says it is? Compares Parquet, ledger and tar by name, and re-embeds random rows.

Owns the comparison; the vectors to compare with come by the same road as any job's (`locate`, `model`).
"""

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from embedders.base import ImageEmbedder
from embedders.columns import KEY
from embedders.errors import ShardError
from embedders.ledger import Ledger
from embedders.locate import build_embedder
from embedders.model import Model
from embedders.parquet import read_ledger, read_vectors
from embedders.provenance import describe_shard
from embedders.reader import count_samples

# Least cosine between a stored and a new vector. Of the stored type, if the device is the same; else two devices
# round differently, and a GPU computes in half precision.
MIN_COSINE = {"float32": 0.9999, "float16": 0.999}
MIN_COSINE_OTHER_DEVICE = 0.99


@dataclass(frozen=True)
class Output:
    """One finished output, read whole."""

    path: str
    provenance: dict
    keys: list[str | None]
    vectors: np.ndarray
    failed_keys: list[str]


def read_output(parquet_path: str, ledger_path: str | None) -> Output:
    """Read an output and its ledger.

    Raises:
        ShardError: One of them is missing, cut short, or not ours.
    """
    table, vectors, provenance = read_vectors(parquet_path)
    ledger_path = ledger_path or provenance.get("ledger")
    failed = read_ledger(ledger_path) if ledger_path else []
    return Output(parquet_path, provenance, table[KEY].to_pylist(), vectors, [sample.key for sample in failed])


def verify_output(output: Output, tar_path: str, sample_size: int, device: str) -> Iterator[str]:
    """Find what is wrong with an output.

    Args:
        output: From `read_output`.
        tar_path: The shard that it was made from.
        sample_size: Number of random rows to embed again.
        device: `"cuda"` or `"cpu"`.

    Yields:
        One line for each thing that is wrong; none for a sound output.
    """
    said = output.provenance
    if (len(output.keys), len(output.failed_keys)) != (said["embedded"], sum(said["failed"].values())):
        yield (
            f"{len(output.keys)} rows and {len(output.failed_keys)} failed samples, but its footer says "
            f"{said['embedded']} and {sum(said['failed'].values())}"
        )
    shard = describe_shard(tar_path)
    if shard["sha256"] != said["shard"]["sha256"]:
        yield f"{tar_path!r} is not the shard that it was made from ({shard['bytes']} bytes, other content)"
        return
    yield from _compare_keys(output, tar_path)
    yield from _compare_vectors(output, tar_path, sample_size, device)


def _compare_keys(output: Output, tar_path: str) -> Iterator[str]:
    if None in output.keys:
        return  # a loader without __key__: the footer's counts, compared above, are all there is
    ledger = Ledger(tar_path, accept_damage=True)
    count_samples(tar_path, "__key__", ledger)
    expected = Counter(ledger.unsettled())
    found = Counter([*output.keys, *output.failed_keys])
    lost, foreign = expected - found, found - expected
    if lost and not output.provenance["is_retry"]:
        yield f"{lost.total()} samples of the tar are neither embedded nor failed, as {next(iter(lost))!r}"
    if foreign:
        yield f"{foreign.total()} samples are not in the tar, or there twice, as {next(iter(foreign))!r}"


def _compare_vectors(output: Output, tar_path: str, sample_size: int, device: str) -> Iterator[str]:
    said = output.provenance["embedder"]
    if said["args"] is None:
        yield f"cannot embed again: {said['class']} was built in Python, and its arguments are not in the footer"
        return
    embedder = build_embedder(said["class"], said["args"])
    model = Model(embedder, device, output.provenance["embedding_dtype"])
    if model.weights != said["weights_sha256"]:
        yield f"the weights of {said['model_name']} are not those that it was made with"
    rows = {key: row for row, key in enumerate(output.keys)}
    chosen = random.sample(sorted(rows), min(sample_size, len(rows)))
    vectors = dict(embed_chosen(embedder, model, tar_path, chosen))
    limit = MIN_COSINE[output.provenance["embedding_dtype"]]
    if said["device"] != "cpu" or device != "cpu":
        limit = MIN_COSINE_OTHER_DEVICE
    for key in chosen:
        if key not in vectors:
            yield f"sample {key!r} cannot be embedded any more"
            continue
        cosine = measure_cosine(output.vectors[rows[key]], vectors[key])
        if cosine < limit:
            yield f"sample {key!r}: cosine {cosine:.5f} between its vector and a new one; expected at least {limit}"


def embed_chosen(
    embedder: ImageEmbedder, model: Model, tar_path: str, keys: list[str]
) -> Iterator[tuple[str, np.ndarray]]:
    """Embed the samples of these keys again; a loader of the user's own reads the whole shard for it."""
    embedder.ledger = Ledger(tar_path, accept_damage=True, only=set(keys))
    for batch, metadata in embedder.load_dataset_shard(tar_path):
        for sample, vector in zip(metadata, model.embed(batch, metadata, tar_path), strict=True):
            if sample.get("__key__") in embedder.ledger.only:
                yield sample["__key__"], vector


def measure_cosine(one: np.ndarray, other: np.ndarray) -> float:
    """Cosine of two vectors; 1 for two zero vectors."""
    one, other = one.astype(np.float64), other.astype(np.float64)
    norms = np.linalg.norm(one) * np.linalg.norm(other)
    return float(one @ other / norms) if norms else float(np.array_equal(one, other))


def find_shard(output: Output, tar_path: str | None) -> str:
    """Tell which shard an output is to be compared with: the one given, or the one its footer names."""
    tar_path = tar_path or output.provenance["shard"]["path"]
    if not Path(tar_path).is_file():
        raise ShardError(f"{output.path!r}: its shard {tar_path!r} is not there; name it with --shard")
    return tar_path
