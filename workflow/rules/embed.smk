# One shard -> one Parquet file of vectors, and one that names the samples which were not embedded.
#
# outputs: {output_dir}/embeddings/{shard}.parquet, {output_dir}/ledger/{shard}.parquet


rule embed:
    input:
        shard=lambda wildcards: SHARDS[wildcards.shard],
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
        mem_mb=config["mem_mb"],
        runtime=config["runtime"],
    # What decides the vectors is a param, and a change reruns the shards. The functions of threads are params that
    # Snakemake does not compare: they decide only how vectors are made, or whether a shard passes.
    params:
        embedder=config["embedder"]["class"],
        args=lambda wildcards: json.dumps(config["embedder"]["args"]),
        sources=lambda wildcards: json.dumps(SOURCES),
        id_col=config["id_col"],
        metadata_columns=lambda wildcards: json.dumps(config["metadata_columns"]),
        embedding_dtype=config["embedding_dtype"],
        max_failed_fraction=lambda wildcards, threads: config["max_failed_fraction"],
        accept_damaged_shards=lambda wildcards, threads: (
            "--accept-damaged-shards" if config["accept_damaged_shards"] else ""
        ),
        only="",
        device=lambda wildcards, threads: config["device"],
        gpu_wait_timeout_s=lambda wildcards, threads: config["gpu_wait_timeout_s"],
        gpu_max_used_mb=lambda wildcards, threads: config["gpu_max_used_mb"],
        gpu_max_processes=lambda wildcards, threads: config["gpu_max_processes"],
        jobs_per_gpu=lambda wildcards, threads: config["jobs_per_gpu"],
    shell:
        """
        python -m embedders embed {input.shard:q} {output.embeddings:q} \
            --ledger {output.ledger:q} \
            --embedder {params.embedder:q} \
            --embedder-args {params.args:q} \
            --id-col {params.id_col:q} \
            --metadata-columns {params.metadata_columns:q} \
            --embedding-dtype {params.embedding_dtype:q} \
            --max-failed-fraction {params.max_failed_fraction} \
            {params.accept_damaged_shards} {params.only} \
            --device {params.device} \
            --gpu-wait-timeout-s {params.gpu_wait_timeout_s} \
            --gpu-max-used-mb {params.gpu_max_used_mb} \
            --gpu-max-processes {params.gpu_max_processes} \
            --jobs-per-gpu {params.jobs_per_gpu} \
            --threads {threads} \
            >{log:q} 2>&1
        """
