"""What Apptainer must be told, so that a job in a container finds all that it finds outside: image, folders, GPUs.

Used by the Snakefile under `--sdm apptainer`. Snakemake starts the containers; here is only what it cannot know.
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from embedders.errors import ConfigError
from embedders.gpu.lock_folder import FOLDER_VARIABLE
from embedders.reading.remote import is_remote

# Apptainer shows these by itself, and Snakemake the working folder.
_SHOWN = ("/tmp", "/var/tmp", "/proc", "/sys", "/dev")
# To show the host's would hide the image's.
_OF_THE_IMAGE = {Path(path) for path in ("/", "/bin", "/etc", "/lib", "/lib64", "/opt", "/sbin", "/usr", "/var")}
# What the environment may name: the folder of GPU leases, and those in which models are kept.
_VARIABLES = (FOLDER_VARIABLE, "HF_HOME", "HF_HUB_CACHE", "TORCH_HOME", "XDG_CACHE_HOME")


def check_image(image: str) -> None:
    """See that an image is there, if it is a file.

    Raises:
        ConfigError: It is not.
    """
    if "://" not in image and not os.path.exists(image):
        raise ConfigError(
            f"container: there is no image {image!r} (in {os.getcwd()!r}); build it, by `apptainer build tarquet.sif "
            "containers/tarquet.def` in Tarquet's folder, or name another under the key 'container'"
        )


def describe_container(
    shards_and_outputs: Iterable[str], sources: Iterable[str], needs_gpu: bool, environment: Mapping[str, str]
) -> dict[str, str]:
    """Give the variables by which Apptainer shows its containers what jobs need.

    Args:
        shards_and_outputs: Files whose folders are to be shown.
        sources: Files that are to be shown without their neighbours.
        needs_gpu: Whether to show the driver of the GPUs.
        environment: The present one; what a user has set for Apptainer stays.

    Raises:
        ConfigError: A path cannot be shown because of its name.
    """
    wanted = {
        Path(path).absolute() for path in sources if not any(part.endswith("-packages") for part in Path(path).parts)
    }
    wanted |= set(_find_folders(path for path in shards_and_outputs if not is_remote(path)))
    wanted |= {Path(environment[name]) for name in _VARIABLES if environment.get(name)}
    shown = [Path.cwd(), *map(Path, _SHOWN)]
    for path in sorted(wanted - _OF_THE_IMAGE):  # sorted, so that a folder comes before what is in it
        if not any(path.is_relative_to(other) for other in shown) and path.exists():
            shown.append(path)
    binds = [*filter(None, environment.get("APPTAINER_BIND", "").split(","))]
    for bind in map(str, shown[1 + len(_SHOWN) :]):
        if "," in bind or ":" in bind:
            raise ConfigError(
                f"container: {bind!r} cannot be shown to a container: rename it, without comma and colon"
            )
        binds += [bind] if bind not in binds else []
    variables = {"APPTAINER_BIND": ",".join(binds)}
    if needs_gpu:
        variables["APPTAINER_NV"] = "1"  # as --nv; without a driver it does nothing
    return variables


def _find_folders(files: Iterable[str]) -> Iterator[Path]:
    """Find the folders of files: by their names, and those that links lead to."""
    # One file of each folder speaks for its neighbours: to look at a hundred thousand of them takes minutes on a
    # network file system.
    for folder, file in {os.path.dirname(file): file for file in files}.items():
        existing = Path(folder).absolute()
        while not existing.exists():
            existing = existing.parent
        yield from (existing, existing.resolve(), Path(file).resolve().parent)
