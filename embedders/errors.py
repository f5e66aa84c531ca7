"""The errors that Tarquet raises on purpose: one root and a kind for each thing a user can mend.

Every message is one line with three parts: where and what (with `!r`), what was expected, what to do.
`terminal.one_line_errors` is the only place that turns them into an exit code.
"""

import traceback
from pathlib import Path

MAX_LINE = 2000


class TarquetError(Exception):
    """Root of all the errors below; anything else that escapes is a defect of this project."""


class ConfigError(TarquetError):
    """A key or value of `config.yaml`, or an option of the command line, cannot be used."""


class EmbedderError(TarquetError):
    """The embedder class cannot be found or built, or breaks the contract of `ImageEmbedder`."""


class ShardError(TarquetError):
    """A shard is missing or damaged, or too many of its samples failed."""


class OutputError(TarquetError):
    """A result cannot be written."""


class GpuError(TarquetError):
    """No GPU can be leased, or the one that was leased is lost."""


class NoDriverError(GpuError):
    """This machine has no NVIDIA driver: the only case in which `device: auto` means the CPU."""


class GpuLostError(GpuError):
    """The leased GPU failed at work (XID, ECC, fallen off the bus): a retry is to take another one."""


def make_one_line(text: str) -> str:
    """Make a stranger's text fit for a log: no line breaks, nothing that a terminal obeys, an end in sight."""
    text = " ".join(text.split())
    text = text if len(text) <= MAX_LINE else f"{text[:MAX_LINE]}..."
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def describe_error(error: BaseException) -> str:
    """Say in one line what a user's code raised, and at which of its own lines."""
    text = str(error).strip().splitlines()
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_users(frame.filename)]
    place = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {text[0] if text else 'without a message'}{place}"


def _is_users(filename: str) -> bool:
    others = ("<", str(Path(__file__).parent), str(Path(traceback.__file__).parent))
    return not (filename.startswith(others) or "-packages" in filename)
