"""`score_file`: vectors in Parquet -> their scores in another, without the tar. Owns the order of things."""

import logging
from pathlib import Path

import pyarrow as pa

from embedders.classifier import ImageClassifier
from embedders.errors import EmbedderError
from embedders.job.head import Head
from embedders.job.provenance import SCHEMA_VERSION
from embedders.output.columns import KEY
from embedders.output.files import write_whole
from embedders.output.hashes import hash_file
from embedders.output.parquet import describe_file, read_groups, write_table

log = logging.getLogger(__name__)


def score_file(parquet_path: str | Path, output_path: str | Path, classifier: ImageClassifier, device: str) -> int:
    """Score the vectors of one output.

    Args:
        parquet_path: An output of `embed`; it is read row group by row group.
        output_path: A Parquet file of `key` and the score, row for row as in `parquet_path`.
        classifier: What scores them.
        device: `"cuda"` or `"cpu"`.

    Returns:
        The number of rows.

    Raises:
        ShardError: `parquet_path` is missing, cut short, or not an output of tarquet.
        EmbedderError: The classifier cannot be loaded or breaks its contract, or the vectors are not for it.
        OutputError: The result cannot be written.
        GpuError: The GPU was lost, or is too small.
    """
    path = str(parquet_path)
    description = describe_file(path)
    head = Head(classifier, device)
    column = description["vector_column"]
    if classifier.embedding_column != column:
        raise EmbedderError(
            f"{path!r}: its vectors are in column {column!r}, and {classifier.model_name} wants "
            f"{classifier.embedding_column!r}; set embedding_column to {column!r}"
        )
    if head.field.name == KEY:
        raise EmbedderError(f"{classifier.model_name}: column {KEY!r} would be there twice; rename pred_column")
    keys, scores = [], []
    for group, vectors in read_groups(path):
        keys += group
        scores += head.score(vectors, path)
    schema = pa.schema([pa.field(KEY, pa.string()), head.field])
    table = pa.Table.from_arrays([pa.array(keys, pa.string()), pa.array(scores, head.field.type)], schema=schema)
    provenance = {
        "schema_version": SCHEMA_VERSION,
        "classifier": head.describe(),
        "embeddings": {"path": path, "sha256": hash_file(path)},
    }
    with write_whole(output_path) as file:
        write_table(file, table, provenance)
    log.info("%s: %d vectors scored by %s on %s", path, len(keys), classifier.model_name, device)
    return len(keys)
