# The vectors of one shard -> the scores that one classifier gives them. It reads Parquet and never a tar, so a changed
# classifier embeds nothing again.
#
# outputs: {output_dir}/scores/{score}/{shard}.parquet, where {score} is the pred_column or the class


rule score:
    input:
        f"{OUT}/embeddings/{{shard}}.parquet",
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
        classifier=lambda wildcards: SCORES[wildcards.score]["class"],
        args=lambda wildcards: json.dumps(SCORES[wildcards.score]["args"]),
        sources=lambda wildcards: json.dumps(SCORE_SOURCES[wildcards.score]),
        options=lambda wildcards, threads: DEVICE_OPTIONS,
    shell:
        """
        exec python -m embedders score {input:q} {output:q} \
            --classifier {params.classifier:q} \
            --classifier-args {params.args:q} \
            {params.options} \
            --threads {threads} \
            >{log:q} 2>&1
        """
