"""Verifies a finished output: compares the keys in Parquet, ledger and tar, and embeds random rows again.

Owns the comparison; the vectors to compare with are made with the same code as in a job (`locate`, `model`).
"""

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from embedders.checks.reload import Reloaded, Reloader
from embedders.errors import GpuError, ShardError, TarquetError
from embedders.job.loaders import count_samples, find_fields
from embedders.job.provenance import describe_shard
from embedders.job.shard_job import ShardJob
from embedders.job.stream import ShardReader
from embedders.output.columns import KEY, SHARD, Columns
from embedders.output.footers import describe_file
from embedders.output.ledger import Ledger
from embedders.output.parquet import read_ledger, read_tables
from embedders.output.provenance import Provenance
from embedders.output.vectors import Shape, describe_shapes, split_columns
from embedders.reading.copies import Copies
from embedders.reading.loader import ShardLoad
from embedders.reading.remote import is_remote

# Minimum cosine similarity of a stored and a new vector, by stored type, if both were computed on the CPU. Otherwise
# the limit is lower: devices round differently, and a GPU may compute in half precision. With int8, it holds for what
# remains of the difference beyond the rounding.
MIN_COSINE = {"float32": 0.9999, "float16": 0.999, "int8": 0.9999}
MIN_COSINE_OTHER_DEVICE = 0.99


@dataclass(frozen=True)
class StoredRow:
    """A row that is embedded again.

    Attributes:
        number: Its position in the file.
        vectors: Its vectors by column, of shape (dimension,) or (parts, dimension).
        rounding: Half of the scale of each vector by column, with a last axis of length 1; 0 unless they are int8.
    """

    number: int
    vectors: dict[str, np.ndarray]
    rounding: dict[str, np.ndarray]


@dataclass(frozen=True)
class Output:
    """One finished output, read whole, of which some rows are kept.

    Attributes:
        path: The file.
        provenance: How it was made.
        shards: The names in its column `shard`.
        keys: The key of each row.
        shapes: The shapes of its columns of vectors.
        chosen: Random rows.
        failed_keys: The keys in its ledger; `None` if it was made without one.
    """

    path: str
    provenance: Provenance
    shards: set[str]
    keys: list[str]
    shapes: dict[str, Shape]
    chosen: list[StoredRow]
    failed_keys: list[str] | None


def read_output(parquet_path: str, ledger_path: str | None, sample_size: int) -> Output:
    """Read an output and its ledger, one row group in memory at a time.

    Raises:
        ShardError: One of them is missing, truncated, or not an output of tarquet.
    """
    described = describe_file(parquet_path)
    wanted = set(random.sample(range(described.rows), min(sample_size, described.rows)))
    shards: set[str] = set()
    keys: list[str] = []
    chosen = []
    for table in read_tables(parquet_path):
        here = sorted(row - len(keys) for row in wanted if 0 <= row - len(keys) < len(table))
        taken = table.take(np.array(here, np.int64))  # an empty list has no type, which pyarrow refuses
        vectors = {name: column.load(taken) for name, column in described.columns.items()}
        rounding = {name: column.load_scales(taken)[..., None] / 2 for name, column in described.columns.items()}
        for index, row in enumerate(here):
            parts = ({name: of[name][index] for name in vectors} for of in (vectors, rounding))
            chosen.append(StoredRow(len(keys) + row, *parts))
        shards.update(table[SHARD].unique().to_pylist())
        keys += table[KEY].to_pylist()
    ledger_path = ledger_path or described.provenance.ledger
    failed_keys = [sample.key for sample in read_ledger(ledger_path)] if ledger_path else None
    return Output(parquet_path, described.provenance, shards, keys, described.shapes, chosen, failed_keys)


def verify_output(output: Output, tar_path: str, reloader: Reloader) -> Iterator[str]:
    """Yield what is wrong with an output.

    Args:
        output: From `read_output`.
        tar_path: The shard that it was made from.
        reloader: Loads its model.

    Yields:
        One line for each problem; none for a sound output.
    """
    said = output.provenance
    if len(output.keys) != said.embedded:
        yield f"{len(output.keys)} rows, but its footer says {said.embedded}"
    if foreign := output.shards - {said.shard.name}:
        yield f"its column {SHARD!r} has {foreign.pop()!r}, but its footer says {said.shard.name!r}"
    if output.failed_keys is not None and len(output.failed_keys) != sum(said.failed.values()):
        yield f"{len(output.failed_keys)} samples in its ledger, but its footer says {sum(said.failed.values())}"
    shard = describe_shard(tar_path)
    if shard.sha256 != said.shard.sha256:
        yield f"{tar_path!r} is not the shard that it was made from ({shard.bytes} bytes, other content)"
        return
    ledger = Ledger(tar_path)
    ids, _ = count_samples(tar_path, said.id_col, ledger, accept_damage=True)
    # If id_col is `key`, the column has the data set's own key, else WebDataset's.
    keys = [ids.get(key, key) for key in output.keys] if said.id_col == KEY else output.keys
    yield from _compare_keys(output, keys, Counter(ledger.unsettled()))
    yield from _compare_vectors(output, keys, tar_path, reloader)


def _compare_keys(output: Output, keys: list[str], expected: Counter[str]) -> Iterator[str]:
    found = Counter([*keys, *(output.failed_keys or [])])
    lost, foreign = expected - found, found - expected
    # A retry has only some of the samples, and without a ledger it is unknown which ones failed.
    if lost and output.failed_keys is not None and not output.provenance.is_retry:
        yield f"{lost.total()} samples of the tar are neither embedded nor failed, for example {next(iter(lost))!r}"
    if foreign:
        yield f"{foreign.total()} samples are not in the tar, or appear twice, for example {next(iter(foreign))!r}"


