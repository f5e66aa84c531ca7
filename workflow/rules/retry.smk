# The samples that failed, once more, after a fix or with another embedder: `snakemake retry`. What was embedded
# is not touched; the vectors come into files of their own, to be read beside the others.
#
# outputs: {output_dir}/retried/embeddings/{shard}.parquet, {output_dir}/retried/ledger/{shard}.parquet


rule retry:
    input:
        list_retried,


rule embed_failed:
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
        shards=name_shard,
        # The ledger is no input, or a new class in config.yaml would first embed the whole shard again.
        options=give_retry_options,
    shell:
        EMBED_COMMAND
