"""Measures what a plan costs if the record of the results is lost: the footers of all outputs are read once.

    python benchmarks/record.py [OUTPUTS ...]

Each output is a file of one vector with its ledger. The shards have addresses, so that none is read. Prints the CPU
time of the comparison without a record and with it, and the peak memory.
"""

import json
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

from embedders.output.hashes import Hashes
from embedders.output.provenance import SCHEMA_VERSION, EmbedderRecord, Provenance, ShardRecord
from embedders.output.writer import EmbeddingWriter, write_ledger
from embedders.planning.folder import compare_folder

OUTPUTS = (1_000, 100_000)
RECIPE = {
    "class": "embedders:TimmImageEmbedder",
    "args": {"model_name": "vit_base"},
    "schema_version": SCHEMA_VERSION,
}
COLUMNS = pa.schema([pa.field("key", pa.string(), nullable=False)])


def write_output(folder: Path, name: str) -> None:
    """Write the vectors and the ledger of a shard."""
    made = EmbedderRecord("embedders:TimmImageEmbedder", RECIPE["args"], "vit", "0" * 64, "0" * 64, {}, "cpu", {})
    shard = ShardRecord(f"s3://bucket/{name}.tar", "0" * 64, 10**9, name=name)
    provenance = Provenance(made, shard, "float32", "__key__", 1, 1, {}, recipe=RECIPE)
    path = folder / f"embeddings/{name}.parquet"
    with path.open("wb") as file, EmbeddingWriter(file, name, COLUMNS, "image_embedding", "float32") as writer:
        writer.write(pa.RecordBatch.from_arrays([pa.array(["0"])], schema=COLUMNS), np.zeros((1, 8), np.float32))
        writer.close(8, provenance)
    with (folder / f"ledger/{name}.parquet").open("wb") as file:
        write_ledger(file, [], provenance, {"model": 1.0}, 10**18)


def compare(folder: Path, shards: dict[str, str]) -> float:
    """Return the CPU seconds of a comparison."""
    begin = time.process_time()
    found = compare_folder(str(folder), shards, {"embeddings": RECIPE}, Hashes(folder / "record/hashes.json"), print)
    if found.stale:
        raise SystemExit(json.dumps(found.stale))
    return time.process_time() - begin


def main(*counts: int) -> None:
    """Print a line for each number of outputs."""
    for count in counts or OUTPUTS:
        with tempfile.TemporaryDirectory() as name:
            folder, shards = Path(name), {f"{number:07}": f"s3://bucket/{number:07}.tar" for number in range(count)}
            for kind in ("embeddings", "ledger", "record"):
                (folder / kind).mkdir()
            for shard in shards:
                write_output(folder, shard)
            without, known = compare(folder, shards), compare(folder, shards)
            peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        line = f"{count:8} outputs: {without:6.1f} CPU s without a record, {known:6.1f} CPU s with it"
        print(f"{line}, {peak_mb:6.0f} MB", flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
