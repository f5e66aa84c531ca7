"""`huggingface`: a folder to upload as a data set, with Parquet files and a card that says how they were made."""

import json
from importlib import resources

import jinja2

from embedders.export.target import Part, Target
from embedders.output.files import write_whole
from embedders.output.tables import open_writer, read_schema, regroup
from embedders.output.vectors import list_leaves

# For each page, the hub's viewer reads a row group or, with the page index, a part of one.
BYTES_PER_GROUP = 32 << 20
SIZES = [(10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M")]
SIZES += [(10**8, "10M<n<100M"), (10**9, "100M<n<1B")]


class HuggingFaceTarget(Target):
    """Writes `data/train-00000-of-00012.parquet` and so on, one for each part, and `README.md`."""

    def write(self, part: Part) -> None:
        """Write the file of a part."""
        schema, name = read_schema(self.run), f"train-{part.number:05d}-of-{len(self.parts):05d}.parquet"
        plain = list_leaves([field for column in self.run.columns.values() for field in column.as_read().fields])
        with write_whole(self.folder / "data" / name) as file, open_writer(file, schema, plain) as writer:
            for table in regroup(self.read(part, schema), BYTES_PER_GROUP):
                writer.write_table(table)

    def finish(self) -> None:
        """Write the card."""
        template = resources.files("embedders.export").joinpath("card.md.jinja").read_text()
        card = jinja2.Template(template, keep_trailing_newline=True, undefined=jinja2.StrictUndefined)
        size = next((name for limit, name in SIZES if self.run.total < limit), "n>1B")
        text = card.render(run=self.run, schema=read_schema(self.run), size=size, dumps=json.dumps)
        with write_whole(self.folder / "README.md") as file:
            file.write(text.encode())
