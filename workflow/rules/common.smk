# Checks the configuration and finds the shards; every other file builds on its two names.
#
# outputs: {output_dir}/run_config.yaml and run_shards.json, written when a run starts.

import json
import os
import shlex
import shutil
import sys
from functools import cache
from itertools import filterfalse
from urllib.parse import quote

import yaml
from snakemake.exceptions import WorkflowError
from snakemake.logging import logger
from snakemake.settings.types import DeploymentMethod

# Snakemake runs outside the job's environment, where tarquet need not be installed. This file's folder and not
# workflow.basedir, which is another's where this workflow is a module of another one.
sys.path.insert(0, os.path.join(str(workflow.current_basedir), "../.."))
from embedders.planning.config import (
    check_config,
    name_scores,
    require_clone,
    require_output_dir,
    take_command_line,
    write_device_options,
)
from embedders.planning.shard_names import require_distinct
from embedders.planning.shards import find_shards
from embedders.planning.container import check_image, describe_container
from embedders.errors import TarquetError
from embedders.job.failures import find_error
from embedders.planning.job_python import (
    check_job_python,
    check_report_python,
    prefer_own_python,
)
from embedders.output.files import write_whole
from embedders.output.hashes import Hashes
from embedders.output.record import RECORD
from embedders.output.strays import describe_strays
from embedders.reading.remote import check_remote, is_remote
from embedders.planning.folder import (
    Comparison,
    compare_folder,
    check_times,
    shorten_path,
)
from embedders.planning.jobs import begin_jobs, load_jobs, plan_jobs
from embedders.planning.progress import follow_run
from embedders.planning.running import claim_folder
from embedders.planning.recipes import DECIDING_KEYS, describe_recipes, find_files

os.environ["PATH"] = prefer_own_python(os.environ["PATH"])

try:
    require_clone(str(workflow.current_basedir))
    # Where this is a module, the command line is the other workflow's.
    schema = workflow.source_path("../schemas/config.schema.yaml")
    if workflow.modifier.is_main_snakefile():
        config = take_command_line(
            config,
            workflow.overwrite_configfiles,
            workflow.config_settings.config_args,
            workflow.config_settings.config,
            schema,
        )
    config = check_config(config, schema)
    require_output_dir(config["output_dir"])
    SHARDS = find_shards(config["shards"])
    require_distinct(SHARDS, config["output_dir"])
    check_remote(SHARDS.values(), config["shards_per_job"])
    SCORES = name_scores(config["scores"])
    # One spelling of the path, because Snakemake takes another one for another file.
    OUT = shorten_path(config["output_dir"])
    HASHES = Hashes(f"{OUT}/{RECORD}/hashes.json")
    RECIPES = describe_recipes(config, HASHES.find)
    if workflow.is_main_process:
        FOLDER = compare_folder(OUT, SHARDS, RECIPES, HASHES, logger.warning)
        JOBS = begin_jobs(SHARDS, config["shards_per_job"])
    else:  # one that an executor started for a job, which was planned before
        FOLDER, JOBS = Comparison(), load_jobs(OUT)
    if DeploymentMethod.APPTAINER in workflow.deployment_settings.deployment_method:
        check_image(config["container"])
        os.environ.update(
            describe_container(
                [
                    *SHARDS.values(),
                    f"{OUT}/summary.json",
                    f"{workflow.storage_settings.local_storage_prefix}/copy.tar",
                ],
                find_files(config),
                config["gpu"] > 0,
                os.environ,
            )
        )
except TarquetError as error:
    raise WorkflowError(str(error))

if FOLDER.strays:
    logger.warning(describe_strays(FOLDER.strays))


@cache
def plan_embedding():
    """Plan the jobs that embed: by input functions, since Snakemake's options are not known when this file is read."""
    if workflow.is_main_process:
        settings = workflow.dag_settings
        is_forced = settings.forceall or any(
            name.endswith("embed") for name in settings.forcerun
        )
        is_finished = (lambda shard: False) if is_forced else FOLDER.is_finished
        unfinished = set(filterfalse(is_finished, SHARDS))
        plan_jobs(JOBS, SHARDS, unfinished, config["shards_per_job"])
        # Snakemake would leave out a shard whose results are gone, as long as the summary is there.
        if unfinished or FOLDER.is_summary_stale:
            workflow.dag.forcefiles.add(f"{OUT}/summary.json")


def list_embedded(wildcards):
    """Name what each job leaves, for the summary; of a shard that has lost only its ledger, that."""
    plan_embedding()
    for job in JOBS.shards:
        if not JOBS.is_grouped and f"ledger/{job}" not in FOLDER.there:
            yield f"{OUT}/ledger/{job}.parquet"
        else:
            yield JOBS.name_output(OUT, job)


@cache
def force_stale(kind):
    """Have Snakemake make the outputs of a kind again that the record of the folder says are out of date.

    To be called by the input functions of their rules, so that no more is made than what was asked for.
    """
    for line in FOLDER.describe(kind):
        logger.warning(line)
    workflow.dag.forcefiles.update(
        f"{OUT}/{name}.parquet" for name in FOLDER.stale if name.startswith(f"{kind}/")
    )


