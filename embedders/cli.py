"""The command line: `python -m embedders`. Options in, one call out; the only place that ends the process.

Imports nothing heavy at the top: `--help` and a bad option answer at once, and torch comes only after the GPU is
pinned.
"""

import functools
import json
import logging
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path

import click

from embedders import __version__
from embedders.errors import (
    ConfigError,
    EmbedderError,
    GpuError,
    ShardError,
    TarquetError,
    describe_error,
    make_one_line,
)
from embedders.gpu.device import pin_device
from embedders.gpu.terms import Terms
from embedders.job.failures import report_error
from embedders.output.record import Addition, Record

log = logging.getLogger("embedders")

# SLURM and Docker end a job by SIGTERM; SIGUSR1 is what SLURM is often told to send some time before a limit.
END_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class JsonValue(click.ParamType):
    """An option that holds JSON, as the rule passes it on from config.yaml."""

    name = "json"

    def convert(self, value, param, ctx):
        """Parse, or say which option is not JSON."""
        if not isinstance(value, str):
            return value
        try:
            return json.loads(value)
        except ValueError as error:
            self.fail(f"{value!r} is not JSON: {error}", param, ctx)


# By the fields of `Terms`, which hold the defaults.
TERMS_OPTIONS = {
    "gpu_wait_timeout_s": (click.FloatRange(0), "Seconds to wait for a free GPU; 0 looks once."),
    "gpu_max_used_mb": (click.IntRange(0), "A GPU with more memory in use is not free."),
    "gpu_max_processes": (click.IntRange(0), "A GPU with more compute processes is not free."),
    "jobs_per_gpu": (click.IntRange(1), "Jobs that share a GPU."),
}


def device_options(command: Callable) -> Callable:
    """Add the options of `pin_device`, which the command gets as `device` and `terms`."""

    @functools.wraps(command)
    def take_terms(**options):
        terms = Terms(**{field.name: options.pop(field.name) for field in fields(Terms)})
        return command(terms=terms, **options)

    for field in reversed(fields(Terms)):
        kind, text = TERMS_OPTIONS[field.name]
        name = f"--{field.name.replace('_', '-')}"
        take_terms = click.option(name, type=kind, default=field.default, help=text)(take_terms)
    devices = click.Choice(["auto", "gpu", "cpu"])
    return click.option("--device", type=devices, default="auto", help="What to compute on.")(take_terms)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.version_option(__version__, prog_name="tarquet")
