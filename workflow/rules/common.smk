# Checks the configuration and finds the shards; every other file uses its names.

import json
import os
import shutil
import sys
from functools import cache
from itertools import filterfalse

import yaml
from snakemake.exceptions import WorkflowError
from snakemake.logging import logger

# Snakemake may run outside the environment of the jobs, without tarquet. The path starts from this file's folder,
# because workflow.basedir is another workflow's if this one is used as a module.
sys.path.insert(0, os.path.join(str(workflow.current_basedir), "../.."))
from embedders.copies.settings import (
    check_settings,
    count_parts,
    is_search_stale,
    is_stale,
    name_search,
)
from embedders.errors import TarquetError
from embedders.job.time_limit import describe_end, end_before_limit
from embedders.output.files import write_whole
from embedders.output.hashes import Hashes
from embedders.output.record import RECORD, digest
from embedders.output.strays import describe_strays, find_strays
from embedders.planning import snakemake_insides
from embedders.planning.commands import (
    write_embed_options,
    write_device_options,
    write_score_options,
    write_shards,
)
from embedders.planning.config import (
    check_config,
    name_scores,
    require_clone,
    require_output_dir,
    take_command_line,
)
from embedders.planning.container import check_image, describe_container
from embedders.planning.folder import (
    Comparison,
    check_times,
    compare_folder,
    read_run,
    shorten_path,
)
from embedders.planning.job_python import (
    check_class,
    check_job_python,
    check_report_python,
    prefer_own_python,
)
from embedders.planning.jobs import begin_jobs, load_jobs, plan_jobs
from embedders.planning.parts import read_part
from embedders.planning.progress import follow_run
from embedders.planning.recipes import describe_recipes, find_files
from embedders.planning.running import claim_folder
from embedders.planning.shard_names import require_distinct
from embedders.planning.shards import find_shards
from embedders.planning.unfinished import (
    describe_failures,
    describe_old_totals,
    describe_retry,
)
from embedders.reading.remote import is_remote
from embedders.reading.stores import find_versions
from embedders.report.settings import find_column, shows_other_column

os.environ.update(PATH=prefer_own_python(os.environ.get("PATH", os.defpath)))

DEPLOYMENTS = snakemake_insides.list_deployments(workflow)
config_files, config_args, config_given = snakemake_insides.read_command_line(workflow)

# A --configfile replaces config.yaml. Snakemake would merge the two key by key, and so pass the arguments of one
# embedder to another; its --replace-workflow-config does not reach the jobs that an executor submits.
if not config_files:

    configfile: "config.yaml"


try:
    require_clone(snakemake_insides.find_folder(workflow))
    schema = workflow.source_path("../schemas/config.schema.yaml")
    # If this workflow is a module, the command line belongs to the other workflow.
    if snakemake_insides.is_main(workflow):
        config = take_command_line(
            config, config_files, config_args, config_given, schema
        )
    config = check_config(config, schema)
    check_settings(config)
    require_output_dir(config["output_dir"])
    PART = read_part(config["part"])
    SCORES = name_scores(config["scores"])
    # Always spelled the same way, because to Snakemake another spelling is another file.
    OUT = shorten_path(config["output_dir"])
    HASHES = Hashes(f"{OUT}/{RECORD}/hashes.json")
    RECIPES = describe_recipes(config, HASHES.find)
    if snakemake_insides.is_planning(workflow):
        SHARDS = find_shards(config["shards"])
        require_distinct(SHARDS, config["output_dir"])
        MINE = PART.select(SHARDS)
        VERSIONS = find_versions(MINE.values())
        FOLDER = compare_folder(
            OUT, SHARDS, RECIPES, HASHES, logger.warning, VERSIONS, PART
        )
        JOBS = begin_jobs(MINE, config["shards_per_job"], VERSIONS, PART)
    else:  # a process that an executor started for a job; the main process has planned it
        SHARDS, _ = read_run(OUT)
        MINE = PART.select(SHARDS)
        FOLDER, JOBS, VERSIONS = Comparison(), load_jobs(OUT, PART), {}
    if "apptainer" in DEPLOYMENTS:
        check_image(config["container"])
        shown = [*SHARDS.values(), f"{OUT}/summary.json"]
        os.environ.update(describe_end(os.environ))
        os.environ.update(
            describe_container(shown, find_files(config), config["gpu"] > 0, os.environ)
        )
except TarquetError as error:
    raise WorkflowError(str(error))

if FOLDER.strays:
    logger.warning(describe_strays(FOLDER.strays))
