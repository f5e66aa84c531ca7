"""The columns next to the vectors: their names and types, and how metadata is converted into their values.

They depend only on the configuration, never on the content of a shard. The first is the name of the shard, which
the writers add: shard and key together name a row of a run.
"""

import json
import reprlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from math import isfinite
from typing import Any

import pyarrow as pa

from embedders.errors import ConfigError
from embedders.output.arrays import build_array

SHARD, KEY = "shard", "key"
# A plain string, which every reader knows. Parquet stores the name once for each row group.
SHARD_FIELD = pa.field(SHARD, pa.string(), nullable=False)
ALL_METADATA = "metadata"
METADATA_TYPES = {"string": pa.string(), "int64": pa.int64(), "float64": pa.float64(), "bool": pa.bool_()}
_PYTHON_TYPES = {"string": str, "int64": int, "float64": float, "bool": bool}


class Columns:
    """The columns between the name of the shard and the vectors.

    Args:
        id_col: The metadata field that identifies a sample; with `__key__` it is the column `key` itself.
        metadata_columns: Names of fields (stored as strings), or field -> one of `METADATA_TYPES`, or `"all"`
            for one column `metadata` that holds every field as JSON.
    """

    def __init__(self, id_col: str = "__key__", metadata_columns: str | Sequence[str] | Mapping[str, str] = ()):
        self.id_col = id_col
        self.with_all = metadata_columns == "all"
        if self.with_all:
            metadata_columns = ()
        is_listed = isinstance(metadata_columns, Sequence | Mapping) and not isinstance(metadata_columns, str)
        if not is_listed or not all(isinstance(name, str) for name in metadata_columns):
            raise ConfigError(
                f"metadata_columns: {metadata_columns!r}; expected a list of fields, a mapping of fields to types, "
                'or "all"'
            )
        if not isinstance(metadata_columns, Mapping):
            metadata_columns = dict.fromkeys(metadata_columns, "string")
        if KEY in metadata_columns:
            raise ConfigError(
                f"metadata_columns: {KEY!r} is the column of WebDataset keys; to store a JSON field of that name "
                f"there, set id_col: {KEY}"
            )
        for name, type_name in metadata_columns.items():
            if type_name not in METADATA_TYPES:
                raise ConfigError(
                    f"metadata_columns: {name!r} has the type {type_name!r}; expected {', '.join(METADATA_TYPES)}"
                )
        for option, names in (("id_col", [id_col]), ("metadata_columns", metadata_columns)):
            if SHARD in names:
                raise ConfigError(
                    f"{option}: {SHARD!r} is the column of the names of shards; expected another field; rename this "
                    f"one in the shards{'' if option == 'id_col' else ', or store it with metadata_columns: all'}"
                )
        if self.with_all and id_col == ALL_METADATA:
            raise ConfigError(
                f"id_col: {id_col!r} is the column of metadata_columns: all; expected another field; list the columns"
            )
        ids = {} if id_col in ("__key__", KEY) else {id_col: "string"}
        self.types = {KEY: "string"} | ids | dict(metadata_columns)
        if self.with_all:
            self.types[ALL_METADATA] = "string"

    @property
    def needed(self) -> dict[str, str] | None:
        """The type of each metadata field that the columns need; `None` if they need all."""
        if self.with_all:
            return None
        return {name: type_name for name, type_name in self.types.items() if name != KEY or self.id_col == KEY}

    @property
    def schema(self) -> pa.Schema:
        """The columns in their order; all but the id may be null."""
        id_column = KEY if self.id_col == "__key__" else self.id_col
        return pa.schema(
            pa.field(name, METADATA_TYPES[type_name], nullable=name != id_column)
            for name, type_name in self.types.items()
        )

    def read(self, metadata: Sequence[dict]) -> tuple[pa.RecordBatch, dict[int, str]]:
        """Convert the metadata of a batch.

        Args:
            metadata: One dict per sample.

        Returns:
            The columns, one row per sample; and by row, what is wrong with a sample, whose row must not be stored.
        """
        wrong: dict[int, str] = {}
        arrays = []
        for name, type_name in self.types.items():
            if name == KEY and self.id_col != KEY:
                values = [read_key(sample) for sample in metadata]
            elif name == ALL_METADATA and self.with_all:
                values = [{field: sample[field] for field in sample if field != "__key__"} for sample in metadata]
            else:
                values = [sample.get(name) for sample in metadata]
            arrays.append(_build_array(values, name, type_name, wrong))
        ids = arrays[list(self.types).index(KEY if self.id_col == "__key__" else self.id_col)]
        absent = (
            set(ids.is_null().to_numpy(zero_copy_only=False).nonzero()[0]) - wrong.keys() if ids.null_count else ()
        )
        for row, sample in enumerate(metadata):
            if sample.get(self.id_col) is None or row in absent:
                fields = ", ".join(map(str, sample)) or "none"
                wrong[row] = f"has no {self.id_col!r} (id_col), or null there; its fields are: {fields}"
        return pa.RecordBatch.from_arrays(arrays, schema=self.schema), wrong


def read_key(metadata: dict) -> Any:
    """Return the WebDataset key of a sample; `None` if its metadata does not hold it."""
    return metadata.get("__key__", metadata.get(KEY))


def _build_array(values: list, name: str, type_name: str, wrong: dict[int, str]) -> pa.Array:
    """Build a column; a value that cannot be converted becomes null and is noted in `wrong`."""
    if set(map(type, values)) <= {_PYTHON_TYPES[type_name], type(None)}:
        with suppress(ValueError, OverflowError):  # half a surrogate pair, an integer of more than 64 bits
            return build_array(values, METADATA_TYPES[type_name])
    converted = []
    for row, value in enumerate(values):
        try:
            converted.append(_convert(value, type_name))
        except (TypeError, ValueError, OverflowError, RecursionError):
            wrong.setdefault(row, f"{name} is {reprlib.repr(value)}; expected {type_name}")
            converted.append(None)
    return build_array(converted, METADATA_TYPES[type_name])


def _convert(value: Any, type_name: str) -> Any:
    # What a user's own loader may yield: members of webdataset are bytes, and a collate function makes tensors.
    if isinstance(value, bytes):
        value = value.decode()
    elif hasattr(value, "tolist"):  # of NumPy and torch
        value = value.tolist()
    if value is None or (type_name == "string" and isinstance(value, float) and not isfinite(value)):
        return None  # NaN is how pandas writes a missing text
    if type_name == "string":
        text = value if isinstance(value, str) else _dump_json(value)
        return text.encode("utf-8", "replace").decode()  # JSON can hold half a surrogate pair, Parquet cannot
    is_bool = isinstance(value, bool)
    if type_name == "bool" and is_bool:
        return value
    if type_name == "int64" and isinstance(value, int) and not is_bool and -(2**63) <= value < 2**63:
        return value
    # 512.0: pandas writes integers so if a column has gaps. Beyond 2^53, not every integer is a float.
    if type_name == "int64" and isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    if type_name == "float64" and isinstance(value, int | float) and not is_bool:
        return float(value)
    raise TypeError(type_name)


def _dump_json(value: Any) -> str:
    text = json.dumps(value, default=_simplify)
    if "NaN" in text or "Infinity" in text:  # Python writes these numbers, but they are not JSON
        text = json.dumps(json.loads(text, parse_constant=lambda name: None))
    return text


def _simplify(value: Any) -> Any:
    """Return what JSON can hold of a value that a user's own loader put into a list or a dict."""
    if isinstance(value, bytes):
        return value.decode()
    return value.tolist() if hasattr(value, "tolist") else str(value)
