"""Files of the Hugging Face hub, from its cache or from the hub itself; and what to do where neither has them."""

from pathlib import Path

from huggingface_hub import hf_hub_download, try_to_load_from_cache
from huggingface_hub.utils import EntryNotFoundError, LocalEntryNotFoundError

from embedders.errors import EmbedderError, make_one_line

_MAX_REASON = 300


def fetch_file(repository: str, names: tuple[str, ...], folder_form: str) -> Path:
    """Fetch the first of several files that a repository of the hub has.

    Args:
        repository: `organisation/name`.
        names: Names that the file may have, the preferred one first.
        folder_form: As in `advise_download`.

    Raises:
        EmbedderError: The cache has none of them, and the hub cannot be reached or has none either.
    """
    for name in names:
        cached = try_to_load_from_cache(repository, name)
        if isinstance(cached, str):
            return Path(cached)
    for name in names:
        try:
            return Path(hf_hub_download(repository, name))
        except LocalEntryNotFoundError as error:  # the hub cannot be reached; an EntryNotFoundError too
            raise explain_missing(repository, folder_form, error) from error
        except EntryNotFoundError:
            continue
        except Exception as error:
            raise explain_missing(repository, folder_form, error) from error
    raise EmbedderError(f"{repository!r} on the Hugging Face hub has no {' or '.join(names)}; expected one of them")


def explain_missing(repository: str, folder_form: str, error: Exception) -> EmbedderError:
    """Return the error for a repository that cannot be had: why, and how to get it to where there is no network."""
    return EmbedderError(
        f"{repository!r} cannot be had from the Hugging Face hub or its cache: {describe_library_error(error)}; "
        f"{advise_download(repository, folder_form)}"
    )


def advise_download(repository: str, folder_form: str) -> str:
    """Say how to get a model of the hub to a machine without a network.

    Args:
        repository: `organisation/name`, with `@revision` where one is wanted.
        folder_form: What `model_name` is for a folder, as `local-dir:FOLDER`.
    """
    name, _, revision = repository.partition("@")
    option = f" --revision {revision}" if revision else ""
    return (
        f"without a network, fetch it elsewhere (hf download {name}{option} --local-dir FOLDER), copy the folder, "
        f"and set model_name: {folder_form}"
    )


def describe_library_error(error: Exception) -> str:
    """Say in one bounded line what a library raised."""
    text = make_one_line(str(error))
    return f"{type(error).__name__}: {text if len(text) <= _MAX_REASON else f'{text[:_MAX_REASON]}...'}"
