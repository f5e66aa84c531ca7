# One shard -> one Parquet file of vectors, and one that lists the samples that were not embedded. With
# shards_per_job, one process embeds several shards; the outputs of each shard are the same.
#
# outputs: {output_dir}/embeddings/{shard}.parquet, {output_dir}/ledger/{shard}.parquet

if JOBS.is_grouped:

    rule embed:
        """Embed several shards in one process. Snakemake tracks a marker; the folder's record tracks each shard."""
        input:
            find_shards_of_job,
        output:
            touch(JOBS.name_output(OUT, "{job}")),
        log:
            f"{OUT}/logs/embed/{{job}}.log",
        benchmark:
            f"{OUT}/benchmarks/embed/{{job}}.tsv"
        conda:
            "../../envs/embed.yaml"
        threads: config["threads"]
        resources:
            gpu=config["gpu"],
            mem_mb=grow(config["mem_mb"]),
            runtime=grow_runtime,
        params:
            shards=write_shards_of_job,
            options=get_embed_options,
        shell:
            EMBED_COMMAND

else:

    rule embed:
        """Embed one shard."""
        input:
            find_input("embeddings"),
        output:
            embeddings=f"{OUT}/embeddings/{{shard}}.parquet",
            ledger=f"{OUT}/ledger/{{shard}}.parquet",
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
            shards=write_shard_of_job,
            options=get_embed_options,
        shell:
            EMBED_COMMAND
