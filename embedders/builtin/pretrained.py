"""What the embedders share whose model and preprocessing come from a library: options, pixels, the model's callable.

It stands on nothing that a user's own subclass could not use.
"""

from collections.abc import Sequence
from types import ModuleType

import torch
from PIL import ImageColor

from embedders.base import ImageEmbedder
from embedders.errors import EmbedderError

AUTOCAST_TYPES = ("bfloat16", "float16")


class PretrainedImageEmbedder(ImageEmbedder):
    """Holds the options that these embedders have in common.

    Args:
        model_name: As the library names the model.
        batch_size: Images in a batch.
        num_threads_per_worker: Decoding threads; `None` takes what the job was given.
        image_embedding_column: Name of the column of vectors.
        normalize_embeddings: Whether to scale every vector to norm 1.
        classifiers: As in `ImageEmbedder`.
        autocast: Whether a GPU computes in bfloat16 (float16 before Ampere), while a CPU keeps to float32; or
            `"bfloat16"` or `"float16"`, for any device.
        background: What transparency is laid on, any colour that Pillow knows by name or `#rrggbb`.

    Raises:
        EmbedderError: An option is not of these.
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
            raise EmbedderError(f"background {background!r}: expected a colour, as 'white' or '#rrggbb'") from error
        if autocast not in (True, False, *AUTOCAST_TYPES):
            raise EmbedderError(f"autocast {autocast!r}: expected true, false, {' or '.join(AUTOCAST_TYPES)}")
        self.batch_size = batch_size
        self.num_threads_per_worker = num_threads_per_worker
        self.normalize_embeddings = normalize_embeddings
        self.autocast = autocast
        self.background = background


class PixelModel:
    """The callable that a job feeds: a batch of pixels -> float32 vectors.

    Args:
        model: Takes normalised pixels, float32 of shape (n, 3, height, width).
        mean: What is subtracted from a batch, by channel; on the scale of its pixels, 0 to 255 for uint8.
        std: What it is divided by, likewise.
        device: `"cuda"` or `"cpu"`.
        embedder: Whose options say whether vectors are scaled to norm 1, and which type computes.
        memory_format: How pixels are laid out for the model.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        mean: Sequence[float],
        std: Sequence[float],
        device: str,
        embedder: PretrainedImageEmbedder,
        memory_format: torch.memory_format = torch.contiguous_format,
    ):
        self.model = model
        self.device = torch.device(device)
        self.mean, self.std = (torch.tensor(each).view(1, -1, 1, 1).to(self.device) for each in (mean, std))
        self.normalize = embedder.normalize_embeddings
        self.memory_format = memory_format
        autocast = embedder.autocast
        self.autocast = autocast in AUTOCAST_TYPES or (autocast and self.device.type == "cuda")
        if autocast in AUTOCAST_TYPES:
            self.dtype = getattr(torch, autocast)
        else:
            self.dtype = torch.bfloat16 if self.autocast and torch.cuda.is_bf16_supported() else torch.float16

    def __call__(self, batch: torch.Tensor) -> torch.Tensor:
        pixels = batch.to(self.device, torch.float32, non_blocking=True).sub(self.mean).div_(self.std)
        pixels = pixels.contiguous(memory_format=self.memory_format)
        with torch.inference_mode(), torch.autocast(self.device.type, self.dtype, enabled=self.autocast):
            vectors = self.model(pixels)
        vectors = vectors.float()
        return torch.nn.functional.normalize(vectors, dim=-1) if self.normalize else vectors


def require_library(library: ModuleType | ImportError, name: str, extra: str) -> None:
    """Refuse to go on without a library that is an extra of this package.

    Args:
        library: The library; or why it cannot be imported.
        name: Its name.
        extra: The extra's.

    Raises:
        EmbedderError: It cannot be imported.
    """
    if isinstance(library, ImportError):
        raise EmbedderError(
            f"{name} cannot be imported: {library}; it is an extra: pip install 'tarquet[{extra}]'"
        ) from library
