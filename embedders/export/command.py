"""`tarquet export`: the command; it turns its options into one call."""

import click


@click.command(short_help="Write the vectors of a run in another format.")
@click.argument("run", type=click.Path())
@click.argument("folder", type=click.Path())
@click.option("--to", "form", type=click.Choice(["npy", "lance", "huggingface"]), required=True, help="The format.")
@click.option("--column", "columns", multiple=True, help="Column of vectors; can be repeated. By default all.")
def export(run, folder, form, columns) -> None:
    """Write the vectors of RUN, the output_dir of a finished run, to FOLDER, which appears complete or not at all.

    npy is one array, vectors.npy, with keys.parquet for the other columns; lance is a table for LanceDB; huggingface
    is a data set for Hugging Face, with its card.

    After an interruption, the same command continues.

    Example: tarquet export results vectors --to npy
    """
    from embedders.export.export import export_run

    done = export_run(run, form, folder, columns)
    click.echo(f"{folder}: {done.describe()}, from {len(done.rows)} shards")
