"""The record of an output folder: what each file in it was made from.

A later run reads it to find what is out of date, from whatever working folder it starts. Each job adds a file of its
own, so that no two processes write to the same file; the process that plans a run joins them.
"""

import hashlib
import json
import os
import re
import secrets
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from time import time_ns
from typing import Any

from embedders.errors import OutputError
from embedders.output.files import write_whole

RECORD, ADDITIONS = "record", "new"


@dataclass(frozen=True)
class Origin:
    """What an output was made from.

    Attributes:
        recipe: Digest of the recipe.
        bytes: Size of its shard; `None` where there is none.
        mtime_ns: Time of change of its shard.
        sha256: SHA-256 of its shard.
        ledger: For a retry, SHA-256 of the ledger whose samples it holds.
        etag: Entity tag of its shard, if it was fetched and the server has told one.
    """

    recipe: str
    bytes: int | None = None
    mtime_ns: int | None = None
    sha256: str | None = None
    ledger: str | None = None
    etag: str | None = None


class Addition:
    """What one process adds to the record of a folder, all made by one recipe.

    Args:
        folder: The output folder.
        recipe: What decides the content of an output beside its shard.
        name: Name of its file. A process that is started again under the same name goes on with what it had added.
            Without one, the name is random.

    Attributes:
        recipe: What decides the content of an output beside its shard.
    """

    def __init__(self, folder: str | Path, recipe: dict[str, Any], name: str | None = None):
        self._folder = Path(folder)
        self._path = _name_addition(self._folder, name)
        self.recipe = recipe
        self._origins: dict[str, dict[str, Any]] = {}
        with suppress(FileNotFoundError):
            self._origins = json.loads(self._path.read_bytes())["outputs"]

    def name_shard(self, output: str | Path) -> str:
        """Return the name of an output's shard in the run; empty if the output lies elsewhere."""
        match = re.match("(retried/)?embeddings/(.+)", self._name(output))
        return match[2] if match else ""

    def has(self, output: str | Path) -> bool:
        """Return whether an output was added."""
        return self._name(output) in self._origins

    def add(self, output: str | Path, **origin: Any) -> None:
        """Add an output, with the attributes of its `Origin`."""
        self._origins[self._name(output)] = asdict(Origin(digest(self.recipe), **origin))
        with write_whole(self._path) as file:
            recipes = {digest(self.recipe): self.recipe}
            file.write(json.dumps({"at_ns": time_ns(), "recipes": recipes, "outputs": self._origins}).encode())

    def _name(self, output: str | Path) -> str:
        return os.path.relpath(output, self._folder).removesuffix(".parquet")


class Record:
    """What the outputs of a folder were made from.

    Args:
        folder: The output folder.

    Attributes:
        recipes: What decides the content of an output beside its shard, by digest.
        origins: By the path of the output in the folder, without a suffix: `embeddings/00000`.

    Raises:
        OutputError: The record cannot be read.
    """

    def __init__(self, folder: str | Path):
        self._path = Path(folder, RECORD, "outputs.json")
        self._additions: list[Path] = []
        self.recipes: dict[str, dict[str, Any]] = {}
        self.origins: dict[str, Origin] = {}
        self._read()

    def sign(self, shards: Iterable[str]) -> str:
        """Return a digest of what the vectors of shards were made from."""
        origins = {shard: self.origins.get(f"embeddings/{shard}") for shard in shards}
        return sign_vectors({shard: (origin.recipe, origin.sha256) for shard, origin in origins.items() if origin})

    def adopt(self, origins: Mapping[str, Origin], recipes: Mapping[str, dict[str, Any]], at_ns: int) -> None:
        """Add outputs that have no entry yet, here and in the folder.

        Args:
            origins: What they were made from, by name.
            recipes: The recipes of these, by digest.
            at_ns: When the outputs were read, so that what a job adds later takes precedence.
        """
        self.origins, self.recipes = {**origins, **self.origins}, {**recipes, **self.recipes}
        outputs = {name: asdict(origin) for name, origin in origins.items()}
        # A dry run need not be allowed to write.
        with suppress(OutputError), write_whole(_name_addition(self._path.parent.parent)) as file:
            file.write(json.dumps({"at_ns": at_ns, "recipes": recipes, "outputs": outputs}).encode())

    def join(self) -> None:
        """Join what jobs have added into one file. Only one process may do so at a time."""
        self._read()
        if not self._additions:
            return
        used = {origin.recipe for origin in self.origins.values()}
        joined = {
            "recipes": {key: recipe for key, recipe in self.recipes.items() if key in used},
            "outputs": {name: asdict(origin) for name, origin in self.origins.items()},
        }
        with write_whole(self._path) as file:
            file.write(json.dumps(joined, indent=0).encode())
        for path in self._additions:
            path.unlink(missing_ok=True)

    def _read(self) -> None:
        self._additions = list(self._path.parent.glob(f"{ADDITIONS}/[!.]*.json"))
        parts = []
        for path in [self._path, *self._additions]:
            with suppress(FileNotFoundError):  # joined meanwhile by a run that started
                try:
                    parts.append(json.loads(path.read_bytes()))
                except ValueError as error:
                    raise OutputError(
                        f"{str(path)!r} cannot be read ({error}); expected the record of how results were made; put "
                        "back a copy, or remove it; the footers of the results say the same"
                    ) from error
        for part in sorted(parts, key=lambda part: part.get("at_ns", 0)):
            self.recipes |= part["recipes"]
            self.origins |= {name: Origin(**origin) for name, origin in part["outputs"].items()}


def _name_addition(folder: Path, name: str | None = None) -> Path:
    return folder / RECORD / ADDITIONS / f"{name or secrets.token_hex(8)}.json"


def digest(recipe: Mapping[str, Any]) -> str:
    """Return a short digest of a recipe."""
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:24]


def sign_vectors(made_from: Mapping[str, tuple[str, str | None]]) -> str:
    """Return a digest of what the vectors of shards were made from.

    Args:
        made_from: The digest of the recipe and the SHA-256 of the tar, by the name of the shard.
    """
    return digest(made_from)


def find_time(path: str | Path) -> int | None:
    """Return the time of change of a file, in nanoseconds; `None` if there is none."""
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return None