def _compare_vectors(output: Output, keys: list[str], tar_path: str, reloader: Reloader) -> Iterator[str]:
    said = output.provenance.embedder
    if said.args is None:
        yield f"cannot embed again: {said.class_path} was built in Python, and its arguments are not in the footer"
        return
    reloaded = reloader.load(said, output.provenance.embedding_dtype)
    model, then, now = reloaded.model, said.as_json(), reloaded.record
    changed = ", ".join(name for name in then if now[name] != then[name]) or "nothing that the footer names"
    if model.weights != said.weights_sha256:
        yield f"the weights of {said.model_name} differ from those that it was made with"
    chosen = [keys[row.number] for row in output.chosen]
    vectors = dict(embed_chosen(reloaded, tar_path, output.provenance, chosen)) if chosen else {}
    limit = MIN_COSINE[output.provenance.embedding_dtype]
    if said.device != "cpu" or reloader.device != "cpu":
        limit = MIN_COSINE_OTHER_DEVICE
    for key, row in zip(chosen, output.chosen, strict=True):
        if key not in vectors:
            yield f"sample {key!r} can no longer be embedded (changed since: {changed})"
            continue
        if model.shapes != output.shapes:
            then_shapes, now_shapes = describe_shapes(output.shapes), describe_shapes(model.shapes)
            yield f"dimension {now_shapes} now, {then_shapes} in the file (changed since: {changed})"
            return
        for column, new in split_columns(vectors[key][None], output.shapes).items():
            old, rounding = row.vectors[column], row.rounding[column]
            near = old + np.clip(new[0] - old, -rounding, rounding)
            cosine, ratio, part = find_worst(near, new[0])
            if not min(cosine, ratio) >= limit:  # not `<`, because every comparison with NaN is false
                which = f", {column}" * (len(output.shapes) > 1) + f", part {part}" * (near.ndim > 1)
                yield (
                    f"sample {key!r}{which}: cosine {cosine:.5f} between its vector and a new one, ratio of their "
                    f"norms {ratio:.5f}; expected at least {limit} (changed since: {changed})"
                )


def embed_chosen(
    reloaded: Reloaded, tar_path: str, provenance: Provenance, keys: list[str]
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield key and new vector of the samples with these keys; a custom loader reads the whole shard for it."""
    embedder, model, columns = reloaded.embedder, reloaded.model, Columns(provenance.id_col)
    chosen = set(keys)
    load = ShardLoad(Ledger(tar_path), True, chosen, find_fields(embedder, columns), provenance.image_suffix)
    for batch in ShardReader(embedder, ShardJob(tar_path, ""), columns, load, model.device, Copies([])).read():
        for key, vector in zip(batch.keys, model.embed(batch.images, batch.keys, tar_path), strict=True):
            if key in chosen:
                yield key, vector


def find_worst(one: np.ndarray, other: np.ndarray) -> tuple[float, float, int]:
    """Compare the vectors of an image, of shape (dimension,) or (parts, dimension), part by part.

    Returns:
        What `compare_vectors` returns for the part that differs most, and its index.
    """
    dimension = one.shape[-1]
    parts = [*map(compare_vectors, one.reshape(-1, dimension), other.reshape(-1, dimension))]
    worst = min(range(len(parts)), key=lambda part: min(parts[part]) if np.isfinite(parts[part]).all() else -np.inf)
    return *parts[worst], worst


def compare_vectors(one: np.ndarray, other: np.ndarray) -> tuple[float, float]:
    """Return the cosine similarity of two vectors, and the ratio of the smaller norm to the larger.

    Both are 1 for two zero vectors.
    """
    one, other = one.astype(np.float64), other.astype(np.float64)
    short, long = sorted((np.linalg.norm(one), np.linalg.norm(other)))
    if not long:
        return 1.0, 1.0
    return float(one @ other / (short * long)) if short else 0.0, float(short / long)


def verify_file(file: str, shard: str | None, ledger: str | None, sample: int, reloader: Reloader) -> dict[str, Any]:
    """Verify one output, and return the result as a dict that fits into JSON.

    Args:
        file: The output.
        shard: Path or address of its shard; `None` if it is that of the footer.
        ledger: Path of its ledger; `None` as for the shard.
        sample: Number of rows to embed again.
        reloader: Loads its model.

    Raises:
        GpuError: The GPU failed, which says nothing about the file.
    """
    found: dict[str, Any] = {"file": file}
    try:
        output = read_output(file, ledger, sample)
        found |= {"rows": len(output.keys), "failed": len(output.failed_keys or [])}
        found["embedded_again"] = min(sample, len(output.keys))
        tar_path = shard or output.provenance.shard.path
        if not is_remote(tar_path) and not Path(tar_path).is_file():
            raise ShardError(
                f"{file!r}: its shard {tar_path!r} is not there; expected it, seen from the folder where the run was "
                "started; start verify there or, if the shard was moved, run snakemake, or name it with --shard"
            )
        with Copies([tar_path]) as copies:
            lines = list(verify_output(output, copies.find(tar_path), reloader))
            wrong = [copies.name_in(line) for line in lines]
    except GpuError:
        raise
    except TarquetError as error:
        wrong = [str(error)]
    return found | {"is_sound": not wrong, "wrong": wrong}
