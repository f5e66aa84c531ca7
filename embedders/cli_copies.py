"""`tarquet near-copies`: the commands for the steps of the search. Each turns its options into one call."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from embedders.errors import ConfigError
from embedders.gpu.device import pin_device
from embedders.gpu.terms import Terms
from embedders.terminal import device_options

if TYPE_CHECKING:
    from embedders.copies.search import Search


@click.group("near-copies", short_help="Find near copies in a finished run.")
def near_copies() -> None:
    """Find the near copies in a finished run, in four steps: plan, assign, compare, list.

    The workflow runs all of them if config.yaml has `near_copies: {cosine: 0.96}`.

    Example: tarquet near-copies plan results plan.npz
    """
    logging.getLogger("faiss").setLevel(logging.WARNING)  # it says which instructions of the processor it uses
    try:
        import faiss  # noqa: F401
        import scipy  # noqa: F401
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"near_copies: it needs {error.name}, which is not installed; expected it where jobs run; run "
            "pip install 'tarquet[near-copies]'"
        ) from error


def thread_option(command):
    """Add the number of threads."""
    return click.option("--threads", type=click.IntRange(1), default=1, help="CPU threads to compute with.")(command)


def part_option(items: str):
    """Add the part of the work that a command does."""
    of_which = f"Which part of the {items}, and of how many."
    return click.option("--part", type=int, nargs=2, required=True, metavar="PART PARTS", help=of_which)


cosine_option = click.option(
    "--cosine", type=click.FloatRange(0, 1), required=True, help="Smallest cosine similarity of a pair."
)


@near_copies.command(short_help="Find the centres of the clusters.")
@click.argument("run", type=click.Path())
@click.argument("output", type=click.Path())
@click.option("--column", default="", help="Column of vectors; by default the first with one vector per image.")
@thread_option
def plan(run, output, column, threads) -> None:
    """Find the centres of clusters in a sample of RUN, an output_dir, and write them to OUTPUT."""
    from embedders.copies.plan import make_plan
    from embedders.copies.search import set_threads
    from embedders.output.files import write_whole
    from embedders.output.run import open_run

    set_threads(threads)
    made = make_plan(open_run(run), column)
    with write_whole(output) as file:
        made.write(file)
    click.echo(f"{len(made.centres)} clusters for {made.starts[-1]} rows")


@contextmanager
def pin_search(work: str, threads: int, device: str, terms: Terms) -> Iterator["Search"]:
    """Lease a GPU and search on it, or search on the CPU; as `pin_device`."""
    from embedders.copies.search import CpuSearch, set_threads

    set_threads(threads)
    with pin_device(work, device, terms) as torch_device:
        if torch_device == "cpu":
            yield CpuSearch()
        else:
            from embedders.copies.gpu_search import GpuSearch  # imports torch, only now that the GPU is pinned

            yield GpuSearch(torch_device)


@near_copies.command(short_help="Sort the rows of some shards by cluster.")
@click.argument("run", type=click.Path())
@click.argument("plan", type=click.Path())
@click.argument("rows", type=click.Path())
@click.argument("offsets", type=click.Path())
@part_option("shards")
@cosine_option
@thread_option
@device_options
def assign(run, plan, rows, offsets, part, cosine, threads, device, terms) -> None:
    """Sort rows of some shards of RUN by the clusters of PLAN into ROWS, and write where each begins to OFFSETS."""
    from embedders.copies.clusters import assign
    from embedders.copies.plan import read_plan
    from embedders.copies.settings import choose_part
    from embedders.output.files import write_whole

    made = read_plan(plan)
    files = {shard: f"{run}/embeddings/{shard}.parquet" for shard in choose_part(made.shards, *part)}
    with (
        pin_search(f"near copies of {run}", threads, device, terms) as search,
        write_whole(rows) as rows_file,
        write_whole(offsets) as offsets_file,
    ):
        skipped = assign(made, files, cosine, search, rows_file, offsets_file)
    click.echo(f"{len(files)} shards; left out {skipped} vectors that are zero or contain NaN or infinity")


@near_copies.command(short_help="Compare the rows of some clusters.")
@click.argument("plan", type=click.Path())
@click.argument("output", type=click.Path())
@click.option(
    "--assigned", required=True, help="Folder with the outputs of `assign`: 0.rows, 0.offsets.npy and so on."
)
@part_option("clusters")
@cosine_option
@thread_option
@device_options
def compare(plan, output, assigned, part, cosine, threads, device, terms) -> None:
    """Find the near copies in some clusters of PLAN, and write the pairs to OUTPUT."""
    import numpy as np

    from embedders.copies.clusters import AssignedRows
    from embedders.copies.compare import compare
    from embedders.copies.plan import read_plan
    from embedders.copies.settings import choose_part
    from embedders.output.files import write_whole

    centres = read_plan(plan).centres
    clusters = choose_part(range(len(centres)), *part)
    files = [(f"{assigned}/{number}.rows", f"{assigned}/{number}.offsets.npy") for number in range(part[1])]
    with pin_search(f"near copies of {assigned}", threads, device, terms) as search:
        pairs, compared = compare(AssignedRows(files, centres.shape[1]), clusters, cosine, search)
    with write_whole(output) as file:
        np.savez(file, pairs=pairs, compared=compared)
    click.echo(f"{len(pairs)} pairs of {compared} rows in {len(clusters)} clusters")


@near_copies.command("list", short_help="Write the list of near copies.")
@click.argument("run", type=click.Path())
@click.argument("plan", type=click.Path())
@click.argument("pairs", nargs=-1, required=True, type=click.Path())
@click.option("--output", required=True, help="Parquet file to write.")
@click.option(
    "--keep", type=click.Choice(["first", "largest"]), default="first", help="Which image of a group to keep."
)
@cosine_option
def list_copies(run, plan, pairs, output, keep, cosine) -> None:
    """Group PAIRS, outputs of `compare`, choose the image of each group to keep, and write the list to OUTPUT."""
    from embedders.copies.groups import list_near_copies
    from embedders.copies.plan import read_plan
    from embedders.output.run import open_run

    counts = list_near_copies(open_run(run), read_plan(plan), list(pairs), cosine, keep, output)
    click.echo(counts.describe())
