"""Readers and writers of the rows of a run, one row group at a time."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from embedders.output.footers import explain_reading
from embedders.output.run import Run
from embedders.output.vectors import find_columns


def read_schema(run: Run, with_vectors: bool = True) -> pa.Schema:
    """Return the columns of a run's rows: the shard's name first, then the others, the vectors of `run.columns` last.

    Vectors of int8 are float32 here, without their scales.
    """
    with explain_reading(path := run.find_file(next(iter(run.rows)))):
        schema = pq.read_schema(path)
    stored = [field.name for column in find_columns(schema).values() for field in column.fields]
    others = [field for field in schema if field.name not in stored]
    vectors = [field for column in run.columns.values() for field in column.as_read().fields]
    return pa.schema([*others, *(vectors if with_vectors else [])])


def read_rows(run: Run, shard: str, schema: pa.Schema) -> Iterator[pa.Table]:
    """Read these columns of a shard, with one row group in memory at a time.

    Raises:
        ShardError: The file is missing or incomplete, or has other columns than the first shard.
    """
    with (
        explain_reading(path := run.find_file(shard)),
        pq.ParquetFile(path, page_checksum_verification=True) as file,
    ):
        columns, vectors = schema.names, find_columns(file.schema_arrow)
        scales = [column.scale for name in columns if (column := vectors.get(name)) and column.scale]
        for number in range(file.num_row_groups):
            read = file.read_row_group(number, [*columns, *scales])
            table = read.select(columns)
            for name in columns:
                if name in vectors and vectors[name].scale:
                    restored = vectors[name].as_read()
                    (array,) = restored.store(vectors[name].load(read))
                    table = table.set_column(columns.index(name), restored.fields[0], array)
            yield table.cast(schema)


def regroup(tables: Iterable[pa.Table], max_bytes: int) -> Iterator[pa.Table]:
    """Join small tables into tables of at least `max_bytes`, but not much more."""
    waiting, size = [], 0
    for table in tables:
        waiting.append(table)
        size += table.nbytes
        if size >= max_bytes:
            yield pa.concat_tables(waiting)
            waiting, size = [], 0
    if waiting:
        yield pa.concat_tables(waiting)


@contextmanager
def open_writer(file: BinaryIO, schema: pa.Schema, plain: Sequence[str] = ()) -> Iterator[pq.ParquetWriter]:
    """Open a Parquet file to write tables into, with a page index, so that readers can fetch single rows.

    Args:
        file: The file.
        schema: Its columns.
        plain: Paths of columns to store without compression, which does not make vectors smaller.
    """
    names = [field.name for field in schema if not pa.types.is_fixed_size_list(field.type)]
    writer = pq.ParquetWriter(
        file,
        schema,
        use_dictionary=names,
        compression={**dict.fromkeys(names, "zstd"), **dict.fromkeys(plain, "none")},
        write_statistics=names,
        write_page_index=True,
        write_page_checksum=True,
    )
    try:
        yield writer
        writer.close()
    finally:
        writer.is_open = False  # otherwise pyarrow writes a footer into an unfinished file during garbage collection
