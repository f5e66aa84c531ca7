# The results of all shards -> one HTML page, which `snakemake --report` includes as well.
#
# outputs: {output_dir}/report.html


# Reads a sample of fixed size and needs no GPU, so, like `summarize`, it is not worth waiting in a cluster's queue.
localrules:
    write_report,


rule write_report:
    """Write the report of the run."""
    input:
        # The summary stands for all the vectors, because it changes when any of them does.
        find_summary,
        expand(f"{OUT}/scores/{{score}}/{{shard}}.parquet", score=SCORES, shard=SHARDS),
        f"{OUT}/near_copies.parquet" if config["near_copies"]["cosine"] else [],
    output:
        report(
            f"{OUT}/report.html", caption="../report/report.rst", category="Embeddings"
        ),
    log:
        f"{OUT}/logs/report.log",
    conda:
        "../../envs/report.yaml"
    # Runs outside the container, with Snakemake's own Python, because the image need not have the report's libraries.
    container:
        None
    params:
        folder=subpath(output[0], parent=True),
        column=REPORT_COLUMN,
    shell:
        """
        python -m embedders report {params.folder:q} \
            --output {output:q} \
            --column={params.column:q} \
            >{log:q} 2>&1
        """
