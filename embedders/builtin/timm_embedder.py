"""`TimmImageEmbedder`: any model of timm as an embedder. The only importer of timm.

It stands on nothing that a user's own subclass could not use.
"""

import difflib
import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, ImageColor
from torch.nn.functional import interpolate

from embedders.base import ImageEmbedder
from embedders.errors import EmbedderError
from embedders.reading import jpeg
from embedders.reading.images import ImageError, decode_image
from embedders.reading.light_torch import leave_out_compiler

with leave_out_compiler():
    import timm
    from timm.data import create_transform, resolve_data_config

log = logging.getLogger(__name__)

_AUTOCAST_TYPES = ("bfloat16", "float16")
# Numbers of classes of label sets; of the models below, the ones with another number end in a projection.
_LABEL_SETS = (0, 1000, 11821)
_CONTRASTIVE = ("clip", "pe_core")
# Up to here every Pillow resizes the width first, as torch always does; from 13 on, not that of taller images.
_MAX_HEIGHT_BY_WIDTH = 2


class TimmImageEmbedder(ImageEmbedder):
    """Embeds images with a model of timm, preprocessed as timm's own evaluation of that model does.

    The vector is the pooled feature before the classifier; for CLIP-style entries, whose embedding is their
    projection, it is the projection.

    Args:
        model_name: A name that `timm.create_model` knows.
        pretrained: Whether to load timm's weights (from the Hugging Face hub or its cache).
        batch_size: Images in a batch.
        num_threads_per_worker: Decoding threads; `None` takes what the job was given.
        image_embedding_column: Name of the column of vectors.
        normalize_embeddings: Whether to scale every vector to length 1.
        classifiers: As in `ImageEmbedder`.
        autocast: Whether a GPU computes in bfloat16 (float16 before Ampere), while a CPU keeps to float32; or
            `"bfloat16"` or `"float16"`, for any device.
        compile: Whether `torch.compile` makes a program of the model first. It takes the time of thousands of images,
            needs a C++ compiler on a CPU, and pays with many shards in a job.
        use_index_files: Accepted for NeMo Curator's signature; this reader needs no index.
        checkpoint_path: Local weights, `.safetensors` or a state dict of torch, instead of `pretrained`.
        keep_head: Whether the vector is what the model's last layer gives; `None` decides as said above.
        background: What transparency is laid on.
    """

    def __init__(
        self,
        model_name: str,
        pretrained: bool = False,
        batch_size: int = 64,
        num_threads_per_worker: int | None = None,
        image_embedding_column: str = "image_embedding",
        normalize_embeddings: bool = True,
        classifiers: Sequence = (),
        autocast: bool | str = True,
        use_index_files: bool = False,
        checkpoint_path: str | None = None,
        keep_head: bool | None = None,
        background: str = "white",
        compile: bool = False,
    ):
        super().__init__(model_name, image_embedding_column, classifiers)
        self._pretrained_cfg = _find_pretrained_cfg(model_name)
        if checkpoint_path is not None and not Path(checkpoint_path).is_file():
            raise EmbedderError(f"checkpoint_path {checkpoint_path!r}: there is no such file; expected weights")
        try:
            ImageColor.getrgb(background)
        except ValueError as error:
            raise EmbedderError(f"background {background!r}: expected a colour, as 'white' or '#rrggbb'") from error
        if autocast not in (True, False, *_AUTOCAST_TYPES):
            raise EmbedderError(f"autocast {autocast!r}: expected true, false, {' or '.join(_AUTOCAST_TYPES)}")
        self.pretrained = pretrained
        self.batch_size = batch_size
        self.num_threads_per_worker = num_threads_per_worker
        self.normalize_embeddings = normalize_embeddings
        self.autocast = autocast
        self.checkpoint_path = checkpoint_path
        self.keep_head = keep_head
        self.background = background
        self.compile = compile
        self._config = resolve_data_config(pretrained_cfg=self._pretrained_cfg.to_dict(), use_test_size=True)
        # use_prefetcher stops timm's transform before the division and normalisation: both are done on the device
        self._transform = create_transform(**self._config, is_training=False, use_prefetcher=True)
        self._short_side = _find_short_side(self._config)

    def load_embedding_model(self, device: str) -> "TimmModel":
        """Load the model; a batch is uint8 of shape (n, 3, height, width), the vectors are float32 (n, D).

        Raises:
            EmbedderError: The weights cannot be had or do not fit.
        """
        keep_head = self._ends_in_projection() if self.keep_head is None else self.keep_head
        options = {} if keep_head else {"num_classes": 0}
        try:
            model = timm.create_model(
                self.model_name, pretrained=self.pretrained and self.checkpoint_path is None, **options
            )
        except Exception as error:
            raise EmbedderError(
                f"timm cannot load {self.model_name!r}: {type(error).__name__}: {str(error).splitlines()[0]}; "
                "without a network, set checkpoint_path to local weights"
            ) from error
        if self.checkpoint_path is not None:
            self._load_checkpoint(model)
        elif not self.pretrained:
            log.warning("%s has random weights; set pretrained: true or checkpoint_path", self.model_name)
        model = model.eval().to(device, memory_format=torch.channels_last)
        if self.compile:
            model = PaddedModel(torch.compile(model, dynamic=False))
        return TimmModel(model, self._config, device, self.normalize_embeddings, self.autocast)

    def decode(self, encoded: bytes) -> torch.Tensor:
        """Turn one encoded image into uint8 of shape (3, height, width), resized and cropped as timm would.

        The common JPEG takes a third of the time of timm's own transform, and differs from it by 2 of 255 at most.
        Everything else is left to timm's own.
        """
        size = self._short_side and jpeg.find_size(encoded)
        if size and size[1] <= _MAX_HEIGHT_BY_WIDTH * size[0]:
            self._check_growth(size)
            pixels = jpeg.decode(encoded)
            if pixels is not None:
                return self._resize_tensor(torch.from_numpy(pixels).permute(2, 0, 1))
        return torch.as_tensor(self._transform(decode_image(encoded, self.background, self._check_growth)))

    def convert_state_dict(self, state_dict: dict, model: torch.nn.Module) -> dict:
        """Rename the keys of a checkpoint to those of timm's model; the hook for weights of another origin."""
        return state_dict

    def describe_preprocessing(self) -> dict:
        """Say, as JSON, what happens to an image before the model: timm's data configuration."""
        return super().describe_preprocessing() | self._config

    def _ends_in_projection(self) -> bool:
        name = f"{self._pretrained_cfg.architecture}.{self._pretrained_cfg.tag}"
        return any(word in name for word in _CONTRASTIVE) and self._pretrained_cfg.num_classes not in _LABEL_SETS

    def _load_checkpoint(self, model: torch.nn.Module) -> None:
        try:
            # reads .safetensors, and pickles with weights_only: a checkpoint cannot run code
            state_dict = timm.models.load_state_dict(self.checkpoint_path, use_ema=True, weights_only=True)
        except Exception as error:
            raise EmbedderError(
                f"checkpoint_path {self.checkpoint_path!r} cannot be read: {str(error).splitlines()[0]}; "
                "expected .safetensors or a state dict saved by torch.save"
            ) from error
        state_dict = self.convert_state_dict(state_dict, model)
        wanted = model.state_dict()
        head = self._pretrained_cfg.classifier or ()
        heads = tuple(f"{name}." for name in ([head] if isinstance(head, str) else head))
        missing = [key for key in wanted if key not in state_dict]
        foreign = [key for key in state_dict if key not in wanted and not key.startswith(heads)]
        shapes = [key for key in wanted if key in state_dict and state_dict[key].shape != wanted[key].shape]
        for problem, keys in (("lacks", missing), ("has unknown", foreign), ("has another shape of", shapes)):
            if keys:
                raise EmbedderError(
                    f"checkpoint_path {self.checkpoint_path!r} does not fit {self.model_name!r}: it {problem} "
                    f"{len(keys)} of its {len(wanted)} weights, as {keys[0]!r}; expected timm's own names and "
                    "shapes; rename them in a subclass's convert_state_dict"
                )
        model.load_state_dict(state_dict, strict=False)  # checked above; what is left over is a dropped head

    def _check_growth(self, size: tuple[int, int]) -> None:
        """Refuse an image like a thread: timm resizes its short side before it crops, and memory would not do."""
        if self._config["crop_mode"] != "center":
            return
        short_side = int(max(self._config["input_size"][1:]) / self._config["crop_pct"])
        pixels = short_side**2 * max(size) // min(size)
        if pixels > Image.MAX_IMAGE_PIXELS:
            raise ImageError(f"too many pixels: {pixels} once its short side is resized to {short_side}")

    def _resize_tensor(self, image: torch.Tensor) -> torch.Tensor:
        """Do timm's short-side resize and centre crop on a uint8 tensor, in a third of the time of Pillow's.

        By hand, because torchvision's two functions take longer than a small image, and hold Python's lock meanwhile.
        """
        short = min(image.shape[1:])
        sides = [int(self._short_side * side / short) for side in image.shape[1:]]
        # A batch in channels_last, which torch would not see in `image[None]`, and would lay out anew.
        batch = image.as_strided((1, *image.shape), (image.numel(), *image.stride()))
        resized = interpolate(batch, sides, mode=self._config["interpolation"], antialias=True)[0]
        height, width = self._config["input_size"][1:]
        top, left = (round((side - kept) / 2) for side, kept in zip(sides, (height, width), strict=True))
        return resized[:, top : top + height, left : left + width]


