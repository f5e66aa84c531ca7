# What the shards left -> one HTML file for a person, which `snakemake --report` shows as well.
#
# outputs: {output_dir}/report.html


# It reads a sample, however large the run is, and needs no GPU: as `summarize` not worth a wait in a cluster's queue.
localrules:
    write_report,


rule write_report:
    """Draw the page that shows what a run gave."""
    input:
        # The summary stands for all the vectors; it changes with each of them.
        f"{OUT}/summary.json",
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
    # Outside, with Snakemake's own Python: the image is for jobs, and need not hold the report's libraries.
    container:
        None
    params:
        folder=subpath(output[0], parent=True),
    shell:
        """
        python -m embedders report {params.folder:q} --output {output:q} >{log:q} 2>&1
        """
