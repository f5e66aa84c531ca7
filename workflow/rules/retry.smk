# The samples that failed, once more, after a fix or with another embedder: `snakemake retry`. What was embedded
# is not touched; the vectors come into files of their own, to be read beside the others.
#
# outputs: {output_dir}/retried/embeddings/{shard}.parquet, {output_dir}/retried/ledger/{shard}.parquet


rule retry:
    """Ask for the samples that failed, of all shards."""
    input:
        list_retried,


rule embed_failed:
    """Embed the samples of a shard that its ledger names."""
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
        # The ledger is no input, or a new class in config.yaml would first embed the whole shard again.
        options=give_retry_options,
    shell:
        EMBED_COMMAND
