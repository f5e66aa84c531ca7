"""The settings of Apptainer that give a job in a container what it has outside: image, folders, GPUs.

Used by the Snakefile under `--sdm apptainer`. Snakemake starts the containers; this adds only what it cannot know.
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from embedders.errors import ConfigError
from embedders.gpu.lock_folder import FOLDER_VARIABLE
from embedders.reading.remote import is_remote

# Apptainer mounts these by default, and Snakemake mounts the working folder.
_SHOWN = ("/tmp", "/var/tmp", "/proc", "/sys", "/dev")
# Mounting the host's would hide the image's.
_OF_THE_IMAGE = {Path(path) for path in ("/", "/bin", "/etc", "/lib", "/lib64", "/opt", "/sbin", "/usr", "/var")}
# Environment variables that may name folders that jobs need: of the GPU leases, of copies of shards, of model caches.
_VARIABLES = (FOLDER_VARIABLE, "TMPDIR", "HF_HOME", "HF_HUB_CACHE", "TORCH_HOME", "XDG_CACHE_HOME")


def check_image(image: str) -> None:
    """Check that an image exists, if it is a file.

    Raises:
        ConfigError: It does not.
    """
    if "://" not in image and not os.path.exists(image):
        raise ConfigError(
            f"container: there is no image {image!r} (in {os.getcwd()!r}); build it with `apptainer build "
            "tarquet.sif containers/tarquet.def` in Tarquet's folder, or set the key 'container' to another image"
        )


def describe_container(
    shards_and_outputs: Iterable[str], sources: Iterable[str], needs_gpu: bool, environment: Mapping[str, str]
) -> dict[str, str]:
    """Return the environment variables that make Apptainer mount what jobs need.

    Args:
        shards_and_outputs: Files whose folders are mounted.
        sources: Files that are mounted without the other files of their folders.
        needs_gpu: Whether to mount the GPU driver.
        environment: The current environment; what a user has set for Apptainer stays.

    Raises:
        ConfigError: A path cannot be mounted because of its name.
    """
    wanted = {
        Path(path).absolute() for path in sources if not any(part.endswith("-packages") for part in Path(path).parts)
    }
    wanted |= set(_find_folders(path for path in shards_and_outputs if not is_remote(path)))
    wanted |= {Path(environment[name]) for name in _VARIABLES if environment.get(name)}
    shown = [Path.cwd(), *map(Path, _SHOWN)]
    for path in sorted(wanted - _OF_THE_IMAGE):  # sorted, so that a folder comes before its content
        if not any(path.is_relative_to(other) for other in shown) and path.exists():
            shown.append(path)
    binds = [*filter(None, environment.get("APPTAINER_BIND", "").split(","))]
    for bind in map(str, shown[1 + len(_SHOWN) :]):
        if "," in bind or ":" in bind:
            raise ConfigError(
                f"container: {bind!r} cannot be mounted in a container; rename it, without comma and colon"
            )
        binds += [bind] if bind not in binds else []
    variables = {"APPTAINER_BIND": ",".join(binds)}
    if needs_gpu:
        variables["APPTAINER_NV"] = "1"  # like --nv; has no effect without a driver
    return variables


def _find_folders(files: Iterable[str]) -> Iterator[Path]:
    """Yield the folders of files, and the folders that links lead to."""
    # Only one file of each folder is examined: a hundred thousand would take minutes on a network file system.
    for folder, file in {os.path.dirname(file): file for file in files}.items():
        existing = Path(folder).absolute()
        while not existing.exists():
            existing = existing.parent
        yield from (existing, existing.resolve(), Path(file).resolve().parent)
