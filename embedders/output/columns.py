"""The columns beside the vectors: which there are, of which type, and how a sample's metadata becomes their values.

They depend on the configuration alone, never on what a shard happens to hold.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from embedders.errors import ConfigError, ShardError

KEY = "key"
ALL_METADATA = "metadata"
METADATA_TYPES = {"string": pa.string(), "int64": pa.int64(), "float64": pa.float64(), "bool": pa.bool_()}


class Columns:
    """Which columns go beside the vectors, and how a sample's metadata becomes their values.

    Args:
        id_col: The metadata field that identifies a sample; `__key__` is the column `key` itself.
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
                f"metadata_columns: {metadata_columns!r}; expected a list of fields, a mapping of them to types, or "
                '"all"'
            )
        if not isinstance(metadata_columns, Mapping):
            metadata_columns = dict.fromkeys(metadata_columns, "string")
        if KEY in metadata_columns:
            raise ConfigError(
                f"metadata_columns: {KEY!r} is the column of WebDataset keys; to have a JSON field of that name "
                f"there, set id_col: {KEY}"
            )
        for name, type_name in metadata_columns.items():
            if type_name not in METADATA_TYPES:
                raise ConfigError(
                    f"metadata_columns: {name!r} has the type {type_name!r}; expected {', '.join(METADATA_TYPES)}"
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

    def fields(self) -> list[pa.Field]:
        """Fields of these columns; only the id is never null."""
        id_column = KEY if self.id_col == "__key__" else self.id_col
        return [
            pa.field(name, METADATA_TYPES[type_name], nullable=name != id_column)
            for name, type_name in self.types.items()
        ]

    def read(self, metadata: dict, shard: str) -> dict:
        """Take the values of one row from a sample's metadata.

        Raises:
            ShardError: The id column is not in the metadata, or a value is not of its column's type.
        """
        key = metadata.get("__key__", metadata.get(KEY))
        if metadata.get(self.id_col) is None:
            fields = ", ".join(metadata) or "none"
            raise ShardError(
                f"{shard}: sample {key!r} has no {self.id_col!r} (id_col); its fields are: {fields}; "
                "choose one that every sample has, or __key__"
            )
        row = {}
        for name, type_name in self.types.items():
            if name == KEY:
                row[name] = _convert(metadata[KEY] if self.id_col == KEY else key, name, type_name, key, shard)
            elif name == ALL_METADATA and self.with_all:
                row[name] = _dump_json({k: v for k, v in metadata.items() if k != "__key__"})
            else:
                row[name] = _convert(metadata.get(name), name, type_name, key, shard)
        return row


def _convert(value: Any, name: str, type_name: str, key: Any, shard: str) -> Any:
    if value is None:
        return None
    if isinstance(value, np.generic):  # of a loader of the user's own
        value = value.item()
    if type_name == "string":
        text = value if isinstance(value, str) else _dump_json(value)
        return text.encode("utf-8", "replace").decode()  # JSON can hold half a surrogate pair, Parquet cannot
    is_bool = isinstance(value, bool)
    if type_name == "bool" and is_bool:
        return value
    if type_name == "int64" and isinstance(value, int) and not is_bool and -(2**63) <= value < 2**63:
        return value
    if type_name == "float64" and isinstance(value, int | float) and not is_bool:
        return float(value)
    raise ShardError(
        f"{shard}: sample {key!r} has {name} = {repr(value)[:200]}; expected {type_name} (metadata_columns); "
        "mend the data, or make the column a string"
    )


def _dump_json(value: Any) -> str:
    text = json.dumps(value, default=str)
    if "NaN" in text or "Infinity" in text:  # Python writes these numbers, but they are no JSON
        text = json.dumps(json.loads(text, parse_constant=lambda name: None))
    return text
