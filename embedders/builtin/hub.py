"""Files of the Hugging Face hub, from its cache or the hub, and advice for a machine without a network."""

from pathlib import Path

from huggingface_hub import hf_hub_download, try_to_load_from_cache
from huggingface_hub.utils import EntryNotFoundError, LocalEntryNotFoundError

from embedders.errors import EmbedderError, make_one_line

# What the name of a model on the hub, or in a folder, begins with in timm and open_clip.
HUB, FOLDER = "hf-hub:", "local-dir:"
_MAX_REASON = 300


def fetch_file(repository: str, names: tuple[str, ...]) -> Path:
    """Fetch the first of several files that a repository of the hub has, for a library that knows `local-dir:`.

    Args:
        repository: `organisation/name`.
        names: Names that the file may have, the preferred one first.

    Raises:
        EmbedderError: The cache has none of them, and the hub has none either or cannot be reached.
    """
    for name in names:
        cached = try_to_load_from_cache(repository, name)
        if isinstance(cached, str):
            return Path(cached)
    for name in names:
        try:
            return Path(hf_hub_download(repository, name))
        except LocalEntryNotFoundError as error:  # the hub cannot be reached; an EntryNotFoundError too
            raise _explain_missing(repository, error) from error
        except EntryNotFoundError:
            continue
        except Exception as error:
            raise _explain_missing(repository, error) from error
    raise EmbedderError(f"{repository!r} on the Hugging Face hub has no {' or '.join(names)}; expected one of them")


def advise_download(repository: str, folder_form: str) -> str:
    """Return how to get a model of the hub to a machine without a network.

    Args:
        repository: `organisation/name`, or `organisation/name@revision`.
        folder_form: The `model_name` of a folder, such as `local-dir:FOLDER`.
    """
    name, _, revision = repository.partition("@")
    option = f" --revision {revision}" if revision else ""
    return (
        f"without a network, fetch it elsewhere (hf download {name}{option} --local-dir FOLDER), copy the folder, "
        f"and set model_name: {folder_form}"
    )


def describe_library_error(error: Exception) -> str:
    """Return an error that a library raised as one line of limited length."""
    text = make_one_line(str(error))
    return f"{type(error).__name__}: {text if len(text) <= _MAX_REASON else f'{text[:_MAX_REASON]}...'}"


def _explain_missing(repository: str, error: Exception) -> EmbedderError:
    return EmbedderError(
        f"{repository!r} cannot be read from the Hugging Face hub or its cache: {describe_library_error(error)}; "
        f"{advise_download(repository, f'{FOLDER}FOLDER')}"
    )
