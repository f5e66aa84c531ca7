"""Measures the search for repeated ids that each summary makes: CPU seconds and memory, by how many ids repeat.

    python benchmarks/repeated_ids.py [SHARDS] [ROWS_PER_SHARD]

The shards are files of keys and of vectors of one dimension, in four row groups.
"""

import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa

from embedders.output import writer
from embedders.output.provenance import EmbedderRecord, Provenance, ShardRecord
from embedders.output.repeated_ids import find_repeated_ids
from embedders.output.writer import EmbeddingWriter

COLUMNS = pa.schema([pa.field("key", pa.string(), nullable=False)])
KINDS: dict[str, Callable[[int, int, int], str]] = {
    "all differ": lambda shard, row, shards: f"{shard:06}{row:08}",
    "each shard has the same": lambda shard, row, shards: f"{row:014}",
    "each is there twice": lambda shard, row, shards: f"{shard % (shards // 2):06}{row:08}",
}


def write_run(folder: Path, rows: dict[str, int], name_row: Callable[[int, int, int], str]) -> None:
    """Write the vectors of a run."""
    (folder / "embeddings").mkdir()
    made = EmbedderRecord("benchmark:None", {}, "benchmark", None, None, {}, "cpu", {})
    writer.BYTES_PER_GROUP = max(rows.values())  # a quarter of its vectors
    for number, (shard, count) in enumerate(rows.items()):
        path = folder / f"embeddings/{shard}.parquet"
        with path.open("wb") as file, EmbeddingWriter(file, shard, COLUMNS, "image_embedding", "float32") as output:
            for part in np.array_split(np.arange(count), 4):
                keys = pa.array([name_row(number, row, len(rows)) for row in part])
                output.write(pa.RecordBatch.from_arrays([keys], schema=COLUMNS), np.zeros((len(part), 1), np.float32))
            record = ShardRecord(f"{shard}.tar", "0", name=shard)
            output.close(1, Provenance(made, record, "float32", "__key__", count, count, {}))


def search(folder: str, shards: list[str]) -> None:
    """Find the repeated ids, and print the beginning of what a summary says about them."""
    print(find_repeated_ids(folder, shards, "__key__").describe()[:110])


def measure(name: str, work: Callable[[], object]) -> None:
    """Do the work in a process of its own, and print what it took."""
    if pid := os.fork():
        if os.waitpid(pid, 0)[1]:
            sys.exit(f"{name}: failed")
        return
    before, start, begin = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time(), time.monotonic()
    work()
    peak_mb = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    seconds = f"{time.process_time() - start:6.1f} CPU s, {time.monotonic() - begin:6.1f} s"
    print(f"{name:28} {seconds}, {peak_mb:6.0f} MB more than before", flush=True)
    os._exit(0)


def main(shards: int = 1_000, rows_per_shard: int = 10_000) -> None:
    """Print a line for each kind of ids."""
    rows = {f"{number:06}": rows_per_shard for number in range(shards)}
    for kind, name_row in KINDS.items():
        with tempfile.TemporaryDirectory() as folder:
            if pid := os.fork():  # so that the memory of writing does not count
                os.waitpid(pid, 0)
            else:
                write_run(Path(folder), rows, name_row)
                os._exit(0)
            measure(kind, partial(search, folder, list(rows)))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
