"""`TimmImageEmbedder`: any model of timm as an embedder. It uses nothing that a user's own subclass could not use."""

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from embedders.builtin.hub import FOLDER, advise_download, describe_library_error
from embedders.builtin.light_torch import leave_out_compiler
from embedders.builtin.pixel_model import PixelModel
from embedders.builtin.pretrained import PretrainedImageEmbedder, require_flags, require_pool
from embedders.builtin.timm_model import PaddedModel, PooledModel
from embedders.builtin.timm_pixels import TimmPixels
from embedders.builtin.timm_source import find_entry, find_notes, resolve_config, resolve_layers
from embedders.builtin.timm_weights import load_checkpoint
from embedders.errors import EmbedderError
from embedders.reading.magic import describe_start

with leave_out_compiler():
    import timm

log = logging.getLogger(__name__)

# Numbers of classes of label sets; of the models below, the ones with another number end in a projection.
_LABEL_SETS = (0, 1000, 11821)
_CONTRASTIVE = ("clip", "pe_core")
_NUMBER = re.compile(r"[+-]?\d[\d._]*(e[+-]?\d+)?", re.IGNORECASE)  # as YAML reads 1e-5: a text, without a point
_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pth", ".pt")


class TimmImageEmbedder(PretrainedImageEmbedder):
    """Embeds images with a model of timm, preprocessed as timm's own evaluation of that model does.

    The vector is the pooled feature before the classifier; for CLIP-style entries, whose embedding is their
    projection, it is the projection.

    Args:
        model_name: A name that `timm.create_model` knows: timm's own, `hf-hub:org/name`, or `local-dir:/folder`.
        pretrained: Whether to load the weights: timm's or the hub's (from there or its cache), or the folder's.
        batch_size: Images in a batch.
        num_threads_per_worker: Decoding threads; `None` uses all the threads of the job.
        image_embedding_column: Name of the column of vectors.
        normalize_embeddings: Whether to scale every vector to norm 1.
        classifiers: As in `ImageEmbedder`.
        autocast: Whether a GPU computes in bfloat16 (float16 before Ampere), while a CPU always uses float32; or
            `"bfloat16"` or `"float16"`, for any device.
        compile: Whether to compile the model with `torch.compile`. This takes as long as thousands of images and
            needs a C++ compiler on a CPU. It is worth it if a job has many shards.
        use_index_files: Accepted for NeMo Curator's signature; this reader needs no index.
        checkpoint_path: Local weights, `.safetensors` or a state dict of torch, instead of `pretrained`.
        keep_head: Whether the vector is the output of the model's last layer; `None` decides as described above.
        background: Colour behind transparent pixels: a name that Pillow knows, or `#rrggbb`.
        model_args: Further arguments of `timm.create_model`; layers by the name of their class. `img_size` and
            `in_chans` also decide the pixels.
        pool: How the vector is made: `head` as described above, `cls` from the class token of the model's features,
            `mean` from the mean of their patches, `cls+mean` from both, concatenated. `tokens` keeps all the tokens,
            a vector for each; of a convolutional network, one for each position of its last map.
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
        model_args: Mapping[str, Any] | None = None,
        pool: str = "head",
    ):
        super().__init__(
            model_name,
            batch_size,
            num_threads_per_worker,
            image_embedding_column,
            normalize_embeddings,
            classifiers,
            autocast,
            background,
        )
        require_flags(pretrained=pretrained, keep_head=keep_head is not None and keep_head, compile=compile)
        if checkpoint_path is not None and not Path(checkpoint_path).is_file():
            raise EmbedderError(f"checkpoint_path {checkpoint_path!r}: there is no such file; expected weights")
        require_pool(pool)
        if pool != "head" and keep_head:
            raise EmbedderError(f"pool {pool!r} leaves the head out, and keep_head keeps it; expected one of the two")
        if not isinstance(model_args, Mapping | None):
            raise EmbedderError(f"model_args {model_args!r}: expected arguments by name, such as {{img_size: 224}}")
        self.pretrained = pretrained
        self.use_index_files = use_index_files
        self.checkpoint_path = checkpoint_path
        self.keep_head = keep_head
        self.compile = compile
        self.model_args = dict(model_args or {})
        self.pool = pool
        self._entry, self._saved_args = find_entry(model_name)
        self._config = resolve_config(self._entry, self._saved_args | self.model_args)
        self._pixels = TimmPixels(self._config, background)
        self.notes = find_notes(self._entry, model_name, self.model_args)

    def load_embedding_model(self, device: str) -> PixelModel:
        """Load the model; a batch is uint8 of shape (n, channels, height, width).

        The vectors are float32 of shape (n, D), or (n, tokens, D).

        Raises:
            EmbedderError: The weights cannot be loaded or do not fit, timm refuses `model_args`, or the model has no
                such `pool`.
        """
        is_loaded = self.pretrained and self.checkpoint_path is None
        keep_head = self.ends_in_projection() if self.keep_head is None else self.keep_head
        options = {} if keep_head and self.pool == "head" else {"num_classes": 0}
        try:
            model = timm.create_model(
                self.model_name, pretrained=is_loaded, **options | resolve_layers(self.model_args)
            )
        except Exception as error:
            raise EmbedderError(self._explain_refusal(error)) from error
        if self.checkpoint_path is not None:
            load_checkpoint(
                model, self.checkpoint_path, self.model_name, self.convert_state_dict, self._entry.classifier
            )
        elif not self.pretrained:
            log.warning("%s has random weights; set pretrained: true or checkpoint_path", self.model_name)
        if self.pool == "head" and getattr(model, "global_pool", None) == "":
            others = "'cls', 'mean', 'cls+mean' or 'tokens'"
            raise EmbedderError(f"pool 'head': {self.model_name!r} gives its tokens; expected {others}")
        if self.pool != "head":
            model = PooledModel(model, self.pool, self.model_name)
        model = model.eval().to(device).to(memory_format=torch.channels_last)
        if self.compile:
            model = PaddedModel(torch.compile(model, dynamic=False))
        # timm's ToTensor divides by 255 before Normalize; one subtraction and one division do both
        mean, std = ([255 * value for value in self._config[name]] for name in ("mean", "std"))
        # in channels_last, convolutions are faster on GPUs and CPUs, and transformers are as fast
        return PixelModel(model, mean, std, device, self.normalize_embeddings, self.autocast, torch.channels_last)

    def decode(self, encoded: bytes) -> torch.Tensor:
        """Decode one image to uint8 of shape (channels, height, width), resized and cropped as timm does."""
        return self._pixels(encoded)

    def convert_state_dict(self, state_dict: dict, model: torch.nn.Module) -> dict:
        """Rename the keys of a checkpoint to those of timm's model; override this for weights from elsewhere."""
        return state_dict

    def describe_preprocessing(self) -> dict:
        """Return, as values for JSON, what happens to an image before the model: timm's data configuration."""
        return super().describe_preprocessing() | self._config

    def ends_in_projection(self) -> bool:
        """Whether the model's last layer is the projection of a CLIP, and no classifier."""
        name = f"{self._entry.architecture}.{self._entry.tag}"
        outputs = self._saved_args.get("num_classes", self._entry.num_classes)
        return any(word in name for word in _CONTRASTIVE) and outputs not in _LABEL_SETS

    def _explain_refusal(self, error: Exception) -> str:
        reason = describe_library_error(error)
        if isinstance(error, TypeError | KeyError | AttributeError | AssertionError) and self.model_args:
            texts = [
                value for value in self.model_args.values() if isinstance(value, str) and _NUMBER.fullmatch(value)
            ]
            hint = (
                f"; {texts[0]!r} is a text; YAML takes a number such as 1.0e-5, with a point, as one" if texts else ""
            )
            return f"timm refuses model_args {self.model_args} for {self.model_name!r}: {reason}{hint}"
        if self.model_name.startswith(FOLDER):
            folder = Path(self.model_name.removeprefix(FOLDER))
            files = sorted(path for path in folder.iterdir() if path.suffix in _WEIGHT_SUFFIXES)
            starts = "; ".join(f"{path.name} {describe_start(path)}" for path in files) or "no weights are there"
            advice = f"{starts}; expected weights that fit its config.json"
        else:
            name = self.model_name.partition(":")[2] or f"timm/{self._entry.architecture}.{self._entry.tag}"
            advice = f"{advise_download(name, f'{FOLDER}FOLDER')}; or set checkpoint_path to local weights"
        arguments = f" with model_args {self.model_args}" if self.model_args else ""
        return f"timm cannot load {self.model_name!r}{arguments}: {reason}; {advice}"
