"""A finished run as one set of rows: its shards in order, how many rows each has, and the one recipe of all of them.

A row of a run is named by its shard and its key. Reads what `run_shards.json` names, and nothing else of the folder.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from embedders.errors import ConfigError, ShardError
from embedders.output.footers import VectorFile, describe_file
from embedders.output.provenance import EmbedderRecord
from embedders.output.record import digest, sign_vectors
from embedders.output.vectors import VectorColumn, describe_shapes

# Keys of `EmbedderRecord`: vectors can be compared only if all of these are the same.
DECIDING = ("class", "args", "model_name", "source_sha256", "weights_sha256", "preprocessing")


@dataclass(frozen=True)
class Run:
    """The finished vectors of a run.

    Attributes:
        folder: Its output folder.
        rows: Number of rows by the name of the shard, in the order of the run.
        sizes: Bytes of each shard's file, and its time of change, by the name of the shard.
        columns: The columns of vectors by their names: those that were asked for, or all.
        samples: Number of samples in the tars, including those that failed.
        embedder: The embedder that made the vectors, from the footer of the first shard.
        made_from: Digest of what the vectors were made from, as `Record.sign` returns it.
    """

    folder: Path
    rows: dict[str, int]
    sizes: dict[str, tuple[int, int]]
    columns: dict[str, VectorColumn]
    samples: int
    embedder: EmbedderRecord
    made_from: str

    def find_file(self, shard: str) -> str:
        """Return the path of a shard's vectors."""
        return str(self.folder / f"embeddings/{shard}.parquet")

    @property
    def total(self) -> int:
        """Number of rows of all the shards."""
        return sum(self.rows.values())

    def describe(self) -> str:
        """Return how many vectors there are, and their shapes and types, as a phrase."""
        if len(self.columns) == 1:
            (column,) = self.columns.values()
            vectors = "vectors" if column.parts is None else f"images with {column.parts} vectors each,"
            return f"{self.total} {vectors} of {column.shape[-1]} dimensions, {column.read_dtype}"
        kinds = {column.read_dtype: None for column in self.columns.values()}
        shapes = {name: column.shape for name, column in self.columns.items()}
        return f"{self.total} images with vectors of {describe_shapes(shapes)} dimensions, {', '.join(kinds)}"

    @cached_property
    def starts(self) -> dict[str, int]:
        """Number of the first row of each shard, counted over the whole run."""
        return dict(zip(self.rows, (np.cumsum([0, *self.rows.values()])).tolist(), strict=False))

    @property
    def bytes_per_row(self) -> int:
        """Bytes of the vectors of an image, as they are read."""
        return sum(column.bytes_per_row for column in self.columns.values())


def read_shards(folder: str | Path) -> dict[str, str]:
    """Read the path of each shard of a run by name.

    Raises:
        ConfigError: The folder holds no run.
    """
    try:
        return json.loads(Path(folder, "run_shards.json").read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{str(folder)!r}: it has no readable run_shards.json; expected the output_dir of a run; check the path"
        ) from error


def open_run(folder: str | Path, names: Sequence[str] = ()) -> Run:
    """Read the footers of a finished run.

    Args:
        folder: Its output folder.
        names: The columns of vectors to read; without any, all.

    Raises:
        ConfigError: The folder holds no run, or one that is not finished; or there is no such column.
        ShardError: A file is incomplete, or two were made in different ways.
    """
    folder = Path(folder)
    shards = list(read_shards(folder))
    missing = [shard for shard in shards if not (folder / f"embeddings/{shard}.parquet").is_file()]
    if missing or not shards:
        some = f", such as {missing[0]!r}" if missing else ""
        raise ConfigError(
            f"{str(folder)!r}: {len(missing)} of its {len(shards)} shards have no vectors{some}; "
            "expected a finished run; run snakemake first"
        )
    rows, sizes, made_from, samples = {}, {}, {}, 0
    first = describe_file(str(folder / f"embeddings/{shards[0]}.parquet"))
    for shard in shards:
        path = folder / f"embeddings/{shard}.parquet"
        footer = describe_file(str(path))
        footer.require_shard(shard)
        for name, value, expected in _compare(footer, first):
            raise ShardError(
                f"{str(path)!r}: its {name} is {_shorten(value)}, but {_shorten(expected)} in {first.path!r}; "
                "expected the vectors of one model, with the same columns; run snakemake, so that all are made alike"
            )
        rows[shard] = footer.rows
        made_from[shard] = (digest(footer.provenance.recipe or {}), footer.provenance.shard.sha256)
        samples += footer.provenance.samples
        sizes[shard] = (path.stat().st_size, path.stat().st_mtime_ns)
    for name in names:
        if name not in first.columns:
            there = describe_shapes(first.shapes, with_names=True)
            raise ConfigError(f"{str(folder)!r}: there is no column of vectors {name!r}; expected one of: {there}")
    columns = {name: column for name, column in first.columns.items() if not names or name in names}
    return Run(folder, rows, sizes, columns, samples, first.provenance.embedder, sign_vectors(made_from))


def _compare(one: VectorFile, other: VectorFile) -> Iterator[tuple[str, Any, Any]]:
    """Yield the name and both values of what differs: the columns, and everything in `DECIDING`."""
    if one.columns != other.columns:
        yield "type of vectors", one.vectors, other.vectors
    if one.others != other.others:
        yield "list of columns", one.others, other.others
    values, expected = (file.provenance.embedder.select(DECIDING) for file in (one, other))
    yield from ((name, values[name], expected[name]) for name in DECIDING if values[name] != expected[name])


def _shorten(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]}..."
