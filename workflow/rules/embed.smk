# One shard -> one Parquet file of vectors, and one that names the samples which were not embedded. With
# shards_per_job one process takes several shards; each has the same outputs as by itself.
#
# outputs: {output_dir}/embeddings/{shard}.parquet, {output_dir}/ledger/{shard}.parquet

if config["shards_per_job"] == 1:

    rule embed:
        input:
            find_input("embeddings"),
        output:
            embeddings=[f"{OUT}/embeddings/{{shard}}.parquet"],
            ledgers=[f"{OUT}/ledger/{{shard}}.parquet"],
        log:
            f"{OUT}/logs/embed/{{shard}}.log",
        benchmark:
            f"{OUT}/benchmarks/embed/{{shard}}.tsv"
        conda:
            "../../envs/embed.yaml"
        threads: config["threads"]
        resources:
            gpu=config["gpu"],
            mem_mb=grow(config["mem_mb"]),
            runtime=grow(config["runtime"]),
        params:
            **EMBED_PARAMS,
            extra="",
        shell:
            EMBED_COMMAND

else:
    # A rule for each job, because the outputs of one rule must all have the same wildcards.
    for number, group in enumerate(JOBS):

        rule:
            name:
                f"embed_{number:05d}"
            input:
                find_inputs(group),
            output:
                embeddings=[f"{OUT}/embeddings/{shard}.parquet" for shard in group],
                ledgers=[f"{OUT}/ledger/{shard}.parquet" for shard in group],
            log:
                f"{OUT}/logs/embed/{group[0]}.log",
            benchmark:
                f"{OUT}/benchmarks/embed/{group[0]}.tsv"
            conda:
                "../../envs/embed.yaml"
            threads: config["threads"]
            resources:
                gpu=config["gpu"],
                mem_mb=grow(config["mem_mb"]),
                runtime=grow(config["runtime"] * len(group)),
            params:
                **EMBED_PARAMS,
                extra=lambda wildcards, threads: f"--finished {shlex.quote(FINISHED)}",
            shell:
                EMBED_COMMAND

    # Each rule has left its function among the names of this workflow, which Snakemake copies several times for each
    # job: with thousands of rules that is most of the time to plan a run. Nothing looks for them there.
    for number in range(len(JOBS)):
        globals().pop(f"__embed_{number:05d}", None)
