"""The options of the embedders whose model and preprocessing come from a library.

It uses nothing that a user's own subclass could not use.
"""

from collections.abc import Sequence
from types import ModuleType
from typing import Any

from PIL import ImageColor

from embedders.base import ImageEmbedder
from embedders.builtin.pixel_model import AUTOCAST_TYPES
from embedders.errors import EmbedderError

POOLS = ("head", "cls", "mean", "cls+mean", "tokens")


class PretrainedImageEmbedder(ImageEmbedder):
    """Has the options that these embedders have in common.

    Args:
        model_name: The library's name of the model.
        batch_size: Images in a batch.
        num_threads_per_worker: Decoding threads; `None` uses all the threads of the job.
        image_embedding_column: Name of the column of vectors.
        normalize_embeddings: Whether to scale every vector to norm 1.
        classifiers: As in `ImageEmbedder`.
        autocast: Whether a GPU computes in bfloat16 (float16 before Ampere), while a CPU always uses float32;
            or `"bfloat16"` or `"float16"`, for any device.
        background: Colour behind transparent pixels: a name that Pillow knows, or `#rrggbb`.

    Raises:
        EmbedderError: An option has another value.
    """

    def __init__(
        self,
        model_name: str,
        batch_size: int = 64,
        num_threads_per_worker: int | None = None,
        image_embedding_column: str = "image_embedding",
        normalize_embeddings: bool = True,
        classifiers: Sequence = (),
        autocast: bool | str = True,
        background: str = "white",
    ):
        super().__init__(model_name, image_embedding_column, classifiers)
        try:
            ImageColor.getrgb(background)
        except ValueError as error:
            raise EmbedderError(
                f"background {background!r}: expected a colour, such as 'white' or '#rrggbb'"
            ) from error
        if autocast not in (True, False, *AUTOCAST_TYPES):
            raise EmbedderError(f"autocast {autocast!r}: expected true, false, {' or '.join(AUTOCAST_TYPES)}")
        require_flags(normalize_embeddings=normalize_embeddings)
        self.batch_size = batch_size
        self.num_threads_per_worker = num_threads_per_worker
        self.normalize_embeddings = normalize_embeddings
        self.autocast = autocast
        self.background = background


def require_pool(pool: str) -> None:
    """Check that a pooling is one of `POOLS`.

    Raises:
        EmbedderError: It is not.
    """
    if pool not in POOLS:
        raise EmbedderError(f"pool {pool!r}: expected one of {', '.join(POOLS)}")


def require_flags(**flags: Any) -> None:
    """Check that these options are true or false: a text such as "false" would count as true.

    Raises:
        EmbedderError: One is neither.
    """
    for name, value in flags.items():
        if value not in (True, False):
            raise EmbedderError(f"{name} {value!r}: expected true or false, without quotes")


def require_library(library: ModuleType | ImportError, name: str, extra: str) -> None:
    """Check that a library is installed that is an extra of this package.

    Args:
        library: The library, or the error of its import.
        name: Its name.
        extra: The name of the extra.

    Raises:
        EmbedderError: It cannot be imported.
    """
    if isinstance(library, ImportError):
        raise EmbedderError(
            f"{name} cannot be imported: {library}; it is an extra: pip install 'tarquet[{extra}]'"
        ) from library
