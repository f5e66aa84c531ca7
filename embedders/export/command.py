"""`tarquet export`: options in, one call out."""

import click


@click.command(short_help="Hand a finished run over in another format.")
@click.argument("run", type=click.Path())
@click.argument("folder", type=click.Path())
@click.option("--to", "form", type=click.Choice(["npy", "lance", "huggingface"]), required=True, help="The format.")
def export(run, folder, form) -> None:
    """Write the vectors of RUN, the output_dir of a finished run, into FOLDER, which appears whole or not at all.

    npy: vectors.npy, to be mapped into memory, and keys.parquet row for row. lance: a table that LanceDB opens.
    huggingface: a data set with its card. One that was stopped goes on where it was.

    Example: python -m embedders export results vectors --to npy
    """
    from embedders.export.export import export_run

    done = export_run(run, form, folder)
    vectors = f"{done.total} vectors of {done.dimension} numbers, {done.dtype}"
    click.echo(f"{folder}: {vectors}, from {len(done.rows)} shards")
