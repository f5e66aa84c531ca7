"""The commands of `python -m embedders`: each turns its options into one call and prints the result.

Imports nothing heavy at the top, so that `--help` and a bad option answer at once. torch must be imported only after
the GPU is pinned.
"""

import json
import logging
import os
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import fields
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from embedders import __version__
from embedders.cli_copies import near_copies
from embedders.cli_results import inspect, prune, report, summarize, verify
from embedders.errors import ConfigError, EmbedderError
from embedders.export.command import export
from embedders.gpu.device import pin_device
from embedders.gpu.terms import Terms
from embedders.gpu.watch import GpuWatch
from embedders.job.time_limit import end_before_limit
from embedders.output.record import Addition
from embedders.terminal import JsonValue, device_options, echo_marked, errors_alone, log, one_line_errors

LIMIT_S = 60  # a job needs seconds to end, unless its model is in a long call


def sample_options(command: Callable) -> Callable:
    """Add the options that say what to read of a sample."""
    columns_help = """Metadata fields to store, as JSON: '["url"]', '{"width": "int64"}' or '"all"'."""
    suffix_help = "Suffix of the image to use if a sample has several, such as jpg."
    command = click.option("--image-suffix", default="", help=suffix_help)(command)
    command = click.option("--metadata-columns", type=JsonValue(), default="[]", help=columns_help)(command)
    return click.option("--id-col", default="__key__", help="Metadata field that identifies a sample.")(command)


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
    logging.getLogger("timm").setLevel(logging.WARNING)  # its messages repeat those of this log


@main.command(short_help="Embed a shard into a Parquet file.")
@click.argument("shard", type=click.Path())
@click.argument("output", type=click.Path())
@click.option("--embedder", required=True, help='"package.module:Class" or "path/to/file.py:Class".')
@click.option("--embedder-args", type=JsonValue(), default="{}", help="Arguments of the class, as JSON.")
@click.option("--ledger", default=None, help="Parquet file to write the failed samples to.")
@click.option("--also", nargs=3, multiple=True, metavar="SHARD OUTPUT LEDGER", help="Another shard; can be repeated.")
@click.option("--record", default=None, help="For the workflow: output folder of the run.")
@click.option("--recipe", type=JsonValue(), default="{}", help="For the workflow: what to record of OUTPUT.")
@click.option("--addition", default=None, help="For the workflow: name of the job in the record.")
@sample_options
@click.option(
    "--embedding-dtype", type=click.Choice(["float32", "float16", "int8"]), default="float32", help="Type to store."
)
@click.option(
    "--max-failed-fraction",
    type=click.FloatRange(0, 1),
    default=0.1,
    help="A shard fails if a larger share of its samples fails.",
)
@click.option("--accept-damaged-shards", is_flag=True, help="Embed the readable part of a damaged tar.")
@click.option("--only", default=None, help="Ledger of an earlier run: embed only the samples that it names.")
@click.option("--threads", type=click.IntRange(1), default=None, help="CPU threads to decode and compute with.")
@device_options
def embed(
    shard, output, embedder, embedder_args, ledger, also, record, recipe, addition, device, terms, **options,
) -> None:  # fmt: skip
    """Embed the images of SHARD, a .tar or .tar.gz, into OUTPUT, a Parquet file that appears complete or not at all.

    SHARD may be an address, such as s3://bucket/00000.tar.

    Example: tarquet embed 00000.tar 00000.parquet --embedder my_embedder.py:MyEmbedder
    """
    with one_line_errors():
        end_before_limit(LIMIT_S, log.warning)
        from embedders.job.meter import Meter
        from embedders.job.run import run_job
        from embedders.job.shard_job import ShardJob

        jobs = [ShardJob(shard, output, ledger), *(ShardJob(*paths) for paths in also)]
        added = Addition(record, recipe, addition) if record is not None else None
        work = shard + (f" and {len(also)} more" if also else "")
        watch = GpuWatch()
        options["meter"] = Meter(watch)
        run_job(jobs, embedder, embedder_args, pin_device(work, device, terms, watch), addition=added, **options)


@main.command(short_help="Show the GPUs of this machine and the jobs that use them.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list with one object per GPU.")
def gpus(as_json) -> None:
    """Show the GPUs of this machine: memory, load, processes, and the job that has leased each.

    Example: tarquet gpus --json
    """
    from embedders.gpu.table import describe_gpus, format_gpus

    with one_line_errors():
        rows = describe_gpus()
        click.echo(json.dumps(rows, indent=2) if as_json else format_gpus(rows))