def _find_short_side(config: dict) -> int | None:
    """Tell what the short side is resized to, where torch's resize may take the place of Pillow's.

    `None` where timm squashes the image or adds borders: Pillow then chooses which side to resize first, and the
    two orders differ by up to 30 of 255.
    """
    height, width = (int(side / config["crop_pct"]) for side in config["input_size"][1:])
    is_known = config["interpolation"] in ("bilinear", "bicubic")
    is_cut = config["crop_mode"] == "center" and config["crop_pct"] <= 1
    return height if is_known and is_cut and height == width else None


def _find_pretrained_cfg(model_name: str) -> timm.models.PretrainedCfg:
    name, _, tag = model_name.partition(".")
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), 3)
        raise EmbedderError(f"timm has no model {name!r}; near names: {', '.join(near) or 'none'}")
    try:
        # a few architectures have no weights, so no entry: they get timm's defaults
        return timm.get_pretrained_cfg(model_name) or timm.models.PretrainedCfg()
    except RuntimeError as error:
        tags = ", ".join(timm.list_pretrained(f"{name}.*"))
        raise EmbedderError(f"timm has no weights {tag!r} for {name!r}; it has: {tags or 'none'}") from error


class PaddedModel(torch.nn.Module):
    """A compiled model that is shown few sizes of batches, because each is compiled anew."""

    def __init__(self, model: torch.nn.Module):
        super().__init__()
        self.model = model
        self._sizes: set[int] = set()

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Embed a batch, blank images behind it where a larger one was compiled already."""
        images = len(pixels)
        size = min((size for size in self._sizes if size >= images), default=images)
        self._sizes.discard(size)  # until it has worked: after one that was too large for the GPU comes its half
        vectors = self.model(torch.nn.functional.pad(pixels, (0,) * 7 + (size - images,)))[:images]
        self._sizes.add(size)
        return vectors


class TimmModel:
    """The callable that a job feeds: uint8 batch -> float32 vectors.

    The model is in channels_last, on which convolutions run faster, on GPUs as on CPUs; transformers do not mind.
    """

    def __init__(self, model: torch.nn.Module, config: dict, device: str, normalize: bool, autocast: bool | str):
        self.model = model
        self.device = torch.device(device)
        # timm's ToTensor divides by 255 before Normalize; one multiplication and one addition do both
        self.mean = torch.tensor(config["mean"]).view(1, -1, 1, 1).mul(255).to(self.device)
        self.std = torch.tensor(config["std"]).view(1, -1, 1, 1).mul(255).to(self.device)
        self.normalize = normalize
        self.autocast = autocast in _AUTOCAST_TYPES or (autocast and self.device.type == "cuda")
        if autocast in _AUTOCAST_TYPES:
            self.dtype = getattr(torch, autocast)
        else:
            self.dtype = torch.bfloat16 if self.autocast and torch.cuda.is_bf16_supported() else torch.float16

    def __call__(self, batch: torch.Tensor) -> torch.Tensor:
        pixels = batch.to(self.device, non_blocking=True).float().sub_(self.mean).div_(self.std)
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        with torch.inference_mode(), torch.autocast(self.device.type, self.dtype, enabled=self.autocast):
            vectors = self.model(pixels)
        vectors = vectors.float()
        return torch.nn.functional.normalize(vectors, dim=-1) if self.normalize else vectors
