# Checks the configuration and finds the shards; every other file builds on its two names.
#
# outputs: {output_dir}/run_config.yaml and run_shards.json, written when a run starts.

import json
import os
import shlex
import shutil
import sys
from itertools import chain

import yaml
from snakemake.exceptions import WorkflowError
from snakemake.logging import logger
from snakemake.settings.types import DeploymentMethod

# Snakemake runs outside the job's environment, where tarquet need not be installed. This file's folder and not
# workflow.basedir, which is another's where this workflow is a module of another one.
sys.path.insert(0, os.path.join(str(workflow.current_basedir), "../.."))
from embedders.planning.config import (
    check_config,
    find_shards,
    group_shards,
    name_scores,
    write_device_options,
)
from embedders.copies.settings import check_settings, choose_part, count_parts
from embedders.planning.container import check_image, describe_container
from embedders.errors import TarquetError
from embedders.job.failures import find_error
from embedders.planning.job_python import (
    check_job_python,
    check_report_python,
    prefer_own_python,
)
from embedders.job.finished import FinishedShards
from embedders.output.files import write_whole
from embedders.reading.remote import check_remote, is_remote
from embedders.planning.progress import follow_run
from embedders.job.shard_job import ShardJob
from embedders.job.sources import fingerprint_file, fingerprint_sources

os.environ["PATH"] = prefer_own_python(os.environ["PATH"])

try:
    config = check_config(config, workflow.source_path("../schemas/config.schema.yaml"))
    check_settings(config)
    SHARDS = find_shards(config["shards"])
    check_remote(SHARDS.values(), config["shards_per_job"])
    SOURCES = fingerprint_sources(
        config["embedder"]["class"], config["embedder"]["args"]
    )
    SCORES = name_scores(config["scores"])
    SCORE_SOURCES = {
        name: fingerprint_sources(score["class"], score["args"], "classifier")
        for name, score in SCORES.items()
    }
    if DeploymentMethod.APPTAINER in workflow.deployment_settings.deployment_method:
        check_image(config["container"])
        os.environ.update(
            describe_container(
                [
                    *SHARDS.values(),
                    f"{config['output_dir']}/summary.json",
                    f"{workflow.storage_settings.local_storage_prefix}/copy.tar",
                ],
                [*SOURCES, *chain.from_iterable(SCORE_SOURCES.values())],
                config["gpu"] > 0,
                os.environ,
            )
        )
except TarquetError as error:
    raise WorkflowError(str(error))

OUT = config["output_dir"].rstrip("/")
FINISHED = f"{OUT}/.finished"
JOBS = group_shards(SHARDS, config["shards_per_job"])


def list_requested(wildcards):
    """Name one output of each job, one that is missing if any is: the job makes the others too.

    Snakemake looks at a job once for each of its outputs that somebody asks for, and plans 100,000 shards in half the
    time if that is one.
    """
    for job in JOBS:
        outputs = expand(f"{OUT}/embeddings/{{shard}}.parquet", shard=job)
        outputs += expand(f"{OUT}/ledger/{{shard}}.parquet", shard=job)
        yield next((path for path in outputs if not os.path.exists(path)), outputs[0])


def find_input(wildcards):
    """Give the shard of a job: its path, or what has Snakemake fetch it first and remove the copy afterwards."""
    path = SHARDS[wildcards.shard]
    return storage(path) if is_remote(path) else path


def list_retried(wildcards):
    """Name the outputs of `snakemake retry`: one for each shard whose ledger is not empty."""
    # Here and not at the top: it brings pyarrow, which no other target needs.
    from embedders.output.summary import find_failed_shards

    failed = find_failed_shards(f"{OUT}/ledger", SHARDS)
    return expand(f"{OUT}/retried/embeddings/{{shard}}.parquet", shard=failed)


def require_python():
    """Stop the run before its first job where no job could start, or no report could be written at the end."""
    methods = workflow.deployment_settings.deployment_method
    try:
        if not methods & {DeploymentMethod.APPTAINER, DeploymentMethod.CONDA}:
            check_job_python()
        if config["report"] and DeploymentMethod.CONDA not in methods:
            check_report_python(shutil.which("python") or "python")
    except TarquetError as error:
        raise WorkflowError(str(error))


