"""`tarquet export`: the command; it turns its options into one call."""

import click


@click.command(short_help="Export a finished run to another format.")
@click.argument("run", type=click.Path())
@click.argument("folder", type=click.Path())
@click.option("--to", "form", type=click.Choice(["npy", "lance", "huggingface"]), required=True, help="The format.")
def export(run, folder, form) -> None:
    """Write the vectors of RUN, the output_dir of a finished run, to FOLDER, which appears complete or not at all.

    npy: vectors.npy, to be memory-mapped, and keys.parquet in the same order of rows. lance: a table that LanceDB
    opens. huggingface: a data set with its card. The same command continues an export that was stopped.

    Example: python -m embedders export results vectors --to npy
    """
    from embedders.export.export import export_run

    done = export_run(run, form, folder)
    vectors = f"{done.total} vectors of {done.dimension} dimensions, {done.dtype}"
    click.echo(f"{folder}: {vectors}, from {len(done.rows)} shards")
