"""The command line: `python -m embedders`. Options in, one call out; the only place that ends the process.

Imports nothing heavy at the top: `--help` and a bad option answer at once, and torch comes only after the GPU is
pinned.
"""

import ctypes
import json
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import click

from embedders import __version__
from embedders.errors import ConfigError, ShardError, TarquetError, make_one_line
from embedders.gpus import lease_gpu
from embedders.nvml import has_driver

log = logging.getLogger("embedders")

# From glibc's malloc.h
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


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


DEVICE = click.option(
    "--device",
    type=click.Choice(["auto", "gpu", "cpu"]),
    default="auto",
    show_default=True,
    help="What to compute on.",
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
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
    """Turn an error that a user can mend into one line and exit code 1."""
    try:
        yield
    except TarquetError as error:
        click.echo(f"error: {make_one_line(str(error))}", err=True)
        sys.exit(1)


@main.command()
@click.argument("shard")
@click.argument("output")
@click.option("--embedder", required=True, help='"package.module:Class" or "path/to/file.py:Class".')
@click.option("--embedder-args", type=JsonValue(), default="{}", help="Arguments of the class, as JSON.")
@click.option("--ledger", default=None, help="Parquet file that names the samples that failed.")
@click.option("--id-col", default="__key__", show_default=True, help="Metadata field that identifies a sample.")
@click.option("--metadata-columns", type=JsonValue(), default="[]", help="Fields to carry, as JSON; or '\"all\"'.")
@click.option("--embedding-dtype", type=click.Choice(["float32", "float16"]), default="float32", show_default=True)
@click.option("--max-failed-fraction", type=click.FloatRange(0, 1), default=0.1, show_default=True)
@click.option("--accept-damaged-shards", is_flag=True, help="Embed what is whole of a damaged tar.")
@click.option("--only", default=None, help="Ledger of an earlier run: embed only the samples that failed then.")
@DEVICE
@click.option("--gpu-wait-timeout-s", type=click.FloatRange(0), default=3600, show_default=True, help="0 looks once.")
@click.option("--gpu-max-used-mb", type=click.IntRange(0), default=1024, show_default=True, help="More is not free.")
@click.option("--gpu-max-processes", type=click.IntRange(0), default=0, show_default=True, help="More is not free.")
@click.option("--jobs-per-gpu", type=click.IntRange(1), default=1, show_default=True, help="Jobs that share a GPU.")
@click.option("--threads", type=click.IntRange(1), default=None, help="Threads to compute and decode with.")
def embed(
    shard, output, embedder, embedder_args, ledger, id_col, metadata_columns, embedding_dtype,
    max_failed_fraction, accept_damaged_shards, only, device, gpu_wait_timeout_s, gpu_max_used_mb, gpu_max_processes,
    jobs_per_gpu, threads,
) -> None:  # fmt: skip
    """Embed SHARD, a .tar or .tar.gz, into OUTPUT, a Parquet file that appears whole or not at all."""
    with one_line_errors():
        check_before_lease(shard, output, embedder, embedder_args)
        terms = {
            "timeout_s": gpu_wait_timeout_s,
            "max_used_bytes": gpu_max_used_mb * 2**20,
            "max_processes": gpu_max_processes,
            "jobs_per_gpu": jobs_per_gpu,
        }
        with pin_device(device, shard, **terms) as torch_device:
            import torch

            from embedders.job import embed_shard
            from embedders.locate import build_embedder
            from embedders.parquet import read_ledger

            if threads is not None:
                torch.set_num_threads(threads)
            built = build_embedder(embedder, embedder_args)
            if built.num_threads_per_worker is None:
                built.num_threads_per_worker = threads
            embed_shard(
                built,
                shard,
                output,
                ledger_path=ledger,
                id_col=id_col,
                metadata_columns=metadata_columns,
                embedding_dtype=embedding_dtype,
                max_failed_fraction=max_failed_fraction,
                accept_damaged_shards=accept_damaged_shards,
                only={sample.key for sample in read_ledger(only)} if only else None,
                device=torch_device,
            )


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
    from embedders.parquet import describe_file

    with one_line_errors():
        click.echo(json.dumps(describe_file(file), indent=2))


@main.command()
@click.argument("files", nargs=-1, required=True)
@click.option("--shard", default=None, help="The shard, where it is not where it was; for one FILE.")
@click.option("--ledger", default=None, help="The ledger, where it is not where it was; for one FILE.")
@click.option(
    "--sample", type=click.IntRange(0), default=32, show_default=True, help="Rows to embed again, per file."
)
@DEVICE
def verify(files, shard, ledger, sample, device) -> None:
    """Compare FILES, outputs of `embed`, with their ledgers and shards, and embed random rows again."""
    with one_line_errors():
        if len(files) > 1 and (shard or ledger):
            raise ConfigError(f"--shard and --ledger go with one file; {len(files)} were given; name one")
        with pin_device(device, files[0]) as torch_device:
            from embedders.verify import find_shard, read_output, verify_output

            unsound = 0
            for file in files:
                try:
                    output = read_output(file, ledger)
                    wrong = list(verify_output(output, find_shard(output, shard), sample, torch_device))
                except TarquetError as error:
                    wrong = [str(error)]
                unsound += bool(wrong)
                if not wrong:
                    counts = f"{len(output.keys)} rows, {len(output.failed_keys)} failed"
                    click.echo(f"sound: {file}: {counts}, {min(sample, len(output.keys))} embedded again")
                for line in wrong:
                    click.echo(f"wrong: {file}: {line}")
        if unsound:
            raise ShardError(f"{unsound} of {len(files)} files are not sound; expected none; make them again")


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


def keep_freed_memory() -> None:
    """Tell glibc to keep what a layer frees for the next one, instead of giving it back to the kernel each time.

    A network on the CPU otherwise spends half of its time in page faults: EfficientNet-Lite0 takes 5.4 CPU seconds
    for 96 images without this, 2.7 with it (`benchmarks/malloc.py`).
    """
    with suppress(OSError, AttributeError):  # not glibc
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
        libc.mallopt(_M_MMAP_THRESHOLD, 2**30)


@contextmanager
def pin_device(device: str, shard: str, **terms) -> Iterator[str]:
    """Choose what to compute on, and lease it for the length of the block; `terms` are those of `lease_gpu`.

    Yields:
        `"cuda"`, with `CUDA_VISIBLE_DEVICES` set to the one GPU that is leased; or `"cpu"`.

    Raises:
        GpuError: A GPU was asked for, or `auto` found a driver, and none can be leased.
    """
    if device == "cpu" or (device == "auto" and not has_driver()):
        log.info("computing on the CPU (%s)", "as asked" if device == "cpu" else "no NVIDIA driver here")
        # Else a library that looks for a GPU by itself would take one that is not leased.
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        keep_freed_memory()
        yield "cpu"
        return
    with lease_gpu(shard, **terms):
        yield "cuda"
