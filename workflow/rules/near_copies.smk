# All the vectors -> the pairs of near copies, their groups, and which image of each group to keep. Four steps: find
# the centres of clusters in a sample; assign the rows of each shard to clusters; compare the rows within clusters;
# write one list of all pairs.
#
# outputs: {output_dir}/near_copies.parquet; {output_dir}/.near_copies/ has the intermediate files of its jobs


# Only reads the keys of copies, so, like `summarize`, it is not worth waiting in a cluster's queue.
localrules:
    list_near_copies,


rule plan_near_copies:
    """Find the centres of the clusters in a sample of the vectors."""
    input:
        list_embedded,
    output:
        f"{COPIES}/plan.npz",
    log:
        f"{OUT}/logs/near_copies/plan.log",
    benchmark:
        f"{OUT}/benchmarks/near_copies/plan.tsv"
    conda:
        "../../envs/near_copies.yaml"
    threads: config["threads"]
    resources:
        mem_mb=grow(config["mem_mb"]),
        runtime=grow(config["runtime"]),
    params:
        folder=subpath(output[0], ancestor=3),
        column=config["near_copies"]["column"],
    shell:
        """
        exec python -m embedders near-copies plan {params.folder:q} {output:q} \
            --column={params.column:q} \
            --threads {threads} \
            >{log:q} 2>&1
        """


rule assign_near_copies:
    """Assign the rows of some shards to clusters."""
    input:
        plan=f"{COPIES}/plan.npz",
    output:
        rows=temp(f"{COPIES}/{{part}}.rows"),
        offsets=temp(f"{COPIES}/{{part}}.offsets.npy"),
    log:
        f"{OUT}/logs/near_copies/assign_{{part}}.log",
    benchmark:
        f"{OUT}/benchmarks/near_copies/assign_{{part}}.tsv"
    wildcard_constraints:
        part=r"\d+",
    conda:
        "../../envs/near_copies.yaml"
    threads: config["threads"]
    resources:
        gpu=config["gpu"],
        mem_mb=grow(config["mem_mb"]),
        runtime=grow(config["runtime"]),
    params:
        folder=subpath(input.plan, ancestor=3),
        parts=len(COPY_PARTS),
        cosine=config["near_copies"]["cosine"],
        device=get_device_options,
    shell:
        """
        exec python -m embedders near-copies assign {params.folder:q} {input.plan:q} {output.rows:q} {output.offsets:q} \
            --part {wildcards.part} {params.parts} \
            --cosine {params.cosine} \
            {params.device} \
            --threads {threads} \
            >{log:q} 2>&1
        """


rule compare_near_copies:
    """Find the pairs of near copies in some clusters."""
    input:
        plan=f"{COPIES}/plan.npz",
        assigned=expand(
            f"{COPIES}/{{part}}.{{kind}}",
            part=COPY_PARTS,
            kind=["rows", "offsets.npy"],
        ),
    output:
        f"{COPIES}/{{part}}.pairs.npz",
    log:
        f"{OUT}/logs/near_copies/compare_{{part}}.log",
    benchmark:
        f"{OUT}/benchmarks/near_copies/compare_{{part}}.tsv"
    wildcard_constraints:
        part=r"\d+",
    conda:
        "../../envs/near_copies.yaml"
    threads: config["threads"]
    resources:
        gpu=config["gpu"],
        mem_mb=grow(config["mem_mb"]),
        runtime=grow(config["runtime"]),
    params:
        folder=subpath(output[0], parent=True),
        parts=len(COPY_PARTS),
        cosine=config["near_copies"]["cosine"],
        device=get_device_options,
    shell:
        """
        exec python -m embedders near-copies compare {input.plan:q} {output:q} \
            --assigned {params.folder:q} \
            --part {wildcards.part} {params.parts} \
            --cosine {params.cosine} \
            {params.device} \
            --threads {threads} \
            >{log:q} 2>&1
        """


rule list_near_copies:
    """Write the list of pairs and groups, and which image of each group to keep."""
    input:
        plan=f"{COPIES}/plan.npz",
        pairs=find_pairs,
    output:
        f"{OUT}/near_copies.parquet",
    log:
        f"{OUT}/logs/near_copies/list.log",
    conda:
        "../../envs/near_copies.yaml"
    params:
        folder=subpath(output[0], parent=True),
        cosine=config["near_copies"]["cosine"],
        keep=config["near_copies"]["keep"],
    shell:
        """
        python -m embedders near-copies list {params.folder:q} {input.plan:q} {input.pairs:q} \
            --output {output:q} \
            --cosine {params.cosine} \
            --keep {params.keep} \
            2>&1 | tee {log:q}
        """
