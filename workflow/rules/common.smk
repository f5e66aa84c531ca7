# Checks the configuration and finds the shards; every other file builds on its two names.
#
# outputs: {output_dir}/run_config.yaml and run_shards.json, written when a run starts.

import json
import shlex
import sys

import yaml
from snakemake.exceptions import WorkflowError

# Snakemake runs outside the job's environment, where tarquet need not be installed.
sys.path.insert(0, str(workflow.basedir))
from embedders.config import check_config, find_shards
from embedders.errors import TarquetError
from embedders.outputs import write_whole
from embedders.sources import fingerprint_file, fingerprint_sources

try:
    config = check_config(config, workflow.source_path("../schemas/config.schema.yaml"))
    SHARDS = find_shards(config["shards"])
    SOURCES = fingerprint_sources(
        config["embedder"]["class"], config["embedder"]["args"]
    )
except TarquetError as error:
    raise WorkflowError(str(error))

OUT = config["output_dir"].rstrip("/")


def list_retried(wildcards):
    """Name the outputs of `snakemake retry`: one for each shard whose ledger is not empty."""
    # Here and not at the top: it brings pyarrow, which no other target needs.
    from embedders.summary import find_failed_shards

    failed = find_failed_shards(f"{OUT}/ledger", SHARDS)
    return expand(f"{OUT}/retried/embeddings/{{shard}}.parquet", shard=failed)


def describe_run():
    """Keep beside the results what the run was made from.

    That is the merged configuration (file, --configfile, --config, defaults), and the path of each shard by name.
    """
    with write_whole(f"{OUT}/run_config.yaml") as file:
        file.write(yaml.safe_dump(dict(config), sort_keys=False).encode())
    with write_whole(f"{OUT}/run_shards.json") as file:
        file.write(json.dumps(SHARDS, indent=0).encode())
