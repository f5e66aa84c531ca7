# What happens before the first job and after the last one.
#
# outputs: {output_dir}/run_config.yaml and run_shards.json


def require_python():
    """Stop the run before its first job if no job could start, or if no report could be written at the end."""
    try:
        if not DEPLOYMENTS & {"apptainer", "conda"}:
            check_job_python(fetches=any(map(is_remote, SHARDS.values())))
        if config["report"] and "conda" not in DEPLOYMENTS:
            check_report_python(shutil.which("python") or "python")
    except TarquetError as error:
        raise WorkflowError(str(error))


def try_classes():
    """Stop the run before its first job if it would replace results by those of a class that cannot be built."""
    if DEPLOYMENTS & {"apptainer", "conda"}:
        return  # only the Python of the jobs could tell
    classes = {"embeddings": (config["embedder"], "embedder")}
    classes |= {
        f"scores/{name}": (score, "classifier") for name, score in SCORES.items()
    }
    replaced = {
        kind
        for kind in classes
        for name in FOLDER.stale
        if name.startswith(f"{kind}/") and os.path.exists(f"{OUT}/{name}.parquet")
    }
    try:
        for kind in sorted(replaced):
            made_by, what = classes[kind]
            check_class(made_by["class"], made_by["args"], what)
    except TarquetError as error:
        raise WorkflowError(str(error))


def begin_run():
    """Claim the output folder, and save the inputs of the run in it.

    These are the merged configuration (file, --configfile, --config, defaults) and the path of each shard by name.
    """
    try:
        plan = {
            "list of shards": digest(list(SHARDS)),
            "configuration": digest(RECIPES),
        }
        now = claim_folder(OUT, PART, plan)
        unfinished = [
            path for shard, path in MINE.items() if not FOLDER.is_finished(shard)
        ]
        check_times(unfinished, now)
    except TarquetError as error:
        raise WorkflowError(str(error))
    HASHES.save()
    JOBS.save(OUT)
    # The same for all the parts of a run.
    of_the_run = {key: value for key, value in config.items() if key != "part"}
    with write_whole(f"{OUT}/run_config.yaml") as file:
        file.write(yaml.safe_dump(of_the_run, sort_keys=False).encode())
    with write_whole(f"{OUT}/run_shards.json") as file:
        file.write(json.dumps(SHARDS, indent=0).encode())


def stop_in_time():
    """Start no further job when the allocation that Snakemake runs in has ten minutes left, and end with the last."""
    end_before_limit(
        600,
        lambda line: logger.warning(
            f"{line}: no further job is started; the same command continues the run"
        ),
    )


def name_failures():
    """Print a line at the end of a run for each shard that was tried and has no result, and for an old summary."""
    for line in describe_failures(OUT, MINE, JOBS, SCORES):
        print(line, file=sys.stderr)
    for line in describe_old_totals(OUT, SHARDS):
        print(line, file=sys.stderr)


def name_new_strays():
    """Name the files that became strays during the run, which named the others when it started."""
    strays = find_strays(OUT, SHARDS, SCORES)
    if new := {path: why for path, why in strays.items() if path not in FOLDER.strays}:
        logger.warning(describe_strays(new))


def name_next_step():
    """Say at the end of a part of a run what writes the summary."""
    if not PART.is_whole:
        print(
            f"part {PART} is finished: {len(MINE)} of {len(SHARDS)} shards; once all parts have ended, run snakemake "
            "without `part`, which embeds what they have left and writes the summary",
            file=sys.stderr,
        )
