# Tarquet: tar shards in, Parquet files of image embeddings out.
#
#   snakemake --cores all --resources gpu=8        on one machine with 8 GPUs
#   snakemake -n                                   show what would be done, and why
#   snakemake retry                                embed the samples that failed again
#
# config.yaml says what to embed and with which model; workflow/schemas/config.schema.yaml explains every key.
# Results are written to {output_dir}:
#
#   embeddings/{shard}.parquet    the vectors, one row per embedded sample
#   ledger/{shard}.parquet        the samples that were not embedded, and why
#   scores/                       the scores of the vectors, if config.yaml asks for any
#   near_copies.parquet           pairs and groups of near copies, if config.yaml asks for them
#   summary.json                  totals of the run
#   report.html                   a report to look at in a browser
#   run_config.yaml               the configuration of the run
#   run_shards.json               the path of each shard by name
#   record/                       what each result was made from
#   logs/, benchmarks/            one file per job
#   retried/                      what `snakemake retry` embedded

from snakemake.utils import min_version

min_version("9.8")


include: "workflow/rules/common.smk"


# Only used with --sdm apptainer.
container: config["container"]


include: "workflow/rules/jobs.smk"
include: "workflow/rules/handlers.smk"
include: "workflow/rules/embed.smk"
include: "workflow/rules/score.smk"
include: "workflow/rules/summary.smk"
include: "workflow/rules/near_copies.smk"
include: "workflow/rules/report.smk"
include: "workflow/rules/retry.smk"


onstart:
    require_python()
    try_classes()
    begin_run()
    stop_in_time()
    follow_run(OUT, len(MINE), JOBS.by_shard, logger.info)


onsuccess:
    name_new_strays()
    name_next_step()


onerror:
    name_failures()


rule all:
    """Make all the results that config.yaml asks for."""
    default_target: True
    input:
        f"{OUT}/summary.json" if PART.is_whole else list_part,
        expand(f"{OUT}/scores/{{score}}/{{shard}}.parquet", score=SCORES, shard=MINE),
        f"{OUT}/near_copies.parquet"
        if config["near_copies"]["cosine"] and PART.is_whole
        else [],
        f"{OUT}/report.html" if config["report"] and PART.is_whole else [],
