"""`tarquet near-copies`: the steps of a search, as the workflow runs them. Options in, one call out."""

import logging

import click

from embedders.errors import ConfigError


@click.group("near-copies", short_help="Find near copies, as the workflow does.")
def near_copies() -> None:
    """Find the near copies in a finished run. `near_copies: {cosine: 0.96}` in config.yaml runs these four steps."""
    logging.getLogger("faiss").setLevel(logging.WARNING)  # it says which instructions of the processor it uses
    try:
        import faiss  # noqa: F401
        import scipy  # noqa: F401
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"near_copies: it needs {error.name}, which is not installed; expected it where jobs run; pip install "
            "'tarquet[near-copies]'"
        ) from error


def thread_option(command):
    """Add the number of threads."""
    return click.option("--threads", type=click.IntRange(1), default=1, help="Threads to compute with.")(command)


cosine_option = click.option(
    "--cosine", type=click.FloatRange(0, 1), required=True, help="The least cosine of a pair."
)


@near_copies.command(short_help="Find the centres of clusters.")
@click.argument("run", type=click.Path())
@click.argument("output", type=click.Path())
@thread_option
def plan(run, output, threads) -> None:
    """Find in a sample of RUN, an output_dir, the centres of clusters, and write them to OUTPUT."""
    from embedders.copies.plan import make_plan
    from embedders.copies.search import set_threads
    from embedders.output.files import write_whole
    from embedders.output.run import open_run

    set_threads(threads)
    made = make_plan(open_run(run))
    with write_whole(output) as file:
        made.write(file)
    click.echo(f"{len(made.centres)} clusters for {made.starts[-1]} rows")


@near_copies.command(short_help="Write the rows of some shards by cluster.")
@click.argument("run", type=click.Path())
@click.argument("plan", type=click.Path())
@click.argument("rows", type=click.Path())
@click.argument("offsets", type=click.Path())
@click.option("--part", type=int, nargs=2, required=True, help="Which part of the shards, of how many.")
@cosine_option
@thread_option
def assign(run, plan, rows, offsets, part, cosine, threads) -> None:
    """Write the rows of some shards of RUN to ROWS, by the clusters of PLAN, and to OFFSETS where each begins."""
    from embedders.copies.clusters import assign
    from embedders.copies.plan import read_plan
    from embedders.copies.search import set_threads
    from embedders.copies.settings import choose_part
    from embedders.output.files import write_whole

    set_threads(threads)
    made = read_plan(plan)
    files = {shard: f"{run}/embeddings/{shard}.parquet" for shard in choose_part(made.shards, *part)}
    with write_whole(rows) as rows_file, write_whole(offsets) as offsets_file:
        skipped = assign(made, files, cosine, rows_file, offsets_file)
    click.echo(f"{len(files)} shards; {skipped} vectors are zero, or hold NaN or infinity, and are left out")


@near_copies.command(short_help="Compare the rows of some clusters.")
@click.argument("plan", type=click.Path())
@click.argument("output", type=click.Path())
@click.option("--assigned", required=True, help="Folder of the outputs of `assign`, 0.rows, 0.offsets.npy and so on.")
@click.option("--part", type=int, nargs=2, required=True, help="Which part of the clusters, of how many.")
@cosine_option
@thread_option
def compare(plan, output, assigned, part, cosine, threads) -> None:
    """Find the near copies in some clusters of PLAN, and write the pairs to OUTPUT."""
    import numpy as np

    from embedders.copies.clusters import AssignedRows
    from embedders.copies.compare import compare
    from embedders.copies.plan import read_plan
    from embedders.copies.search import set_threads
    from embedders.copies.settings import choose_part
    from embedders.output.files import write_whole

    set_threads(threads)
    centres = read_plan(plan).centres
    clusters = choose_part(range(len(centres)), *part)
    files = [(f"{assigned}/{number}.rows", f"{assigned}/{number}.offsets.npy") for number in range(part[1])]
    pairs, compared = compare(AssignedRows(files, centres.shape[1]), clusters, cosine)
    with write_whole(output) as file:
        np.savez(file, pairs=pairs, compared=compared)
    click.echo(f"{len(pairs)} pairs of {compared} rows in {len(clusters)} clusters")


@near_copies.command("list", short_help="Write the list of near copies.")
@click.argument("run", type=click.Path())
@click.argument("plan", type=click.Path())
@click.argument("pairs", nargs=-1, required=True, type=click.Path())
@click.option("--output", required=True, help="The list.")
@click.option(
    "--keep", type=click.Choice(["first", "largest"]), default="first", help="Which image of a group to keep."
)
@cosine_option
def list_copies(run, plan, pairs, output, keep, cosine) -> None:
    """Group PAIRS, choose which image of each group to keep, and write all to OUTPUT."""
    from embedders.copies.groups import list_near_copies
    from embedders.copies.plan import read_plan
    from embedders.output.run import open_run

    counts = list_near_copies(open_run(run), read_plan(plan), list(pairs), cosine, keep, output)
    click.echo(counts.describe())