def find_input(kind):
    """Return the input function of a rule that makes outputs of a kind from one shard.

    Its path, whose time does not count, because the record of the folder has it; or what has Snakemake fetch it first
    and remove the copy afterwards.
    """

    def find(wildcards):
        force_stale(kind)
        path = SHARDS[wildcards.shard]
        return storage(path) if is_remote(path) else ancient(path)

    return find


def find_shards_of_job(wildcards):
    """Return the shards of a job of several, which have no address."""
    force_stale("embeddings")
    return ancient([SHARDS[shard] for shard in JOBS.shards[wildcards.job]])


def find_vectors(wildcards):
    """Return what says that the vectors of a shard are there."""
    force_stale("scores")
    plan_embedding()
    job = JOBS.by_shard.get(wildcards.shard)
    return (
        JOBS.name_output(OUT, job)
        if job
        else f"{OUT}/embeddings/{wildcards.shard}.parquet"
    )


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


def begin_run():
    """Claim the folder, and keep in it what the run was made from.

    That is the merged configuration (file, --configfile, --config, defaults), and the path of each shard by name.
    """
    try:
        now = claim_folder(OUT)
        unfinished = [
            path for shard, path in SHARDS.items() if not FOLDER.is_finished(shard)
        ]
        check_times(unfinished, now)
    except TarquetError as error:
        raise WorkflowError(str(error))
    HASHES.save()
    JOBS.save(OUT)
    with write_whole(f"{OUT}/run_config.yaml") as file:
        file.write(yaml.safe_dump(dict(config), sort_keys=False).encode())
    with write_whole(f"{OUT}/run_shards.json") as file:
        file.write(json.dumps(SHARDS, indent=0).encode())


def describe_failures():
    """Name at the end of a run, in one line each, the shards that were tried and have no result, and their logs."""
    outputs = [
        (shard, f"{OUT}/embeddings/{shard}.parquet", f"{OUT}/logs/embed/{job}.log")
        for shard, job in JOBS.by_shard.items()
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


def grow_runtime(wildcards, attempt):
    """Ask for the time of each shard of a job."""
    return config["runtime"] * len(JOBS.shards[wildcards.job]) * attempt


def name_shard(wildcards, input, output, threads):
    """Write a shard, and where its results go, as arguments of `python -m embedders embed`."""
    path = SHARDS[wildcards.shard]
    address = ["--address", path] if is_remote(path) else []
    return shlex.join(
        [input[0], output.embeddings, "--ledger", output.ledger, *address]
    )


def name_shards(wildcards, input, threads):
    """Write the shards of a job, and where their results go, as arguments of `python -m embedders embed`."""
    (first, vectors, ledger), *others = [
        [path, f"{OUT}/embeddings/{shard}.parquet", f"{OUT}/ledger/{shard}.parquet"]
        for path, shard in zip(input, JOBS.shards[wildcards.job])
    ]
    also = [argument for paths in others for argument in ("--also", *paths)]
    part = f"{quote(wildcards.job, safe='')}-{JOBS.run}"
    return shlex.join([first, vectors, "--ledger", ledger, "--part", part, *also])


def join_options(*keys):
    """Write keys of the configuration as options; what is no text, as JSON."""
    values = {
        key: config[key] if isinstance(config[key], str) else json.dumps(config[key])
        for key in keys
    }
    return shlex.join(
        f"--{key.replace('_', '-')}={value}" for key, value in values.items()
    )


def list_score_options(wildcards, threads):
    """Write what a score is made by as options of `python -m embedders score`."""
    score = SCORES[wildcards.score]
    options = [
        f"--classifier={score['class']}",
        f"--classifier-args={json.dumps(score['args'])}",
        f"--record={OUT}",
        f"--recipe={json.dumps(RECIPES[f'scores/{wildcards.score}'])}",
    ]
    return f"{shlex.join(options)} {DEVICE_OPTIONS}"


DEVICE_OPTIONS = write_device_options(config)
EMBED_OPTIONS = " ".join(
    [
        shlex.join(
            [
                f"--embedder={config['embedder']['class']}",
                f"--embedder-args={json.dumps(config['embedder']['args'])}",
                f"--record={OUT}",
                f"--recipe={json.dumps(RECIPES['embeddings'])}",
            ]
        ),
        join_options(*DECIDING_KEYS, "max_failed_fraction"),
        "--accept-damaged-shards" if config["accept_damaged_shards"] else "",
        DEVICE_OPTIONS,
    ]
)


# The record of the folder says what must run again. A function of threads is a param that Snakemake does not compare.
def give_embed_options(wildcards, threads):
    """Write what vectors are made by as options of `python -m embedders embed`."""
    return EMBED_OPTIONS


def give_retry_options(wildcards, threads):
    """Write the same, for the samples that failed alone."""
    only = shlex.quote(f"{OUT}/ledger/{wildcards.shard}.parquet")
    return f"{EMBED_OPTIONS} --only {only}"


# exec: the process that Snakemake waits for, and that SLURM signals, is the job itself and no shell around it.
EMBED_COMMAND = """
    exec python -m embedders embed {params.shards} \
        {params.options} \
        --threads {threads} \
        > {log:q} 2>&1
"""
