# The functions of the rules: input functions, resources and params.

import shlex


@cache
def plan_embedding():
    """Plan the embedding jobs. Called by input functions, because Snakemake's options are unknown at parse time."""
    if snakemake_insides.is_planning(workflow):
        if not PART.is_whole:
            # That lock is for one run at a time, and is left behind by a killed one; a part claims the output folder.
            snakemake_insides.leave_unlocked(workflow)
        unfinished = set(MINE)
        if not snakemake_insides.is_forced(workflow, "embed"):
            unfinished = set(filterfalse(FOLDER.is_finished, MINE))
        plan_jobs(JOBS, MINE, unfinished, config["shards_per_job"], VERSIONS)
        # Snakemake would skip a shard whose results are gone as long as the summary exists.
        if unfinished or FOLDER.is_summary_stale:
            snakemake_insides.force(workflow, [f"{OUT}/summary.json"])


def list_embedded(wildcards):
    """Return the outputs of `list_part`, if they are those of all the shards."""
    if not PART.is_whole:
        raise WorkflowError(
            f"config: part is {str(PART)!r}, and a part of a run makes only the vectors and scores of its shards; "
            "leave `part` out, once all parts have ended"
        )
    return list_part(wildcards)


def list_part(wildcards):
    """Yield the output of each embedding job; for a shard whose vectors exist, its ledger."""
    plan_embedding()
    for job in JOBS.shards:
        output = JOBS.name_output(OUT, job)
        exists = not JOBS.is_grouped and os.path.exists(output)
        yield f"{OUT}/ledger/{job}.parquet" if exists else output


@cache
def force_stale(kind):
    """Make Snakemake remake the outputs of a kind that are out of date according to the record of the folder.

    The input functions of their rules call it, so that only requested outputs are made.
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

    It returns the path of the shard, marked `ancient` because the record of the folder tracks changes. A shard with an
    address is no input: its job fetches it.
    """

    def find(wildcards):
        force_stale(kind)
        if wildcards.shard not in MINE:
            of_part = "" if PART.is_whole else f" that belongs to part {PART}"
            raise WorkflowError(
                f"there is no shard named {wildcards.shard!r}{of_part}; expected one of `shards` in config.yaml"
            )
        return ancient(list(filterfalse(is_remote, [SHARDS[wildcards.shard]])))

    return find


def find_shards_of_job(wildcards):
    """Return the paths of the shards of a grouped job, without those that have an address."""
    force_stale("embeddings")
    paths = [SHARDS[shard] for shard in JOBS.shards[wildcards.job]]
    return ancient(list(filterfalse(is_remote, paths)))


def find_vectors(wildcards):
    """Return the file that exists once the vectors of a shard are finished."""
    force_stale("scores")
    plan_embedding()
    job = JOBS.by_shard.get(wildcards.shard)
    return (
        JOBS.name_output(OUT, job)
        if job
        else f"{OUT}/embeddings/{wildcards.shard}.parquet"
    )


@cache
def find_retried():
    """Return the shards that `snakemake retry` takes, those whose ledgers are not empty, and say which it leaves out."""
    # Not at the top: it imports pyarrow, which no other target needs.
    from embedders.output.summary import find_failed_shards

    failed = find_failed_shards(f"{OUT}/ledger", MINE)
    for line in describe_retry(OUT, MINE, failed):
        logger.warning(line)
    return failed


def list_retried(wildcards):
    """Return the outputs of `snakemake retry`."""
    return expand(f"{OUT}/retried/embeddings/{{shard}}.parquet", shard=find_retried())


def grow(amount):
    """Return a resource function: the amount times the number of the attempt."""

    def ask(wildcards, attempt):
        # The last attempt may have been killed because it had too little.
        return amount * attempt

    return ask


def grow_runtime(wildcards, attempt):
    """Return the time of a grouped job: that of one shard times the number of shards and of the attempt."""
    return config["runtime"] * len(JOBS.shards[wildcards.job]) * attempt


# The params below have `threads` as an argument, because Snakemake does not rerun a job when the value of such a param
# changes. The record of the folder says what must run again.
def write_shard_of_job(wildcards, output, threads):
    """Return the arguments for the shard of a job and its results."""
    return write_shards([(SHARDS[wildcards.shard], output.embeddings, output.ledger)])


def write_shards_of_job(wildcards, threads):
    """Return the arguments for the shards of a grouped job and their results."""
    paths = [
        (
            SHARDS[shard],
            f"{OUT}/embeddings/{shard}.parquet",
            f"{OUT}/ledger/{shard}.parquet",
        )
        for shard in JOBS.shards[wildcards.job]
    ]
    return write_shards(paths, addition=JOBS.name_addition(wildcards.job))


# Made once for all jobs, because making it for each job of a run takes time.
EMBED_OPTIONS = write_embed_options(config, OUT, RECIPES["embeddings"])


def get_embed_options(wildcards, threads):
    """Return the options of the embedder."""
    return EMBED_OPTIONS


def get_retry_options(wildcards, threads):
    """Return the options of the embedder, limited to the samples in the ledger of the shard."""
    only = shlex.quote(f"{OUT}/ledger/{wildcards.shard}.parquet")
    return f"{EMBED_OPTIONS} --only {only}"


def get_score_options(wildcards, threads):
    """Return the options of the classifier of a score."""
    recipe = RECIPES[f"scores/{wildcards.score}"]
    return write_score_options(config, SCORES[wildcards.score], OUT, recipe)


def get_device_options(wildcards, threads):
    """Return the options of a job that has no embedder or classifier, but may use a GPU."""
    return write_device_options(config)


# exec: the job itself replaces the shell, so that it is the process that Snakemake waits for and that SLURM signals.
EMBED_COMMAND = """
    exec python -m embedders embed {params.shards} \
        {params.options} \
        --threads {threads} \
        > {log:q} 2>&1
"""


# The intermediate files of near copies. The folder has a different name for each cosine, column and list of shards, so
# that files of two searches do not mix.
COPIES = f"{OUT}/.near_copies/{name_search(config['near_copies'], SHARDS)}"
COPY_PARTS = range(count_parts(len(SHARDS)))


def find_pairs(wildcards):
    """Return the files of pairs; force a new list if the present one was made with other settings, shards or vectors.

    If the vectors have changed since the search, for instance in a run without one, its plan is forced, and so all of it.
    """
    path, plan = f"{OUT}/near_copies.parquet", f"{COPIES}/plan.npz"
    if is_stale(path, config["near_copies"], SHARDS, FOLDER.made_from):
        snakemake_insides.force(workflow, [path])
    if FOLDER.made_from and is_search_stale(plan, FOLDER.made_from):
        snakemake_insides.force(workflow, [plan])
    return expand(f"{COPIES}/{{part}}.pairs.npz", part=COPY_PARTS)


# The column of vectors that the report shows.
REPORT_COLUMN = find_column(config)


def find_summary(wildcards):
    """Return the summary; force a new report if the present one shows another column."""
    path = f"{OUT}/report.html"
    if shows_other_column(path, REPORT_COLUMN):
        snakemake_insides.force(workflow, [path])
    return f"{OUT}/summary.json"
