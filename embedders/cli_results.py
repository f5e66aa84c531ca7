"""The commands that work on finished results: inspect, verify, summarize, report, prune. `cli.py` adds them."""

import json
import sys
from pathlib import Path

import click

from embedders.errors import ConfigError, ShardError
from embedders.gpu.device import pin_device
from embedders.output.record import Record
from embedders.terminal import device_options, echo_verdict, one_line_errors


@click.command(short_help="Show how an output was made.")
@click.argument("file", type=click.Path())
def inspect(file) -> None:
    """Show how the vectors of FILE, an output of `embed`, were made.

    Example: tarquet inspect results/embeddings/00000.parquet
    """
    from embedders.output.parquet import inspect_file

    with one_line_errors():
        click.echo(json.dumps(inspect_file(file), indent=2))


@click.command(short_help="Check outputs against their ledgers and shards.")
@click.argument("files", nargs=-1, required=True, type=click.Path())
@click.option("--shard", default=None, help="Path of the shard if it was moved; for one FILE.")
@click.option("--ledger", default=None, help="Path of the ledger if it was moved; for one FILE.")
@click.option("--sample", type=click.IntRange(0), default=32, help="Random rows to embed again, per file.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list with one object per file.")
@device_options
def verify(files, shard, ledger, sample, as_json, device, terms) -> None:
    """Check FILES, outputs of `embed` or folders of runs, against ledgers and shards, and embed random rows again.

    Example: tarquet verify results --sample 8
    """
    with one_line_errors():
        from embedders.checks.outputs import find_outputs

        outputs = [output for file in files for output in find_outputs(file)]  # before waiting for a GPU
        if len(outputs) > 1 and (shard or ledger):
            raise ConfigError(f"--shard and --ledger need exactly one file; {len(outputs)} were given; name one")
        with pin_device(files[0], device, terms) as torch_device:
            from embedders.checks.reload import Reloader
            from embedders.checks.verify import verify_file

            verdicts, reloader = [], Reloader(torch_device)
            for output in outputs:
                paths = (shard or output.shard, ledger or output.ledger)
                verdicts.append(verify_file(output.path, *paths, sample, reloader))
                if not as_json:
                    echo_verdict(verdicts[-1])
        if as_json:
            click.echo(json.dumps(verdicts, indent=2))
        unsound = sum(not verdict["is_sound"] for verdict in verdicts)
        if unsound:
            raise ShardError(f"{unsound} of {len(outputs)} files are not sound; expected none; make them again")


@click.command(short_help="Write the summary of a run.")
@click.argument("shards", type=click.Path())
@click.argument("output", type=click.Path())
def summarize(shards, output) -> None:
    """Write the summary of a run to OUTPUT. SHARDS is the run_shards.json in its output folder.

    Example: tarquet summarize results/run_shards.json results/summary.json
    """
    with one_line_errors():
        from embedders.output.strays import find_strays
        from embedders.output.summary import summarize_run, write_summary
        from embedders.planning.folder import read_run

        folder = Path(shards).parent
        names, scores = read_run(folder)
        summary = summarize_run(folder, list(names))
        record = Record(folder)
        summary.strays = find_strays(folder, names, scores, record)
        summary.made_from = record.sign(names)
        write_summary(summary, output)
        click.echo(summary.describe())


@click.command(short_help="List or move results that belong to no shard of a run.")
@click.argument("folder", type=click.Path())
@click.option("--move", is_flag=True, help="Move them to the folder pruned/.")
def prune(folder, move) -> None:
    """List the results in FOLDER, an output_dir, that belong to no shard of its last run. Nothing is deleted.

    Example: tarquet prune results --move
    """
    with one_line_errors():
        from embedders.output.strays import find_strays, move_strays
        from embedders.planning.folder import read_run
        from embedders.planning.running import claim_folder

        shards, scores = read_run(folder)
        if move:
            claim_folder(folder)
        strays = find_strays(folder, shards, scores)
        for path, why in strays.items():
            click.echo(f"{path}: {why}")
        if not strays:
            click.echo(f"every result in {folder} belongs to a shard of its last run")
        elif move:
            click.echo(f"{len(strays)} moved to {move_strays(folder, strays)}; run snakemake for a new summary")
        else:
            click.echo(f"{len(strays)} files; `tarquet prune {folder} --move` moves them to {folder}/pruned")


@click.command(short_help="Write the HTML report of a run.")
@click.argument("folder")
@click.option("--output", default=None, help="File to write; report.html in FOLDER if left out.")
@click.option("--column", default="", help="Column of vectors to show; by default the first with one per image.")
def report(folder, output, column) -> None:
    """Write the HTML report of the run in FOLDER, an output_dir: failures, speed, a map, neighbours.

    Example: tarquet report results
    """
    with one_line_errors():
        from embedders.planning.job_python import check_report_python

        check_report_python(sys.executable)
        from embedders.report.page import write_report

        path = output or str(Path(folder, "report.html"))
        write_report(folder, path, column)
        click.echo(f"{path}: {Path(path).stat().st_size / 1e6:.1f} MB, opens in any browser")
