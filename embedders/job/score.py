"""`score_file`: a Parquet file of vectors -> a Parquet file of scores, without the tar. Owns the order of steps."""

import logging
from pathlib import Path
from typing import Any

import pyarrow as pa

from embedders.classifier import ImageClassifier
from embedders.errors import EmbedderError
from embedders.job.head import Head
from embedders.output.columns import KEY, SHARD, SHARD_FIELD
from embedders.output.files import write_whole
from embedders.output.footers import describe_file
from embedders.output.hashes import hash_file
from embedders.output.parquet import read_groups
from embedders.output.provenance import FileRecord, ScoreProvenance
from embedders.output.vectors import describe_shapes
from embedders.output.writer import write_scores

log = logging.getLogger(__name__)


def score_file(
    parquet_path: str | Path,
    output_path: str | Path,
    classifier: ImageClassifier,
    device: str,
    recipe: dict[str, Any] | None = None,
) -> int:
    """Score the vectors of one output.

    Args:
        parquet_path: An output of `embed`; it is read row group by row group.
        output_path: The Parquet file to write: `shard`, `key` and the score, in the order of its rows.
        classifier: The classifier.
        device: `"cuda"` or `"cpu"`.
        recipe: What decides the scores beside the vectors, for the footer.

    Returns:
        The number of rows.

    Raises:
        ShardError: `parquet_path` is missing, truncated, or not an output of tarquet.
        EmbedderError: The classifier cannot be loaded, breaks its contract, or does not fit the vectors.
        OutputError: The result cannot be written.
        GpuError: The GPU was lost, or is too small.
    """
    path = str(parquet_path)
    description = describe_file(path)
    head = Head(classifier, device)
    column = classifier.embedding_column
    single = [name for name, stored in description.columns.items() if stored.parts is None]
    if column not in single:
        shapes = describe_shapes(description.shapes, with_names=True)
        fix = f"set embedding_column to {' or '.join(map(repr, single))}" if single else "no column here has that"
        raise EmbedderError(
            f"{path!r}: its columns of vectors are {shapes}, and {classifier.model_name} expects {column!r} with one "
            f"vector per image; {fix}"
        )
    if (name := head.field.name) in (SHARD, KEY):
        raise EmbedderError(f"{classifier.model_name}: there would be two columns {name!r}; rename pred_column")
    schema = pa.schema([SHARD_FIELD, pa.field(KEY, pa.string()), head.field])
    shard = description.provenance.shard.name
    groups = []
    for keys, vectors in read_groups(path, column=column):
        scores = head.score(vectors, path)
        if scores.null_count:
            key = keys[scores.is_null().index(True).as_py()]
            raise EmbedderError(
                f"{path!r}: {classifier.model_name} returned a score that is NaN or infinite for {key!r}; expected a "
                "finite number; check its weights and this vector"
            )
        names = pa.repeat(pa.scalar(shard, pa.string()), len(keys))
        groups.append(pa.RecordBatch.from_arrays([names, pa.array(keys, pa.string()), scores], schema=schema))
    table = pa.Table.from_batches(groups, schema)
    scored = FileRecord(path, hash_file(path), Path(path).stat().st_size)
    provenance = ScoreProvenance(head.describe(), scored, shard, recipe)
    with write_whole(output_path) as file:
        write_scores(file, table, provenance)
    log.info("%s: %d vectors scored by %s on %s", path, len(table), classifier.model_name, device)
    return len(table)
