# The vectors of one shard -> their scores by one classifier. Reads Parquet and never a tar, so a changed classifier
# embeds nothing again.
#
# outputs: {output_dir}/scores/{score}/{shard}.parquet, where {score} is the pred_column or the class


rule score:
    """Score the vectors of one shard with one classifier."""
    input:
        find_vectors,
    output:
        f"{OUT}/scores/{{score}}/{{shard}}.parquet",
    log:
        f"{OUT}/logs/score/{{score}}/{{shard}}.log",
    benchmark:
        f"{OUT}/benchmarks/score/{{score}}/{{shard}}.tsv"
    wildcard_constraints:
        score="[^/]+",
    conda:
        "../../envs/embed.yaml"
    threads: config["threads"]
    resources:
        gpu=config["gpu"],
        mem_mb=grow(config["mem_mb"]),
        runtime=grow(config["runtime"]),
    params:
        vectors=f"{OUT}/embeddings/{{shard}}.parquet",
        options=get_score_options,
    shell:
        """
        exec python -m embedders score {params.vectors:q} {output:q} \
            {params.options} \
            --threads {threads} \
            >{log:q} 2>&1
        """