def describe_run():
    """Keep beside the results what the run was made from.

    That is the merged configuration (file, --configfile, --config, defaults), and the path of each shard by name.
    """
    with write_whole(f"{OUT}/run_config.yaml") as file:
        file.write(yaml.safe_dump(dict(config), sort_keys=False).encode())
    with write_whole(f"{OUT}/run_shards.json") as file:
        file.write(json.dumps(SHARDS, indent=0).encode())


def restore_finished():
    """Put back what Snakemake removes when one shard of a job fails: the outputs of the others."""
    deciding = {
        key: config[key] for key in ("id_col", "metadata_columns", "embedding_dtype")
    }
    store = FinishedShards(
        FINISHED, config["embedder"]["class"], config["embedder"]["args"], **deciding
    )
    for shard, path in SHARDS.items():
        job = ShardJob(
            path, f"{OUT}/embeddings/{shard}.parquet", f"{OUT}/ledger/{shard}.parquet"
        )
        if not all(os.path.exists(output) for output in job.outputs):
            store.take(job, any_version=True)


def describe_failures():
    """Name at the end of a run, in one line each, the shards that were tried and have no result, and their logs."""
    outputs = [
        (shard, f"{OUT}/embeddings/{shard}.parquet", f"{OUT}/logs/embed/{group[0]}.log")
        for group in JOBS
        for shard in group
    ]
    outputs += [
        (
            shard,
            f"{OUT}/scores/{score}/{shard}.parquet",
            f"{OUT}/logs/score/{score}/{shard}.log",
        )
        for score in SCORES
        for shard in SHARDS
        if os.path.exists(f"{OUT}/embeddings/{shard}.parquet")
    ]
    for shard, output, log in outputs:
        if os.path.exists(log) and not os.path.exists(output):
            error = find_error(log, SHARDS[shard])
            print(f"failed: {SHARDS[shard]}: {error} (log: {log})", file=sys.stderr)


def grow(amount):
    """Ask for this much, and for as much more at each retry: a job may have been killed for want of it."""
    return lambda wildcards, attempt: amount * attempt


def name_shards(wildcards, input, output):
    """Write the shards of a job, and where their results go, as arguments of `python -m embedders embed`."""
    jobs = [
        [shlex.quote(path) for path in paths]
        for paths in zip(input, output.embeddings, output.ledgers)
    ]
    (shard, embeddings, ledger), *others = jobs
    also = "".join(f" --also {' '.join(paths)}" for paths in others)
    # A rule of several shards has no such wildcard; nor can its shards have addresses.
    if is_remote(path := SHARDS.get(wildcards.get("shard"), "")):
        also = f" --address {shlex.quote(path)}"
    return f"{shard} {embeddings} --ledger {ledger}{also}"


# What a job computes on. A function of threads is a param that Snakemake does not compare: these decide only how
# vectors are made. One for all of them, because each costs time for each job of a run.
DEVICE_OPTIONS = write_device_options(config)
# And these decide only whether a shard passes.
LIMITS = f"--max-failed-fraction={config['max_failed_fraction']}" + (
    " --accept-damaged-shards" if config["accept_damaged_shards"] else ""
)
# What decides the vectors is a param, and a change reruns the shards.
EMBED_PARAMS = dict(
    shards=name_shards,
    embedder=config["embedder"]["class"],
    args=lambda wildcards: json.dumps(config["embedder"]["args"]),
    sources=lambda wildcards: json.dumps(SOURCES),
    id_col=config["id_col"],
    metadata_columns=lambda wildcards: json.dumps(config["metadata_columns"]),
    embedding_dtype=config["embedding_dtype"],
    options=lambda wildcards, threads: f"{LIMITS} {DEVICE_OPTIONS}",
)
# exec: the process that Snakemake waits for, and that SLURM signals, is the job itself and no shell around it.
EMBED_COMMAND = """
    exec python -m embedders embed {params.shards} {params.extra} \
        --embedder {params.embedder:q} \
        --embedder-args {params.args:q} \
        --id-col {params.id_col:q} \
        --metadata-columns {params.metadata_columns:q} \
        --embedding-dtype {params.embedding_dtype:q} \
        {params.options} \
        --threads {threads} \
        > {log:q} 2>&1
"""
