# All the shards -> one summary, computed from the footers of their outputs, their ledgers and their ids.
#
# outputs: {output_dir}/summary.json


# Reads footers and ids for a short time, not worth waiting in a cluster's queue; GPU nodes may refuse a job without a GPU.
localrules:
    summarize,


rule summarize:
    """Write the totals of the run."""
    input:
        list_embedded,
    output:
        f"{OUT}/summary.json",
    log:
        f"{OUT}/logs/summarize.log",
    conda:
        "../../envs/embed.yaml"
    # The path of a file, because a hundred thousand names do not fit on a command line.
    params:
        shards=f"{OUT}/run_shards.json",
    shell:
        """
        python -m embedders summarize {params.shards:q} {output:q} 2>&1 | tee {log:q}
        """
