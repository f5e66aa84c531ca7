"""The provenance in Parquet footers: how a file was made. Only this module writes and reads that JSON.

The footer of vectors holds no times and no host name, so that the same run twice gives the same bytes.
"""

import os
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, Self

# Since version 2 there is the column `shard`, and its name and the recipe are in the footers.
SCHEMA_VERSION = 2
# Arguments that say how a job runs. By the contract, a vector does not depend on the other images of its batch.
JOB_ARGS = frozenset({"batch_size", "num_threads_per_worker"})


def drop_job_args(args: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a class that its vectors or scores depend on: all but `JOB_ARGS`."""
    return {name: value for name, value in args.items() if name not in JOB_ARGS}


@dataclass(frozen=True)
class _Record:
    """A dataclass that is stored as a JSON object; `metadata={"key": ...}` gives a field another name there."""

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> Self:
        """Build an instance from the dict of `as_json`; keys that this version does not know are ignored.

        Raises:
            KeyError: A key is missing.
        """
        values = {}
        for item in fields(cls):
            key = item.metadata.get("key", item.name)
            if key in stored:
                values[item.name] = item.metadata.get("read", lambda value: value)(stored[key])
            elif item.default is MISSING and item.default_factory is MISSING:
                raise KeyError(key)
        return cls(**values)

    def as_json(self) -> dict[str, Any]:
        """Return the record as a dict for JSON."""
        return {item.metadata.get("key", item.name): _store(getattr(self, item.name)) for item in fields(self)}


def _store(value: Any) -> Any:
    if isinstance(value, list):
        return [_store(item) for item in value]
    return value.as_json() if isinstance(value, _Record) else value


@dataclass(frozen=True)
class EmbedderRecord(_Record):
    """An embedder with its model loaded.

    Attributes:
        class_path: As in config.yaml, or `module:Class` if it was built in Python.
        args: Its arguments; `None` if it was built in Python.
        model_name: Its name.
        source_sha256: Hash of the file that defines the class; `None` if there is no file (a notebook).
        weights_sha256: Fingerprint of the weights; `None` if none were found (an ONNX session).
        preprocessing: What happens to an image before the model.
        device: Name of the GPU, or `cpu`.
        versions: Versions of the software that the vectors depend on.
        notes: What a user should know about this model.
    """

    class_path: str = field(metadata={"key": "class"})
    args: dict[str, Any] | None
    model_name: str
    source_sha256: str | None
    weights_sha256: str | None
    preprocessing: dict[str, Any]
    device: str
    versions: dict[str, str]
    notes: list[str] = field(default_factory=list)

    def select(self, keys: Iterable[str]) -> dict[str, Any]:
        """Return the values of these keys of its JSON that decide the vectors.

        Files are given by their names only, because they may have been moved; `JOB_ARGS` are left out.
        """
        stored = self.as_json()
        stored["args"] = stored["args"] and drop_job_args(stored["args"])
        return {key: _shorten_paths(stored[key]) for key in keys}


def _shorten_paths(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _shorten_paths(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_shorten_paths(item) for item in value]
    return os.path.basename(value) if isinstance(value, str) else value


@dataclass(frozen=True)
class ClassifierRecord(_Record):
    """A classifier with its model loaded; the attributes are those of `EmbedderRecord`."""

    class_path: str = field(metadata={"key": "class"})
    args: dict[str, Any] | None
    model_name: str
    pred_column: str
    source_sha256: str | None
    weights_sha256: str | None


@dataclass(frozen=True)
class FileRecord(_Record):
    """A file that an output was made from.

    Attributes:
        path: Its path or address.
        bytes: Its size.
        sha256: Its SHA-256, as `sha256sum` prints it.
    """

    path: str
    sha256: str
    bytes: int | None = None


@dataclass(frozen=True)
class ShardRecord(FileRecord):
    """A shard that an output was made from.

    Attributes:
        name: Its name in the run, which the column `shard` repeats.
    """

    name: str = field(kw_only=True)


@dataclass(frozen=True)
class Provenance(_Record):
    """How the vectors of one shard were made, and how many there are.

    Attributes:
        embedder: The embedder that made them.
        classifiers: The classifiers that made the scores next to them.
        max_batch_size: Images that fit on the device at once, if it ran out of memory.
        embedding_dtype: `float32`, `float16` or `int8`.
        id_col: The metadata field that identifies a sample.
        shard: The shard.
        ledger: Path of the ledger, if there is one.
        image_suffix: The suffix of the images, if one was chosen.
        is_retry: Whether only samples that had failed were embedded.
        retried_sha256: SHA-256 of the ledger that named these samples.
        recipe: What decides the content of the file beside its shard, if a run made it.
        samples: Number of samples in the tar; equals `embedded` plus the sum of `failed`.
        embedded: Number of rows in the file.
        failed: Number of samples that were not embedded, by kind.
        remarks: Number of embedded samples with a remark of a decoder, by kind.
        null_columns: Columns that are null in every row, if there are rows.
        schema_version: Version of this record.
    """

    embedder: EmbedderRecord = field(metadata={"read": EmbedderRecord.from_json})
    shard: ShardRecord = field(metadata={"read": ShardRecord.from_json})
    embedding_dtype: str
    id_col: str
    samples: int
    embedded: int
    failed: dict[str, int]
    classifiers: list[ClassifierRecord] = field(
        default_factory=list, metadata={"read": lambda stored: [*map(ClassifierRecord.from_json, stored)]}
    )
    max_batch_size: int | None = None
    ledger: str | None = None
    image_suffix: str = ""
    is_retry: bool = False
    retried_sha256: str | None = None
    recipe: dict[str, Any] | None = None
    remarks: dict[str, int] = field(default_factory=dict)
    null_columns: list[str] = field(default_factory=list)
    schema_version: int = SCHEMA_VERSION


@dataclass(frozen=True)
class ScoreProvenance(_Record):
    """How a file of scores was made.

    Attributes:
        classifier: The classifier that made them.
        embeddings: The file of vectors that were scored.
        shard: Name of the shard, which the column `shard` repeats.
        recipe: What decides the scores beside the vectors, if a run made them.
        schema_version: Version of this record.
    """

    classifier: ClassifierRecord = field(metadata={"read": ClassifierRecord.from_json})
    embeddings: FileRecord = field(metadata={"read": FileRecord.from_json})
    shard: str
    recipe: dict[str, Any] | None = None
    schema_version: int = SCHEMA_VERSION
