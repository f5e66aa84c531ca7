"""The command line: `python -m embedders`. Options in, one call out; the only place that ends the process.

Imports nothing heavy at the top: `--help` and a bad option answer at once, and torch comes only after the GPU is
pinned.
"""

import json
import logging
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from embedders import __version__
from embedders.device import pin_device
from embedders.errors import ConfigError, EmbedderError, GpuError, ShardError, TarquetError, make_one_line
from embedders.finished import FinishedShards
from embedders.shards import ShardJob

log = logging.getLogger("embedders")


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


DEVICE_OPTIONS = [
    click.option("--device", type=click.Choice(["auto", "gpu", "cpu"]), default="auto", help="What to compute on."),
    click.option("--gpu-wait-timeout-s", type=click.FloatRange(0), default=3600, help="0 looks once."),
    click.option("--gpu-max-used-mb", type=click.IntRange(0), default=1024, help="With more in use it is not free."),
    click.option("--gpu-max-processes", type=click.IntRange(0), default=0, help="With more it is not free."),
    click.option("--jobs-per-gpu", type=click.IntRange(1), default=1, help="Jobs that share a GPU."),
]


def device_options(command: Callable) -> Callable:
    """Add the options that `pin_device` takes."""
    for option in reversed(DEVICE_OPTIONS):
        command = option(command)
    return command


