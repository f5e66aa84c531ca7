"""Rule summarize: a script and not a command, because a hundred thousand paths do not fit on a command line."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path.cwd()))  # a clone that is not installed, as `python -m embedders` would find it
from embedders.summary import summarize_run, write_summary

with Path(snakemake.log[0]).open("w") as log:  # noqa: F821
    summary = summarize_run(snakemake.input.embeddings, snakemake.input.ledgers)  # noqa: F821
    write_summary(summary, snakemake.output[0])  # noqa: F821
    for stream in (log, sys.stderr):
        print(summary.describe(), file=stream)
