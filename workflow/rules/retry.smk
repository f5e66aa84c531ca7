# `snakemake retry` embeds the samples that failed again, after a fix or with another embedder. It does not change the
# existing outputs; the new vectors are in separate files, to be read together with the others.
#
# outputs: {output_dir}/retried/embeddings/{shard}.parquet, {output_dir}/retried/ledger/{shard}.parquet


rule retry:
    """Retry the samples that failed in all shards."""
    input:
        list_retried,


rule embed_failed:
    """Embed the samples in the ledger of a shard."""
    input:
        find_input("retried/embeddings"),
    output:
        embeddings=f"{OUT}/retried/embeddings/{{shard}}.parquet",
        ledger=f"{OUT}/retried/ledger/{{shard}}.parquet",
    log:
        f"{OUT}/logs/retry/{{shard}}.log",
    benchmark:
        f"{OUT}/benchmarks/retry/{{shard}}.tsv"
    conda:
        "../../envs/embed.yaml"
    threads: config["threads"]
    resources:
        gpu=config["gpu"],
        mem_mb=grow(config["mem_mb"]),
        runtime=grow(config["runtime"]),
    params:
        shards=write_shard_of_job,
        # The ledger is not an input; if it were, a new class in config.yaml would first embed the whole shard again.
        options=get_retry_options,
    shell:
        EMBED_COMMAND
