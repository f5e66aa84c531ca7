"""Divides a run among several processes, such as the tasks of a job array: each embeds one part of the shards."""

from collections.abc import Mapping
from dataclasses import dataclass

from embedders.errors import ConfigError
from embedders.output.record import RECORD


@dataclass(frozen=True)
class Part:
    """One of the parts of a run; a run that is not divided is the only one.

    Attributes:
        number: From 1 to `count`.
        count: Number of parts.
    """

    number: int = 1
    count: int = 1

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    @property
    def is_whole(self) -> bool:
        """Whether this is the whole run."""
        return self.count == 1

    def select(self, shards: Mapping[str, str]) -> dict[str, str]:
        """Return the shards of this part: every `count`th one, by name.

        They depend on all the shards, not on those that are left to do, so parts that start at different times do not
        overlap.
        """
        names = list(shards)[self.number - 1 :: self.count]
        return {name: shards[name] for name in names}

    def find_folder(self, output_dir: str) -> str:
        """Return the folder for the files of this run, such as the one that claims the output folder."""
        folder = f"{output_dir}/{RECORD}"
        return folder if self.is_whole else f"{folder}/parts/{self.number}-of-{self.count}"


WHOLE = Part()


def read_part(text: str) -> Part:
    """Return the part that a configuration names, such as `3/16`.

    Raises:
        ConfigError: There is no such part.
    """
    number, count = map(int, text.split("/"))
    if number > count:
        raise ConfigError(
            f"config: part is {text!r}; expected a number from 1 to {count}, the number of parts; for the tasks "
            f"of an array, write for example part=$SLURM_ARRAY_TASK_ID/{number} with --array=1-{number}"
        )
    return Part(number, count)
