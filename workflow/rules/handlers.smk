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


def begin_run():
    """Claim the output folder, and save the inputs of the run in it.

    These are the merged configuration (file, --configfile, --config, defaults) and the path of each shard by name.
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


def name_failures():
    """Print a line at the end of a run for each shard that was tried and has no result."""
    for line in describe_failures(OUT, SHARDS, JOBS, SCORES):
        print(line, file=sys.stderr)
