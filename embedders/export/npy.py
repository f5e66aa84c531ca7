"""`npy`: an array for each column of vectors, to be memory-mapped, and a Parquet file of the other columns."""

import os
from pathlib import Path
from typing import BinaryIO

import numpy as np

from embedders.errors import ConfigError
from embedders.export.target import Part, Target
from embedders.output.files import write_whole
from embedders.output.run import Run
from embedders.output.tables import open_writer, read_rows, read_schema, regroup
from embedders.output.vectors import VectorColumn

BYTES_PER_GROUP = 8 << 20


class NpyTarget(Target):
    """Writes `vectors.npy`, or `COLUMN.npy` for each of several columns, and `keys.parquet`, in one order of rows.

    Raises:
        ConfigError: The name of a column cannot be that of a file.
    """

    def __init__(self, run: Run, parts: list[Part], folder: Path):
        super().__init__(run, parts, folder)
        self._columns = [column.as_read() for column in run.columns.values()]
        for column in self._columns:
            if len(self._columns) > 1 and (set("/\0") & set(column.name) or len(column.name.encode()) > 200):
                raise ConfigError(
                    f"--to npy: the column {column.name!r} cannot name a file, {column.name}.npy; expected a name "
                    "without /; choose other columns with --column, or another format"
                )

    def write(self, part: Part) -> None:
        """Write the vectors of a part to their position in the arrays."""
        schema = read_schema(self.run)
        files = {column.name: self._open(column, part) for column in self._columns}
        try:
            for table in self.read(part, schema):
                for column in self._columns:
                    files[column.name].write(np.ascontiguousarray(column.load(table)).data)
            for file in files.values():
                file.truncate()
                file.flush()
                os.fsync(file.fileno())
        finally:
            for file in files.values():
                file.close()

    def _open(self, column: VectorColumn, part: Part) -> BinaryIO:
        """Open the array of a column at the position of a part."""
        path = self.folder / ("vectors.npy" if len(self._columns) == 1 else f"{column.name}.npy")
        # Not with a memory map: on a full disk, writing to it kills the process instead of raising an error.
        file = path.open("r+b" if path.exists() else "w+b")
        shape = (self.run.total, *column.shape)
        description = {"descr": np.dtype(column.dtype).str, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, description)
        file.seek(part.start * column.bytes_per_row, os.SEEK_CUR)
        return file

    def finish(self) -> None:
        """Write the columns next to the vectors."""
        schema = read_schema(self.run, with_vectors=False)
        tables = (table for shard in self.run.rows for table in read_rows(self.run, shard, schema))
        with write_whole(self.folder / "keys.parquet") as file, open_writer(file, schema) as writer:
            for table in regroup(tables, BYTES_PER_GROUP):
                writer.write_table(table)