@click.group(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.version_option(__version__, prog_name="tarquet")
def main() -> None:
    """Turn WebDataset tar shards of images into Parquet files of embeddings."""
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
    # SIGTERM, by which SLURM and Docker end a job, would otherwise end Python on the spot and leave a partial file.
    signal.signal(signal.SIGTERM, raise_interrupt)
    try:
        yield
    except TarquetError as error:
        click.echo(f"error: {make_one_line(str(error))}", err=True)
        sys.exit(1)
    except KeyboardInterrupt as interrupt:
        number = interrupt.args[0] if interrupt.args else signal.SIGINT
        click.echo(f"error: stopped by {signal.Signals(number).name}; run it again", err=True)
        sys.exit(128 + number)


def raise_interrupt(number: int, _frame: object) -> None:
    """Let a signal end the process as Ctrl-C does; unlike SystemExit, nobody catches that by accident."""
    raise KeyboardInterrupt(number)


@main.command()
@click.argument("shard")
@click.argument("output")
@click.option("--embedder", required=True, help='"package.module:Class" or "path/to/file.py:Class".')
@click.option("--embedder-args", type=JsonValue(), default="{}", help="Arguments of the class, as JSON.")
@click.option("--ledger", default=None, help="Parquet file that names the samples that failed.")
@click.option(
    "--also", nargs=3, multiple=True, metavar="SHARD OUTPUT LEDGER", help="One more shard; may be repeated."
)
@click.option("--finished", default=None, help="Folder that keeps finished outputs when a job of several fails.")
@click.option("--id-col", default="__key__", help="Metadata field that identifies a sample.")
@click.option("--metadata-columns", type=JsonValue(), default="[]", help="Fields to carry, as JSON; or '\"all\"'.")
@click.option("--embedding-dtype", type=click.Choice(["float32", "float16"]), default="float32")
@click.option("--max-failed-fraction", type=click.FloatRange(0, 1), default=0.1)
@click.option("--accept-damaged-shards", is_flag=True, help="Embed what is whole of a damaged tar.")
@click.option("--only", default=None, help="Ledger of an earlier run: embed only the samples that failed then.")
@click.option("--threads", type=click.IntRange(1), default=None, help="Threads to compute and decode with.")
@device_options
def embed(
    shard, output, embedder, embedder_args, ledger, also, finished, threads, only, device, gpu_wait_timeout_s,
    gpu_max_used_mb, gpu_max_processes, jobs_per_gpu, **options,
) -> None:  # fmt: skip
    """Embed SHARD, a .tar or .tar.gz, into OUTPUT, a Parquet file that appears whole or not at all."""
    with one_line_errors():
        check_before_lease(shard, output, embedder, embedder_args)
        jobs = [ShardJob(shard, output, ledger), *(ShardJob(*paths) for paths in also)]
        if finished is not None:
            deciding = {name: options[name] for name in ("id_col", "metadata_columns", "embedding_dtype")}
            store = FinishedShards(finished, embedder, embedder_args, **deciding)
            jobs = [job for job in jobs if not store.take(job)]
            log.info("%d of %d shards were finished by an earlier job", len(also) + 1 - len(jobs), len(also) + 1)
        if not jobs:
            return
        failed = []
        work = jobs[0].tar_path + (f" and {len(jobs) - 1} more" if len(jobs) > 1 else "")
        terms = (gpu_wait_timeout_s, gpu_max_used_mb, gpu_max_processes, jobs_per_gpu)
        with pin_device(work, device, *terms) as options["device"]:
            import torch

            from embedders.job import embed_shards
            from embedders.locate import build_embedder
            from embedders.parquet import read_ledger
            from embedders.progress import show_progress

            if threads is not None:
                torch.set_num_threads(threads)
            built = build_embedder(embedder, embedder_args)
            if built.num_threads_per_worker is None:
                built.num_threads_per_worker = threads
            if only is not None:
                options["only"] = {sample.key for sample in read_ledger(only)}
                options["max_failed_fraction"] = 1.0  # all of them failed once: how many do so again says nothing
            with show_progress(jobs) as progress:
                for job, outcome in embed_shards(built, jobs, on_batch=progress, **options):
                    if not isinstance(outcome, TarquetError):
                        if finished is not None:
                            store.keep(job)
                        continue
                    failed.append(outcome)
                    if also:
                        log.error("failed: %s", outcome)
        if failed and also:
            raise ShardError(f"{len(failed)} of {len(jobs)} shards failed, each with a line above; see these")
        if failed:
            raise failed[0]


@main.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object per device, in a list.")
def gpus(as_json) -> None:
    """Show the GPUs of this node: what the driver reports, and which job leases each."""
    from embedders.gpu_table import describe_gpus, format_gpus

    with one_line_errors():
        rows = describe_gpus()
        click.echo(json.dumps(rows, indent=2) if as_json else format_gpus(rows))


@main.command()
@click.argument("file")
def inspect(file) -> None:
    """Show how the vectors of FILE, an output of `embed`, were made."""
    from embedders.parquet import inspect_file

    with one_line_errors():
        click.echo(json.dumps(inspect_file(file), indent=2))


@main.command()
@click.argument("embedder")
@click.option("--shard", "shards", required=True, help="A shard, or a pattern as in config.yaml; the first is tried.")
@click.option("--embedder-args", type=JsonValue(), default="{}", help="Arguments of the class, as JSON.")
@click.option("--id-col", default="__key__", help="Metadata field that identifies a sample.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@device_options
def check(embedder, shards, embedder_args, id_col, as_json, **device) -> None:
    """Try EMBEDDER, "path/to/file.py:Class", on a few images: is it sound, and how long will all the shards take?"""
    with one_line_errors():
        from embedders.config import find_shards

        paths = list(find_shards(shards).values())
        with pin_device(paths[0], **device) as torch_device:
            from embedders.check import check_before_run

            report = check_before_run(embedder, embedder_args, paths, torch_device, id_col)
        click.echo(json.dumps(report.as_json(), indent=2) if as_json else report.describe())
        if report.wrong:
            raise EmbedderError(f"{report.wrong} of {len(report.findings)} findings are wrong; mend what they name")


@main.command()
@click.argument("files", nargs=-1, required=True)
@click.option("--shard", default=None, help="The shard, where it is not where it was; for one FILE.")
@click.option("--ledger", default=None, help="The ledger, where it is not where it was; for one FILE.")
@click.option("--sample", type=click.IntRange(0), default=32, help="Rows to embed again, per file.")
@device_options
def verify(files, shard, ledger, sample, **device) -> None:
    """Compare FILES, outputs of `embed`, with their ledgers and shards, and embed random rows again."""
    with one_line_errors():
        if len(files) > 1 and (shard or ledger):
            raise ConfigError(f"--shard and --ledger go with one file; {len(files)} were given; name one")
        for file in files:
            if not Path(file).is_file():  # before it waits for a GPU
                raise ConfigError(f"{file!r}: there is no such file; expected an output of `embed`; check the path")
        with pin_device(files[0], **device) as torch_device:
            from embedders.verify import find_shard, read_output, verify_output

            unsound = 0
            for file in files:
                try:
                    output = read_output(file, ledger)
                    wrong = list(verify_output(output, find_shard(output, shard), sample, torch_device))
                except GpuError:
                    raise  # it says nothing about the file
                except TarquetError as error:
                    wrong = [str(error)]
                unsound += bool(wrong)
                if not wrong:
                    counts = f"{len(output.keys)} rows, {len(output.failed_keys or [])} failed"
                    click.echo(f"sound: {file}: {counts}, {min(sample, len(output.keys))} embedded again")
                for line in wrong:
                    click.echo(f"wrong: {file}: {make_one_line(line)}")
        if unsound:
            raise ShardError(f"{unsound} of {len(files)} files are not sound; expected none; make them again")


@main.command()
@click.argument("embeddings")
@click.argument("output")
@click.option("--classifier", required=True, help='"package.module:Class" or "path/to/file.py:Class".')
@click.option("--classifier-args", type=JsonValue(), default="{}", help="Arguments of the class, as JSON.")
@click.option("--threads", type=click.IntRange(1), default=None, help="Threads to compute with.")
@device_options
def score(embeddings, output, classifier, classifier_args, threads, **device) -> None:
    """Score the vectors of EMBEDDINGS, an output of `embed`, into OUTPUT, a Parquet file of keys and scores."""
    with one_line_errors():
        from embedders.locate import split_class_path
        from embedders.outputs import check_writable

        if not Path(embeddings).is_file():
            raise ConfigError(f"{embeddings!r}: there is no such file; expected an output of `embed`; check the path")
        split_class_path(classifier, "classifier")
        if not isinstance(classifier_args, dict):
            raise ConfigError(f"classifier args {classifier_args!r}: expected an object, as {{}}")
        check_writable(Path(output))
        with pin_device(embeddings, **device) as torch_device:
            import torch

            from embedders.locate import build_classifier
            from embedders.scores import score_file

            if threads is not None:
                torch.set_num_threads(threads)
            score_file(embeddings, output, build_classifier(classifier, classifier_args), torch_device)


@main.command()
@click.argument("shards", type=click.File())
@click.argument("output")
def summarize(shards, output) -> None:
    """Count what a run left, by SHARDS, its run_shards.json, into OUTPUT, its summary.json."""
    with one_line_errors():
        from embedders.summary import summarize_run, write_summary

        summary = summarize_run(Path(shards.name).parent, list(json.load(shards)))
        write_summary(summary, output)
        click.echo(summary.describe())


@main.command()
@click.argument("folder")
@click.option("--output", default=None, help="Where to write it; else to report.html in FOLDER.")
def report(folder, output) -> None:
    """Show what a run gave, by FOLDER, its output_dir, in one HTML file: failures, speed, a map, neighbours."""
    with one_line_errors():
        from embedders.report import write_report

        path = output or str(Path(folder, "report.html"))
        write_report(folder, path)
        click.echo(f"{path}: {Path(path).stat().st_size / 1e6:.1f} MB, opens in any browser")


def check_before_lease(shard: str, output: str, embedder: str, embedder_args: object) -> None:
    """Refuse in a moment what would fail anyway, before a job waits for a GPU."""
    from embedders.locate import split_class_path
    from embedders.outputs import check_writable
    from embedders.shards import check_exists

    check_exists(shard)
    split_class_path(embedder)
    if not isinstance(embedder_args, dict):
        raise ConfigError(f'embedder args {embedder_args!r}: expected an object, as {{}} or {{"batch_size": 64}}')
    check_writable(Path(output))
