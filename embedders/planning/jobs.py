"""Which shards each job of a run embeds.

The plan is saved in the output folder for the processes that an executor starts for single jobs.
"""

import hashlib
import json
import re
import secrets
import shutil
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from types import MappingProxyType

from embedders.errors import OutputError
from embedders.output.files import write_whole
from embedders.planning.parts import WHOLE, Part
from embedders.planning.shards import group_shards
from embedders.reading.remote import Version


@dataclass
class Jobs:
    """The jobs of a run that embed.

    Attributes:
        is_grouped: Whether a job may have several shards.
        part: The part of the run that these jobs belong to.
        run: Identifies this run.
        shards: Names of the shards by job; a job is named after its first shard and the number of other shards.
    """

    is_grouped: bool
    part: Part = WHOLE
    run: str = field(default_factory=lambda: secrets.token_hex(4))
    shards: dict[str, list[str]] = field(default_factory=dict)

    @cached_property
    def by_shard(self) -> dict[str, str]:
        """The job of each shard."""
        return {shard: job for job, shards in self.shards.items() for shard in shards}

    def name_output(self, folder: str, job: str) -> str:
        """Return the output of a job for Snakemake: the vectors of its shard or, for grouped jobs, a marker file.

        Snakemake deletes the outputs that it knows of a failed job. It must not delete the finished shards of a job
        of several, so it knows only the marker, which is valid for this run alone.
        """
        if not self.is_grouped:
            return f"{folder}/embeddings/{job}.parquet"
        return f"{self.part.find_folder(folder)}/jobs/{self.run}/{job}.done"

    def name_addition(self, job: str) -> str:
        """Return the name of a job's part of the record, which is short even if the name of the job is long."""
        return f"{hashlib.sha256(job.encode()).hexdigest()[:16]}-{self.run}"

    def save(self, folder: str) -> None:
        """Save the jobs in the record of a folder, in place of those of an earlier run."""
        shutil.rmtree(Path(self.part.find_folder(folder), "jobs"), ignore_errors=True)
        with write_whole(_find_path(folder, self.part)) as file:
            file.write(json.dumps({key: value for key, value in asdict(self).items() if key != "part"}).encode())


def begin_jobs(
    shards: Mapping[str, str],
    shards_per_job: int | str,
    versions: Mapping[str, Version] = MappingProxyType({}),
    part: Part = WHOLE,
) -> Jobs:
    """Return the jobs of a part of a run, with none planned yet.

    Whether they are grouped depends on all the shards, not only on those that an earlier run has left to do.
    """
    return Jobs(is_grouped=any(len(group) > 1 for group in _group(shards, shards_per_job, versions)), part=part)


def plan_jobs(
    jobs: Jobs,
    shards: Mapping[str, str],
    unfinished: Collection[str],
    shards_per_job: int | str,
    versions: Mapping[str, Version] = MappingProxyType({}),
) -> None:
    """Divide the shards of a run, or of a part of it, among its jobs.

    Args:
        jobs: The jobs.
        shards: Path by name.
        unfinished: Names of the shards to embed.
        shards_per_job: As in the configuration.
        versions: Of the shards with an address, by address.
    """
    todo = {shard: path for shard, path in shards.items() if shard in unfinished}
    groups = _group(todo, shards_per_job, versions) if jobs.is_grouped else [[shard] for shard in todo]
    jobs.shards = {_name_job(group) if jobs.is_grouped else group[0]: group for group in groups}


def _name_job(group: list[str]) -> str:
    # A single shard whose name looks like that of a group gets a number too: no two jobs have one name.
    is_ambiguous = re.search(r"\+[0-9]+$", group[0]) is not None
    return f"{group[0]}+{len(group) - 1}" if len(group) > 1 or is_ambiguous else group[0]


def _group(shards: Mapping[str, str], shards_per_job: int | str, versions: Mapping[str, Version]) -> list[list[str]]:
    return group_shards(shards, shards_per_job, versions) if shards else []


def load_jobs(folder: str, part: Part = WHOLE) -> Jobs:
    """Load the jobs of the current run, or of a part of it, in a folder.

    Raises:
        OutputError: There are none.
    """
    path = _find_path(folder, part)
    try:
        return Jobs(part=part, **json.loads(path.read_text()))
    except (OSError, ValueError) as error:
        raise OutputError(
            f"{str(path)!r} cannot be read ({error}); expected the file that a run writes when it starts; mount the "
            "folder on this machine at the same path as on the run's"
        ) from error


def _find_path(folder: str, part: Part) -> Path:
    return Path(part.find_folder(folder), "jobs.json")
