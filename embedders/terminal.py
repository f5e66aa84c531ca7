"""What the commands share: options, one-line errors, signals, and the printing of findings.

Like `cli.py`, this imports nothing heavy.
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

import click

from embedders.errors import TarquetError, describe_error, make_one_line
from embedders.gpu.terms import Terms
from embedders.job.failures import report_error

log = logging.getLogger("embedders")

# SLURM and Docker end a job by SIGTERM; many sites let a scheduler send SIGUSR1 or SIGUSR2 some time before a limit.
# A terminal that is closed sends SIGHUP.
END_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)
# One for each field of `Terms`, which holds the defaults.
TERMS_OPTIONS = {
    "gpu_wait_timeout_s": (click.FloatRange(0), "Seconds to wait for a free GPU; 0 tries once."),
    "gpu_max_used_mb": (click.IntRange(0), "A GPU with more memory in use, in MB, is not free."),
    "gpu_max_processes": (click.IntRange(0), "A GPU with more compute processes is not free."),
    "jobs_per_gpu": (click.IntRange(1), "Jobs that share a GPU."),
}


class JsonValue(click.ParamType):
    """Type of an option that holds JSON, which a rule passes on from config.yaml."""

    name = "json"

    def convert(self, value, param, ctx):
        """Return the parsed value, or fail with the name of the option."""
        if not isinstance(value, str):
            return value
        try:
            return json.loads(value)
        except ValueError as error:
            self.fail(f"{value!r} is not JSON: {error}", param, ctx)


def device_options(command: Callable) -> Callable:
    """Add the options of `pin_device` to a command, which gets them as `device` and `terms`."""

    @functools.wraps(command)
    def take_terms(**options):
        terms = Terms(**{field.name: options.pop(field.name) for field in fields(Terms)})
        return command(terms=terms, **options)

    for field in reversed(fields(Terms)):
        kind, text = TERMS_OPTIONS[field.name]
        name = f"--{field.name.replace('_', '-')}"
        take_terms = click.option(name, type=kind, default=field.default, help=text)(take_terms)
    devices = click.Choice(["auto", "gpu", "cpu"])
    return click.option("--device", type=devices, default="auto", help="Device to compute on.")(take_terms)


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Exit with one line and code 1 after an error, or with one line and 128 + its number after a signal."""
    # Without handlers, these signals would end Python at once and leave a partial file.
    for number in END_SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup leaves SIGHUP
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
    except SystemExit as error:  # else the command would succeed without a result, or fail without a word
        report_error(
            f"{describe_error(error)}: the code of the class ended the process; expected it to raise an "
            "error or to return; remove the call of sys.exit"
        )
        sys.exit(1)
    except Exception as error:
        traceback.print_exc()
        report_error(f"{describe_error(error)}; please report this as a defect, with the lines above")
        sys.exit(1)


def raise_interrupt(number: int, _frame: object) -> None:
    """Raise `KeyboardInterrupt` on a signal, as Ctrl-C does; unlike SystemExit, no code catches it by accident."""
    for ended_by in END_SIGNALS:  # SLURM sends SIGTERM twice, and the second one would interrupt the clean-up
        signal.signal(ended_by, signal.SIG_IGN)
    raise KeyboardInterrupt(number)


def restore_signals() -> None:
    """Let the signals end a process that was forked, such as a worker of a loader; only the job has to clean up."""
    for number in END_SIGNALS:
        if signal.getsignal(number) is raise_interrupt:
            signal.signal(number, signal.SIG_DFL)


os.register_at_fork(after_in_child=restore_signals)


@contextmanager
def errors_alone() -> Iterator[None]:
    """Log only errors while the block runs."""
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


def echo_marked(mark: str, subject: str, message: str) -> None:
    """Print a line that begins with a mark; a terminal shows the mark in colour and wraps the line with an indent."""
    indent, message = " " * 16, make_one_line(message)
    if sys.stdout.isatty():
        width = shutil.get_terminal_size().columns
        message = click.wrap_text(message, width, subsequent_indent=indent, initial_indent=indent).lstrip()
    color = {"wrong": "red", "ok": "green"}.get(mark)
    click.echo(f"{click.style(f'{mark:7}', fg=color, bold=True)}{subject:9}{message}")


def echo_verdict(verdict: dict) -> None:
    """Print the verdict of `verify` on one file."""
    if verdict["is_sound"]:
        counts = "{rows} rows, {failed} failed, {embedded_again} embedded again".format(**verdict)
        click.echo(f"{click.style('sound', fg='green', bold=True)}: {verdict['file']}: {counts}")
    for line in verdict["wrong"]:
        click.echo(f"{click.style('wrong', fg='red', bold=True)}: {verdict['file']}: {make_one_line(line)}")
