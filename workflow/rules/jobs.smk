# What a job reads, asks for and is told: the functions that the rules name.

import shlex


@cache
def plan_embedding():
    """Plan the jobs that embed: by input functions, since Snakemake's options are not known when this file is read."""
    if snakemake_insides.is_planning(workflow):
        unfinished = set(SHARDS)
        if not snakemake_insides.is_forced(workflow, "embed"):
            unfinished = set(filterfalse(FOLDER.is_finished, SHARDS))
        plan_jobs(JOBS, SHARDS, unfinished, config["shards_per_job"])
        # Snakemake would leave out a shard whose results are gone, as long as the summary is there.
        if unfinished or FOLDER.is_summary_stale:
            snakemake_insides.force(workflow, [f"{OUT}/summary.json"])


def list_embedded(wildcards):
    """Name what each job leaves, for the summary; of a shard whose vectors are there, the ledger."""
    plan_embedding()
    for job in JOBS.shards:
        output = JOBS.name_output(OUT, job)
        is_there = not JOBS.is_grouped and os.path.exists(output)
        yield f"{OUT}/ledger/{job}.parquet" if is_there else output


@cache
def force_stale(kind):
    """Have Snakemake make the outputs of a kind again that the record of the folder says are out of date.

    To be called by the input functions of their rules, so that no more is made than what was asked for.
    """
    for line in FOLDER.describe(kind):
        logger.warning(line)
    snakemake_insides.force(
        workflow,
        [
            f"{OUT}/{name}.parquet"
            for name in FOLDER.stale
            if name.startswith(f"{kind}/")
        ],
    )


def find_input(kind):
    """Return the input function of a rule that makes outputs of a kind from one shard.

    Its path, whose time does not count, because the record of the folder has it; or what has Snakemake fetch it first
    and remove the copy afterwards.
    """

    def find(wildcards):
        force_stale(kind)
        if wildcards.shard not in SHARDS:
            raise WorkflowError(
                f"{wildcards.shard!r} is the name of no shard; expected one that `shards` in config.yaml gives"
            )
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


def grow(amount):
    """Return a function that asks for an amount, and for as much more at each retry."""

    def ask(wildcards, attempt):
        # A job may have been killed for want of it.
        return amount * attempt

    return ask


def grow_runtime(wildcards, attempt):
    """Ask for the time of each shard of a job."""
    return config["runtime"] * len(JOBS.shards[wildcards.job]) * attempt


# The record of the folder says what must run again. A function of threads is a param that Snakemake does not compare.
def write_shard_of_job(wildcards, input, output, threads):
    """Write the shard of a job, and where its results go."""
    path = SHARDS[wildcards.shard]
    paths = (input[0], output.embeddings, output.ledger)
    return write_shards([paths], address=path if is_remote(path) else None)


def write_shards_of_job(wildcards, input, threads):
    """Write the shards of a job of several, and where their results go."""
    paths = [
        (path, f"{OUT}/embeddings/{shard}.parquet", f"{OUT}/ledger/{shard}.parquet")
        for path, shard in zip(input, JOBS.shards[wildcards.job])
    ]
    return write_shards(paths, part=JOBS.name_part(wildcards.job))


# Once for all jobs, because each call costs time for each job of a run.
EMBED_OPTIONS = write_embed_options(config, OUT, RECIPES["embeddings"])


def give_embed_options(wildcards, threads):
    """Write what vectors are made by."""
    return EMBED_OPTIONS


def give_retry_options(wildcards, threads):
    """Write the same, for the samples that failed alone."""
    only = shlex.quote(f"{OUT}/ledger/{wildcards.shard}.parquet")
    return f"{EMBED_OPTIONS} --only {only}"


def give_score_options(wildcards, threads):
    """Write what a score is made by."""
    recipe = RECIPES[f"scores/{wildcards.score}"]
    return write_score_options(config, SCORES[wildcards.score], OUT, recipe)


# exec: the process that Snakemake waits for, and that SLURM signals, is the job itself and no shell around it.
EMBED_COMMAND = """
    exec python -m embedders embed {params.shards} \
        {params.options} \
        --threads {threads} \
        > {log:q} 2>&1
"""