@main.command(short_help="Try an embedder on a few images of a shard.", context_settings={"allow_extra_args": True})
@click.argument("embedder", required=False)
@click.option("--configfile", default="config.yaml", help="What to check, if no EMBEDDER is named.")
@click.option("--shard", "shards", help="A shard or a pattern as in config.yaml; the first shard is tried.")
@click.option("--embedder-args", type=JsonValue(), default="{}", help="Arguments of the class, as JSON.")
@sample_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@device_options
def check(embedder, configfile, as_json, **options) -> None:
    """Try the embedder of config.yaml on a few images of the first shard.

    Checks the configuration, the class, its loader, its model and the content of the shard, and estimates how long
    all the shards take. Fails if a finding is wrong.

    With EMBEDDER, "package.module:Class" or "path/to/file.py:Class", it tries that class with the options instead,
    and needs no configuration.

    Example: tarquet check

    Example: tarquet check my_embedder.py:MyEmbedder --shard 'data/*.tar'
    """
    with one_line_errors():
        from embedders.planning.shards import find_shards
        from embedders.reading.stores import find_versions

        if embedder is None:
            embedder, options = take_from_config(configfile)
        if words := click.get_current_context().args:
            raise ConfigError(
                f"--shard: expected one shard or pattern, but {len(words)} more words follow, such as "
                f"{words[0]!r}; quote a pattern, so that the shell does not expand it: --shard 'data/*.tar'"
            )
        if options["shards"] is None:
            raise ConfigError("--shard is missing; expected a shard or a pattern for EMBEDDER: --shard 'data/*.tar'")
        paths = list(find_shards(options["shards"]).values())
        versions = find_versions(paths)
        with pin_device(paths[0], options["device"], options["terms"]) as torch_device:
            from embedders.checks.before_run import check_before_run

            # The findings repeat everything else that is logged, and what the class prints is not part of the JSON.
            with errors_alone(), redirect_stdout(sys.stderr if as_json else sys.stdout):
                args = options["embedder_args"]
                columns = {name: options[name] for name in ("id_col", "metadata_columns", "image_suffix")}
                report = check_before_run(embedder, args, paths, torch_device, versions=versions, **columns)
        if as_json:
            click.echo(json.dumps(report.as_json(), indent=2))
        else:
            for finding in report.findings:
                echo_marked("wrong" if finding.is_wrong else "ok", finding.subject, finding.message)
            if report.estimate:
                echo_marked("", "all", report.describe_estimate())
        if report.wrong:
            raise EmbedderError(f"{report.wrong} of {len(report.findings)} findings are wrong; fix what they name")


def take_from_config(path: str) -> tuple[str, dict[str, Any]]:
    """Read a configuration; return the class of its embedder, and the options of `check` that it stands for.

    Raises:
        ConfigError: It is not valid, or such an option was given too.
    """
    from embedders.copies.settings import check_settings
    from embedders.planning.config import name_scores, read_config

    context = click.get_current_context()
    for name in context.params.keys() - {"embedder", "configfile", "as_json"}:
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            option = next(param.opts[0] for param in context.command.params if param.name == name)
            raise ConfigError(
                f"{option} is for an EMBEDDER that is named; without one, {path} decides; leave {option} out, or "
                "name a class: tarquet check my_embedder.py:MyEmbedder --shard 'data/*.tar'"
            )
    config = read_config(path)
    check_settings(config)
    name_scores(config["scores"])
    terms = Terms(**{field.name: config[field.name] for field in fields(Terms)})
    same = {name: config[name] for name in ("shards", "id_col", "metadata_columns", "image_suffix", "device")}
    return config["embedder"]["class"], same | {"embedder_args": config["embedder"]["args"], "terms": terms}


@main.command(short_help="Score the vectors of an output by a classifier.")
@click.argument("embeddings", type=click.Path())
@click.argument("output", type=click.Path())
@click.option("--classifier", required=True, help='"package.module:Class" or "path/to/file.py:Class".')
@click.option("--classifier-args", type=JsonValue(), default="{}", help="Arguments of the class, as JSON.")
@click.option("--record", default=None, help="For the workflow: output folder of the run.")
@click.option("--recipe", type=JsonValue(), default="{}", help="For the workflow: what to record of OUTPUT.")
@click.option("--threads", type=click.IntRange(1), default=None, help="CPU threads to compute with.")
@device_options
def score(embeddings, output, classifier, classifier_args, record, recipe, threads, device, terms) -> None:
    """Score the vectors of EMBEDDINGS, an output of `embed`. OUTPUT is a Parquet file of shard, key and score.

    Example: tarquet score results/embeddings/00000.parquet scores.parquet --classifier my.py:MyClassifier
    """
    with one_line_errors():
        end_before_limit(LIMIT_S, log.warning)
        from embedders.job.garbage import keep_imports
        from embedders.job.locate import build_classifier, split_class_path
        from embedders.output.files import check_writable

        if not Path(embeddings).is_file():
            raise ConfigError(f"{embeddings!r} is not a file; expected an output of `embed`; check the path")
        split_class_path(classifier, "classifier")
        if not isinstance(classifier_args, dict):
            raise ConfigError(f"classifier args {classifier_args!r}: expected an object, such as {{}}")
        check_writable(Path(output))
        with pin_device(embeddings, device, terms) as torch_device:
            with keep_imports():
                import torch

                from embedders.job.score import score_file
            if threads is not None:
                torch.set_num_threads(threads)
            addition = Addition(record, recipe) if record is not None else None
            made_by = build_classifier(classifier, classifier_args)
            score_file(embeddings, output, made_by, torch_device, addition.recipe if addition else None)
        if addition is not None:
            addition.add(output)


for command in (inspect, verify, summarize, report, prune):
    main.add_command(command)
for room in (export, near_copies):
    for command in (room, *getattr(room, "commands", {}).values()):
        command.callback = one_line_errors()(command.callback)
    main.add_command(room)