def main() -> None:
    """Turn WebDataset tar shards of images into Parquet files of embeddings."""
    if os.environ.get("NO_COLOR"):  # https://no-color.org
        click.get_current_context().color = False
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.INFO,
        format="%(asctime)s %(levelname)s %(message)s",
        datefmt="%Y-%m-%d %H:%M:%S",
    )
    logging.getLogger("timm").setLevel(logging.WARNING)  # it says twice what this log says once


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn an error that a user can mend into one line and exit code 1; a signal, into one and 128 + its number."""
    # Each would otherwise end Python on the spot and leave a partial file.
    for number in END_SIGNALS:
        signal.signal(number, raise_interrupt)
    try:
        yield
    except TarquetError as error:
        report_error(str(error))
        sys.exit(1)
    except KeyboardInterrupt as interrupt:
        number = interrupt.args[0] if interrupt.args else signal.SIGINT
        report_error(f"stopped by {signal.Signals(number).name}; run it again")
        sys.exit(128 + number)
    except Exception as error:
        traceback.print_exc()
        report_error(f"{describe_error(error)}; please report this as a defect, with the lines above")
        sys.exit(1)


def raise_interrupt(number: int, _frame: object) -> None:
    """Let a signal end the process as Ctrl-C does; unlike SystemExit, nobody catches that by accident."""
    for ended_by in END_SIGNALS:  # SLURM sends SIGTERM twice, and the second would break off the clean-up
        signal.signal(ended_by, signal.SIG_IGN)
    raise KeyboardInterrupt(number)


@main.command(short_help="Embed a shard, as the workflow does.")
@click.argument("shard", type=click.Path())
@click.argument("output", type=click.Path())
@click.option("--embedder", required=True, help='"package.module:Class" or "path/to/file.py:Class".')
@click.option("--embedder-args", type=JsonValue(), default="{}", help="Arguments of the class, as JSON.")
@click.option("--address", default=None, help="What SHARD is a copy of, for the footer: s3://bucket/00000.tar.")
@click.option("--ledger", default=None, help="Parquet file that names the samples that failed.")
@click.option(
    "--also", nargs=3, multiple=True, metavar="SHARD OUTPUT LEDGER", help="One more shard; may be repeated."
)
@click.option("--record", default=None, help="Folder of the run, to record there what the output was made from.")
@click.option(
    "--recipe", type=JsonValue(), default="{}", help="What to record of class, arguments and options, as JSON."
)
@click.option("--part", default=None, help="Name of this job's part of the record: what is in it was embedded.")
@click.option("--id-col", default="__key__", help="Metadata field that identifies a sample.")
@click.option("--metadata-columns", type=JsonValue(), default="[]", help="Fields to carry, as JSON; or '\"all\"'.")
@click.option("--embedding-dtype", type=click.Choice(["float32", "float16"]), default="float32")
@click.option("--max-failed-fraction", type=click.FloatRange(0, 1), default=0.1)
@click.option("--accept-damaged-shards", is_flag=True, help="Embed what is whole of a damaged tar.")
@click.option("--only", default=None, help="Ledger of an earlier run: embed only the samples that failed then.")
@click.option("--threads", type=click.IntRange(1), default=None, help="Threads to compute and decode with.")
@device_options
def embed(
    shard, output, embedder, embedder_args, address, ledger, also, record, recipe, part, device, terms, **options,
) -> None:  # fmt: skip
    """Embed SHARD, a .tar or .tar.gz, into OUTPUT, a Parquet file that appears whole or not at all.

    Example: python -m embedders embed 00000.tar 00000.parquet --embedder my_embedder.py:MyEmbedder
    """
    with one_line_errors():
        from embedders.job.run import run_job
        from embedders.job.shard_job import ShardJob

        jobs = [ShardJob(shard, output, ledger, address), *(ShardJob(*paths) for paths in also)]
        addition = Addition(record, recipe, part) if record is not None else None
        work = shard + (f" and {len(also)} more" if also else "")
        run_job(jobs, embedder, embedder_args, pin_device(work, device, terms), addition=addition, **options)


@main.command(short_help="Show the GPUs of this node, and who leases them.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per device, in a list.")
def gpus(as_json) -> None:
    """Show the GPUs of this node: what the driver reports, and which job leases each.

    Example: python -m embedders gpus --json
    """
    from embedders.gpu.table import describe_gpus, format_gpus

    with one_line_errors():
        rows = describe_gpus()
        click.echo(json.dumps(rows, indent=2) if as_json else format_gpus(rows))


@main.command(short_help="Show how an output was made.")
@click.argument("file", type=click.Path())
def inspect(file) -> None:
    """Show how the vectors of FILE, an output of `embed`, were made.

    Example: python -m embedders inspect results/embeddings/00000.parquet
    """
    from embedders.output.parquet import inspect_file

    with one_line_errors():
        click.echo(json.dumps(inspect_file(file), indent=2))


@main.command(short_help="Try an embedder on a few images of a shard.", context_settings={"allow_extra_args": True})
@click.argument("embedder")
@click.option("--shard", "shards", required=True, help="A shard, or a pattern as in config.yaml; the first is tried.")
@click.option("--embedder-args", type=JsonValue(), default="{}", help="Arguments of the class, as JSON.")
@click.option("--id-col", default="__key__", help="Metadata field that identifies a sample.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@device_options
def check(embedder, shards, embedder_args, id_col, as_json, device, terms) -> None:
    """Try EMBEDDER, "path/to/file.py:Class", on a few images: is it sound, and how long will all the shards take?

    Example: python -m embedders check my_embedder.py:MyEmbedder --shard 'data/*.tar'
    """
    with one_line_errors():
        from embedders.planning.shards import find_shards
        from embedders.reading.remote import is_remote
        from embedders.reading.samples import check_exists

        if words := click.get_current_context().args:
            raise ConfigError(
                f"--shard: expected one shard or pattern, and {len(words)} more words follow, as "
                f"{words[0]!r}; quote a pattern, so that the shell does not expand it: --shard 'data/*.tar'"
            )
        paths = list(find_shards(shards).values())
        for address in filter(is_remote, paths):
            check_exists(address)
        with pin_device(paths[0], device, terms) as torch_device:
            from embedders.checks.before_run import check_before_run

            with errors_alone():  # the rest, the findings say
                report = check_before_run(embedder, embedder_args, paths, torch_device, id_col)
        if as_json:
            click.echo(json.dumps(report.as_json(), indent=2))
        else:
            for finding in report.findings:
                echo_marked("wrong" if finding.is_wrong else "ok", finding.subject, finding.message)
            if report.estimate:
                echo_marked("", "all", report.describe_estimate())
        if report.wrong:
            raise EmbedderError(f"{report.wrong} of {len(report.findings)} findings are wrong; mend what they name")


@contextmanager
def errors_alone() -> Iterator[None]:
    """Log nothing below an error while the block runs."""
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


def echo_marked(mark: str, subject: str, message: str) -> None:
    """Print a line with a mark that a terminal shows in colour, and wraps with an indent."""
    indent, message = " " * 16, make_one_line(message)
    if sys.stdout.isatty():
        width = shutil.get_terminal_size().columns
        message = click.wrap_text(message, width, subsequent_indent=indent, initial_indent=indent).lstrip()
    color = {"wrong": "red", "ok": "green"}.get(mark)
    click.echo(f"{click.style(f'{mark:7}', fg=color, bold=True)}{subject:9}{message}")


@main.command(short_help="Compare outputs with their ledgers and shards.")
@click.argument("files", nargs=-1, required=True, type=click.Path())
@click.option("--shard", default=None, help="The shard, where it is not where it was; for one FILE.")
@click.option("--ledger", default=None, help="The ledger, where it is not where it was; for one FILE.")
@click.option("--sample", type=click.IntRange(0), default=32, help="Rows to embed again, per file.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per file, in a list.")
@device_options
def verify(files, shard, ledger, sample, as_json, device, terms) -> None:
    """Compare FILES, outputs of `embed` or folders of runs, with ledgers and shards, and embed random rows again.

    Example: python -m embedders verify results --sample 8
    """
    with one_line_errors():
        from embedders.checks.outputs import find_outputs

        outputs = [output for file in files for output in find_outputs(file)]  # before it waits for a GPU
        if len(outputs) > 1 and (shard or ledger):
            raise ConfigError(f"--shard and --ledger go with one file; {len(outputs)} were given; name one")
        with pin_device(files[0], device, terms) as torch_device:
            from embedders.checks.verify import find_shard, read_output, verify_output

            verdicts = []
            for file, its_ledger in outputs:
                verdict: dict = {"file": file}
                try:
                    output = read_output(file, ledger or its_ledger)
                    verdict |= {"rows": len(output.keys), "failed": len(output.failed_keys or [])}
                    verdict["embedded_again"] = min(sample, len(output.keys))
                    wrong = list(verify_output(output, find_shard(output, shard), sample, torch_device))
                except GpuError:
                    raise  # it says nothing about the file
                except TarquetError as error:
                    wrong = [str(error)]
                verdicts.append(verdict | {"is_sound": not wrong, "wrong": wrong})
                if not as_json:
                    echo_verdict(verdicts[-1])
        if as_json:
            click.echo(json.dumps(verdicts, indent=2))
        unsound = sum(not verdict["is_sound"] for verdict in verdicts)
        if unsound:
            raise ShardError(f"{unsound} of {len(outputs)} files are not sound; expected none; make them again")


def echo_verdict(verdict: dict) -> None:
    """Print what `verify` says of one file."""
    if verdict["is_sound"]:
        counts = "{rows} rows, {failed} failed, {embedded_again} embedded again".format(**verdict)
        click.echo(f"{click.style('sound', fg='green', bold=True)}: {verdict['file']}: {counts}")
    for line in verdict["wrong"]:
        click.echo(f"{click.style('wrong', fg='red', bold=True)}: {verdict['file']}: {make_one_line(line)}")


@main.command(short_help="Score the vectors of an output, as the workflow does.")
@click.argument("embeddings", type=click.Path())
@click.argument("output", type=click.Path())
@click.option("--classifier", required=True, help='"package.module:Class" or "path/to/file.py:Class".')
@click.option("--classifier-args", type=JsonValue(), default="{}", help="Arguments of the class, as JSON.")
@click.option("--record", default=None, help="Folder of the run, to record there what the output was made from.")
@click.option("--recipe", type=JsonValue(), default="{}", help="What to record of class and arguments.")
@click.option("--threads", type=click.IntRange(1), default=None, help="Threads to compute with.")
@device_options
def score(embeddings, output, classifier, classifier_args, record, recipe, threads, device, terms) -> None:
    """Score the vectors of EMBEDDINGS, an output of `embed`, into OUTPUT, a Parquet file of keys and scores.

    Example: python -m embedders score results/embeddings/00000.parquet scores.parquet --classifier my_head.py:MyHead
    """
    with one_line_errors():
        from embedders.job.locate import split_class_path
        from embedders.output.files import check_writable

        if not Path(embeddings).is_file():
            raise ConfigError(f"{embeddings!r} is no file; expected an output of `embed`; check the path")
        split_class_path(classifier, "classifier")
        if not isinstance(classifier_args, dict):
            raise ConfigError(f"classifier args {classifier_args!r}: expected an object, as {{}}")
        check_writable(Path(output))
        with pin_device(embeddings, device, terms) as torch_device:
            import torch

            from embedders.job.locate import build_classifier
            from embedders.job.score import score_file

            if threads is not None:
                torch.set_num_threads(threads)
            score_file(embeddings, output, build_classifier(classifier, classifier_args), torch_device)
        if record is not None:
            Addition(record, recipe).add(output)


@main.command(short_help="Count what a run left, as the workflow does.")
@click.argument("shards", type=click.Path())
@click.argument("output", type=click.Path())
def summarize(shards, output) -> None:
    """Count what a run left, by SHARDS, its run_shards.json, into OUTPUT, its summary.json.

    Example: python -m embedders summarize results/run_shards.json results/summary.json
    """
    with one_line_errors():
        from embedders.output.summary import summarize_run, write_summary
        from embedders.planning.folder import find_strays, read_run

        folder = Path(shards).parent
        names, scores = read_run(folder)
        summary = summarize_run(folder, names)
        record = Record(folder)
        summary.strays = find_strays(folder, names, scores, record)
        summary.made_from = record.sign(names)
        write_summary(summary, output)
        click.echo(summary.describe())


@main.command(short_help="Move away what belongs to no shard of a run.")
@click.argument("folder", type=click.Path())
@click.option("--move", is_flag=True, help="Move them, after showing them.")
def prune(folder, move) -> None:
    """Show the results in FOLDER, an output_dir, that belong to no shard of its last run; nothing is deleted.

    Example: python -m embedders prune results --move
    """
    with one_line_errors():
        from embedders.planning.folder import find_strays, move_strays, read_run
        from embedders.planning.running import claim_folder

        if move:
            claim_folder(folder)
        strays = find_strays(folder, *read_run(folder))
        for path, why in strays.items():
            click.echo(f"{path}: {why}")
        if not strays:
            click.echo(f"every result in {folder} belongs to a shard of its last run")
        elif move:
            click.echo(f"{len(strays)} moved to {move_strays(folder, strays)}; run snakemake for a new summary")
        else:
            click.echo(f"{len(strays)} files; `tarquet prune {folder} --move` moves them to {folder}/pruned")


@main.command()
@click.argument("folder")
@click.option("--output", default=None, help="Where to write it; else to report.html in FOLDER.")
def report(folder, output) -> None:
    """Show what a run gave, by FOLDER, its output_dir, in one HTML file: failures, speed, a map, neighbours.

    Example: python -m embedders report results
    """
    with one_line_errors():
        from embedders.planning.job_python import check_report_python

        check_report_python(sys.executable)
        from embedders.report.page import write_report

        path = output or str(Path(folder, "report.html"))
        write_report(folder, path)
        click.echo(f"{path}: {Path(path).stat().st_size / 1e6:.1f} MB, opens in any browser")
