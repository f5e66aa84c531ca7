# All the shards -> one summary, counted from the footers of what the shards left.
#
# outputs: {output_dir}/summary.json


# It reads footers for seconds: not worth a wait in a cluster's queue, whose nodes with GPUs may refuse a job without.
localrules:
    summarize,


rule summarize:
    """Count what the shards left."""
    input:
        list_embedded,
    output:
        f"{OUT}/summary.json",
    log:
        f"{OUT}/logs/summarize.log",
    conda:
        "../../envs/embed.yaml"
    # A file, because a hundred thousand names do not fit on a command line.
    params:
        shards=f"{OUT}/run_shards.json",
    shell:
        """
        python -m embedders summarize {params.shards:q} {output:q} 2>&1 | tee {log:q}
        """
