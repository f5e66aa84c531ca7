"""`npy`: one array of all the vectors, to be memory-mapped, and a Parquet file of the other columns."""

import os

import numpy as np

from embedders.export.target import Part, Target
from embedders.output.files import write_whole
from embedders.output.tables import open_writer, read_rows, read_schema, regroup

BYTES_PER_GROUP = 8 << 20


class NpyTarget(Target):
    """Writes `vectors.npy`, and `keys.parquet` in the same order of rows."""

    def write(self, part: Part) -> None:
        """Write the vectors of a part to their position in the array."""
        path = self.folder / "vectors.npy"
        # Not with a memory map: on a full disk, writing to it kills the process instead of raising an error.
        with path.open("r+b" if path.exists() else "w+b") as file:
            shape = (self.run.total, self.run.dimension)
            description = {"descr": np.dtype(self.run.dtype).str, "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, description)
            file.seek(part.start * self.run.bytes_per_row, os.SEEK_CUR)
            schema = read_schema(self.run)
            for table in self.read(part, schema):
                file.write(table.column(-1).combine_chunks().flatten().to_numpy(zero_copy_only=False))
            file.truncate()
            file.flush()
            os.fsync(file.fileno())

    def finish(self) -> None:
        """Write the columns next to the vectors."""
        schema = read_schema(self.run, with_vectors=False)
        tables = (table for shard in self.run.rows for table in read_rows(self.run, shard, schema))
        with write_whole(self.folder / "keys.parquet") as file, open_writer(file, schema) as writer:
            for table in regroup(tables, BYTES_PER_GROUP):
                writer.write_table(table)
