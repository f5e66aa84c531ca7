"""Exports a finished run to a folder in another format, which appears complete or not at all.

The export is written to a hidden folder next to the final one and renamed at the end. An export that was stopped
continues with the first missing part, unless the run has changed since then.
"""

import fcntl
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path

from embedders.errors import ConfigError, OutputError, TarquetError
from embedders.export.target import Target, divide
from embedders.output.files import PARTIAL, sync_folder, write_whole
from embedders.output.run import Run, open_run

log = logging.getLogger("embedders")

# Module and class of each format, and the optional library that it needs.
FORMATS = {
    "npy": ("npy:NpyTarget", None),
    "lance": ("lance:LanceTarget", "lancedb"),
    "huggingface": ("hugging_face:HuggingFaceTarget", None),
}
STATE = ".export.json"


def export_run(source: str | Path, form: str, folder: str | Path, columns: Sequence[str] = ()) -> Run:
    """Write the vectors of a finished run to a folder in another format.

    Args:
        source: The run's output folder.
        form: One of `FORMATS`.
        folder: The folder to make.
        columns: The columns of vectors to export; without any, all.

    Raises:
        ConfigError: The source has no finished run or no such column, the folder is not empty, or a library is
            missing.
        ShardError: A file of the run is truncated, or two were made in different ways.
        OutputError: The folder cannot be written to, or the disk is full.
    """
    target_class = find_format(form)
    run, folder = open_run(source, columns), Path(os.path.abspath(folder))
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{str(folder)!r} is not empty; expected a new folder; name another one, or remove it")
    partial = folder.parent / f".{folder.name}{PARTIAL}"
    done, parts = 0, divide(run)
    try:
        partial.mkdir(parents=True, exist_ok=True)
        with lock(partial):
            plan = fingerprint(run, form)
            done = begin(partial, plan)
            target = target_class(run, parts, partial)
            done = target.count_finished(done)
            if done:
                log.info("%d of %d parts were written by an earlier export", done, len(parts))
            for part in parts[done:]:
                target.write(part)
                done += 1
                record(partial, plan, done)
                log.info("%d of %d rows", part.start + part.rows, run.total)
            target.finish()
            (partial / STATE).unlink()
            sync_folder(partial)
            partial.replace(folder)
            sync_folder(folder.parent)
    except TarquetError:
        raise
    except (OSError, RuntimeError) as error:  # lancedb raises RuntimeError
        reason = getattr(error, "strerror", None) or str(error).strip().splitlines()[0]
        raise OutputError(
            f"{str(folder)!r} cannot be written ({reason}); expected a writable folder with enough space; the same "
            f"command continues after {done} of {len(parts)} parts, which are in {str(partial)!r}"
        ) from error
    return run


def find_format(name: str) -> type[Target]:
    """Return the class of a format.

    Raises:
        ConfigError: The library that it needs is not installed.
    """
    (module, _, target), library = FORMATS[name][0].partition(":"), FORMATS[name][1]
    try:
        return getattr(import_module(f"embedders.export.{module}"), target)
    except ModuleNotFoundError as error:
        if error.name != library:
            raise
        raise ConfigError(
            f"--to {name}: it needs {library}, which is not installed; run pip install 'tarquet[{name}]'"
        ) from error


def fingerprint(run: Run, form: str) -> str:
    """Return a hash of the inputs of an export; if it changes, the export starts over."""
    return hashlib.sha256(json.dumps([form, run.rows, run.sizes, list(run.columns)]).encode()).hexdigest()


def begin(partial: Path, plan: str) -> int:
    """Return how many parts an earlier export has finished, after removing those of a different export."""
    with suppress(OSError, ValueError, KeyError):
        state = json.loads((partial / STATE).read_text())
        if state["plan"] == plan:
            return state["done"]
        log.info("the run has changed since an earlier export of it was stopped; the export starts over")
    for path in partial.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    record(partial, plan, 0)
    return 0


def record(partial: Path, plan: str, done: int) -> None:
    """Record how many parts are written."""
    with write_whole(partial / STATE) as file:
        file.write(json.dumps({"plan": plan, "done": done}).encode())


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Lock a folder while the block runs; the lock ends with the process.

    Raises:
        ConfigError: Another process has locked it.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress_unsupported():
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def suppress_unsupported() -> Iterator[None]:
    """Do without a lock if the file system has none."""
    try:
        yield
    except BlockingIOError as error:
        raise ConfigError("another export is writing this folder; expected only one; wait for it to end") from error
    except OSError:
        pass
