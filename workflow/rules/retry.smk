# The samples that failed, once more, after a fix or with another embedder: `snakemake retry`. What was embedded
# is not touched; the vectors come into files of their own, to be read beside the others.
#
# outputs: {output_dir}/retried/embeddings/{shard}.parquet, {output_dir}/retried/ledger/{shard}.parquet


rule retry:
    input:
        list_retried,


use rule embed as embed_failed with:
    output:
        embeddings=f"{OUT}/retried/embeddings/{{shard}}.parquet",
        ledger=f"{OUT}/retried/ledger/{{shard}}.parquet",
    log:
        f"{OUT}/logs/retry/{{shard}}.log",
    benchmark:
        f"{OUT}/benchmarks/retry/{{shard}}.tsv"
    params:
        # The ledger is no input, or a new class in config.yaml would first embed the whole shard again. All of these
        # samples failed once, so the limit of failures says nothing here.
        only=lambda wildcards: (
            f"--only {shlex.quote(f'{OUT}/ledger/{wildcards.shard}.parquet')} --max-failed-fraction 1"
        ),
        ledger=lambda wildcards: fingerprint_file(
            f"{OUT}/ledger/{wildcards.shard}.parquet"
        ),
