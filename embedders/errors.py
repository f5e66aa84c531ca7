"""The errors that Tarquet raises on purpose: one base class, and a subclass for each kind of thing a user can fix.

Every message is one line with three parts: where and what (with `!r`), what was expected, what to do.
Only `terminal.one_line_errors` turns them into an exit code.
"""

import traceback
from pathlib import Path

MAX_LINE = 2000


class TarquetError(Exception):
    """Base class of the errors below. Any other exception that reaches the user is a defect of this project."""


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
    """This machine has no NVIDIA driver: only in this case does `device: auto` use the CPU."""


class GpuLostError(GpuError):
    """The leased GPU failed during the job (XID, ECC, fallen off the bus): a retry should use another one."""


def make_one_line(text: str) -> str:
    """Return foreign text as one line that is safe to log: no control characters, at most `MAX_LINE` characters."""
    text = " ".join(text.split())
    text = text if len(text) <= MAX_LINE else f"{text[:MAX_LINE]}..."
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def describe_error(error: BaseException) -> str:
    """Return one line about an exception from a user's code: its type, its message and the line of that code."""
    text = str(error).strip().splitlines()
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_users(frame.filename)]
    place = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    if not text and error.__cause__:  # as of webdataset's DecodingError, whose message is that of its cause
        return f"{type(error).__name__}: {describe_error(error.__cause__)}{place}"
    return f"{type(error).__name__}: {text[0] if text else 'without a message'}{place}"


def _is_users(filename: str) -> bool:
    others = ("<", str(Path(__file__).parent), str(Path(traceback.__file__).parent))
    return not (filename.startswith(others) or "-packages" in filename)
