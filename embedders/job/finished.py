"""Finished outputs under a second name, for jobs that take several shards.

Snakemake removes all the outputs of a job that fails or is killed, and of one that runs again. Such a job would throw
away the shards that it had finished, and a changed tar would embed its neighbours again. So each finished pair of
files gets a second name here, a hard link, under a key of all that decides its content; a later job takes what has
its key. Owns the links and the key; Snakemake still decides what runs.
"""

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from embedders import __version__
from embedders.job.shard_job import ShardJob
from embedders.job.sources import fingerprint_sources
from embedders.output.files import write_whole


class FinishedShards:
    """The finished outputs of a run.

    Args:
        folder: Where their second names are.
        class_path: The embedder's class.
        args: Its arguments.
        options: Whatever else decides the content of an output beside its shard, ready for JSON.
    """

    def __init__(self, folder: str | Path, class_path: str, args: Mapping[str, Any], **options: Any):
        self.folder = Path(folder)
        self._recipe = [class_path, args, fingerprint_sources(class_path, args), options]
        self._versions = [__version__, *map(_find_version, ("torch", "torchvision", "timm"))]

    def keep(self, job: ShardJob) -> None:
        """Give the outputs of a shard their second names, and drop those of an earlier recipe."""
        self.folder.mkdir(parents=True, exist_ok=True)
        names = self._name(job)
        for name, output in zip(names, job.outputs, strict=True):
            _link(Path(output), name)
        for stale in self.folder.glob(f"{names[0].name.partition('-')[0]}-*"):
            if stale not in names:
                stale.unlink(missing_ok=True)

    def take(self, job: ShardJob, any_version: bool = False) -> bool:
        """Put the outputs of a shard in place if they are here; false if they are not.

        Args:
            job: The shard.
            any_version: Whether outputs of other versions of tarquet, torch and timm will do. The process that plans
                a run may have others than its jobs, or none.
        """
        try:
            names = self._name(job)
        except OSError:
            return False  # the job will say that the shard is missing
        if any_version and not names[0].is_file():
            content = names[0].name.rpartition("-")[0].rpartition("-")[0]
            names = sorted(self.folder.glob(f"{content}-*"), key=lambda name: name.stem[-1])
        if len(names) != len(job.outputs) or not all(name.is_file() for name in names):
            return False
        for name, output in zip(names, job.outputs, strict=True):
            Path(output).parent.mkdir(parents=True, exist_ok=True)
            _link(name, Path(output))
            os.utime(output)  # Snakemake wants outputs that are newer than the inputs
        return True

    def _name(self, job: ShardJob) -> list[Path]:
        status = os.stat(job.tar_path)
        content = [self._recipe, os.path.abspath(job.tar_path), status.st_size, status.st_mtime_ns]
        key = "-".join(map(_digest, (job.parquet_path, content, self._versions)))
        return [self.folder / f"{key}-{number}.parquet" for number in range(len(job.outputs))]


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:24]


def _link(source: Path, target: Path) -> None:
    """Give a file a second name, in place of what has that name; a copy where the file system has no hard links."""
    partial = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    try:
        os.link(source, partial)
        partial.replace(target)
    except OSError:
        with write_whole(target) as file, source.open("rb") as content:
            shutil.copyfileobj(content, file)
    finally:
        with suppress(OSError):
            partial.unlink()


def _find_version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
