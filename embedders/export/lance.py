"""`lance`: a folder that LanceDB connects to, with one table, `embeddings`. The only user of lancedb."""

from collections.abc import Iterator
from pathlib import Path

import lancedb
import pyarrow as pa

from embedders.errors import TarquetError
from embedders.export.target import Part, Target
from embedders.output.run import Run
from embedders.output.tables import read_schema

TABLE = "embeddings"


class LanceTarget(Target):
    """Writes the table; each part is one version of it, which appears complete or not at all.

    Several vectors of an image become `list<fixed_size_list<T>[dimension]>`, LanceDB's type for them. As nested
    fixed-size lists, lancedb 0.40 cannot write them, or cannot read them back, unless they are tiny.
    """

    def __init__(self, run: Run, parts: list[Part], folder: Path):
        super().__init__(run, parts, folder)
        self._schema = pa.schema([_loosen(field) for field in read_schema(run)])
        database, exists = lancedb.connect(folder), (folder / f"{TABLE}.lance").exists()
        self._table = database.open_table(TABLE) if exists else database.create_table(TABLE, schema=self._schema)

    def count_finished(self, recorded: int) -> int:
        """Return how many parts the table has, which may be one more than the recorded number."""
        rows = self._table.count_rows()
        return sum(0 < part.start + part.rows <= rows for part in self.parts)

    def write(self, part: Part) -> None:
        """Add the rows of a part."""
        errors = []

        def read() -> Iterator[pa.RecordBatch]:
            try:
                for table in self.read(part, read_schema(self.run)):
                    yield from table.cast(self._schema).to_batches()
            except TarquetError as error:
                errors.append(error)
                raise

        try:
            self._table.add(pa.RecordBatchReader.from_batches(self._schema, read()))
        except (OSError, RuntimeError):
            if errors:  # lancedb hides the error that its reader raised
                raise errors[0] from None
            raise


def _loosen(field: pa.Field) -> pa.Field:
    """Return the field that stores nested fixed-size lists as lists of fixed-size lists."""
    kind = field.type
    if pa.types.is_fixed_size_list(kind) and pa.types.is_fixed_size_list(kind.value_type):
        return field.with_type(pa.list_(kind.value_field))
    return field
