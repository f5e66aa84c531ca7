"""What a job needs of an embedder's loader, the default one or its own: the batches, and what the tar holds.

Owns calling a loader and counting the samples that it should yield; not their rows (`stream`).
"""

from collections.abc import Collection, Iterator
from contextlib import closing, nullcontext
from typing import Any

from embedders.base import ImageEmbedder, uses_default_loader
from embedders.errors import EmbedderError, TarquetError, describe_error
from embedders.gpu.failures import explain_gpu_failure
from embedders.output.columns import Columns
from embedders.output.failed import SampleError
from embedders.output.ledger import Ledger
from embedders.reading.loader import ShardLoad
from embedders.reading.metadata import list_suffixes, read_metadata
from embedders.reading.samples import read_samples

_END = object()


def find_fields(embedder: ImageEmbedder, columns: Columns) -> dict[str, str] | None:
    """Return the type of each metadata field to read, for the columns and for `decode`; `None` reads all.

    A loader of the embedder's own that calls the default one may use any field.

    Raises:
        EmbedderError: `metadata_fields` is a text, whose letters would be the fields: ("label") without the comma.
    """
    if isinstance(embedder.metadata_fields, str):
        field = embedder.metadata_fields
        raise EmbedderError(
            f"{embedder.model_name}: metadata_fields is the text {field!r}; expected names, as in [{field!r}]; add "
            "the brackets"
        )
    if columns.needed is None or not uses_default_loader(embedder):
        return None
    return dict.fromkeys(embedder.metadata_fields, "string") | columns.needed


def require_loader(embedder: ImageEmbedder, only: Collection[str] | None, image_suffix: str) -> None:
    """Check that the loader of an embedder can do what the options ask for.

    Raises:
        EmbedderError: It cannot.
    """
    if not hasattr(embedder, "classifiers"):
        raise EmbedderError(f"{type(embedder).__name__}.__init__ does not call super().__init__(...); add the call")
    if only is not None and not uses_default_loader(embedder):
        raise EmbedderError(f"{embedder.model_name} has its own loader, which cannot embed only chosen samples")
    if image_suffix and not uses_default_loader(embedder):
        raise EmbedderError(
            f"{embedder.model_name} has its own loader, which ignores image_suffix {image_suffix!r}; expected none; "
            "leave it out, and choose the image in load_dataset_shard"
        )


def read_batches(
    embedder: ImageEmbedder, tar_path: str, device: str, load: ShardLoad
) -> Iterator[tuple[Any, list[dict]]]:
    """Yield the batches of an embedder's loader.

    Raises:
        EmbedderError: A custom loader raised, or does not yield what it should.
        GpuError: A custom loader decodes on the GPU, which is out of memory or lost.
    """
    where = f"{tar_path}: {embedder.model_name}: load_dataset_shard"
    try:
        batches: Any = iter(load.run(embedder.load_dataset_shard, tar_path))
        with closing(batches) if hasattr(batches, "close") else nullcontext():
            while (pair := load.run(next, batches, _END)) is not _END:
                images, metadata = pair
                if not isinstance(metadata, list | tuple) or not all(isinstance(sample, dict) for sample in metadata):
                    raise TypeError(
                        f"its metadata is a {type(metadata).__name__}, not a list with one dict per image"
                    )
                yield images, list(metadata)
                del pair, images  # else they stay in memory while the next batch is loaded
    except TarquetError:
        raise
    except Exception as error:
        if uses_default_loader(embedder):
            raise
        raise explain_gpu_failure(error, where, device) or EmbedderError(
            f"{where} failed: {describe_error(error)}; expected it to yield pairs of a batch and a list of dicts; "
            "to leave out only a bad sample, catch its error there (webdataset: handler=wds.warn_and_continue)"
        ) from error


def count_samples(tar_path: str, id_col: str, ledger: Ledger, accept_damage: bool) -> tuple[dict[str, str], set[str]]:
    """Add every sample of the tar to the ledger; a custom loader does not do so itself.

    Returns:
        Key by id, for loaders whose metadata has no `__key__`; the keys of samples without an id.
    """
    fields = Columns(id_col).needed
    suffixes = list_suffixes(fields)
    ids, without_id = {}, set()
    samples = read_samples(tar_path, accept_damage=accept_damage, wants=lambda name: name.lower().endswith(suffixes))
    for sample in samples:
        ledger.open(sample.account)
        is_later = sample.account != sample.key  # a repeated key; a custom loader may merge the members of a key
        if fields and (sample.problem is None or is_later):
            try:
                sample_id = read_metadata(sample, fields).get(id_col)
            except SampleError:
                continue  # the id stays unknown; a loader that yields the sample could read it
            if sample_id is None:
                without_id.update([] if is_later else [sample.key])
            else:
                without_id.discard(sample.key)
                ids[str(sample_id)] = sample.key
    return ids, without_id


def add_key(metadata: dict, id_col: str, ids: dict[str, str]) -> dict:
    """Return the metadata with the WebDataset key added, for a loader that knows a sample only by its id."""
    if "__key__" in metadata or metadata.get(id_col) is None:
        return metadata
    sample_id = str(metadata[id_col])
    return {"__key__": ids.get(sample_id, sample_id), **metadata}
