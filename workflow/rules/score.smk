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
        device=lambda wildcards, threads: config["device"],
        gpu_wait_timeout_s=lambda wildcards, threads: config["gpu_wait_timeout_s"],
        gpu_max_used_mb=lambda wildcards, threads: config["gpu_max_used_mb"],
        gpu_max_processes=lambda wildcards, threads: config["gpu_max_processes"],
        jobs_per_gpu=lambda wildcards, threads: config["jobs_per_gpu"],
    shell:
        """
        exec python -m embedders score {input:q} {output:q} \
            --classifier {params.classifier:q} \
            --classifier-args {params.args:q} \
            --device {params.device} \
            --gpu-wait-timeout-s {params.gpu_wait_timeout_s} \
            --gpu-max-used-mb {params.gpu_max_used_mb} \
            --gpu-max-processes {params.gpu_max_processes} \
            --jobs-per-gpu {params.jobs_per_gpu} \
            --threads {threads} \
            >{log:q} 2>&1
        """
