"""Tiny random models in folders, as open_clip and transformers save them, and pictures to embed with them."""

import io
import json
import logging
from pathlib import Path

import numpy as np
import open_clip
import torch
import transformers
from PIL import Image
from support.tools import make_image

# By width and height: wide, tall, taller than Pillow and torch agree on, square, small, odd.
SIZES = [(300, 200), (200, 300), (60, 200), (80, 100), (128, 128), (40, 30), (31, 33), (260, 40)]
CLIP = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 64, "layers": 2, "width": 64, "patch_size": 16, "head_width": 16},
    "text_cfg": {"context_length": 8, "vocab_size": 64, "width": 32, "heads": 2, "layers": 1},
}
_SIZE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
_VISION = _SIZE | {"image_size": 64, "patch_size": 16}
_TEXT = _SIZE | {"vocab_size": 64, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_SQUARE, _SHORT = {"height": 64, "width": 64}, {"shortest_edge": 64}


def make_pictures() -> dict[str, bytes]:
    """Make encoded pictures by the names of their members: JPEGs of all shapes, and one of each other kind."""
    pictures = {f"{number}.jpg": make_image(number, size, quality=95) for number, size in enumerate(SIZES)}
    pictures["grey.jpg"] = make_image(20, (90, 70), mode="L")
    pictures["rgb.png"] = make_image(21, (90, 70), "PNG")
    pictures["tall.png"] = make_image(22, (50, 190), "PNG")
    pictures["palette.gif"] = make_image(23, (90, 70), "GIF")
    return pictures


def open_pictures(pictures: dict[str, bytes]) -> list[Image.Image]:
    """Open pictures as RGB, as a user of the libraries would."""
    return [Image.open(io.BytesIO(picture)).convert("RGB") for picture in pictures.values()]


def make_open_clip(folder: Path, embed_dim: int = 24, vocab_size: int = 64, **preprocessing) -> str:
    """Save a model of open_clip with random weights; returns its name. Its own tokenizer has 49,408 words."""
    torch.manual_seed(0)
    folder.mkdir(parents=True)
    config = CLIP | {"embed_dim": embed_dim, "text_cfg": CLIP["text_cfg"] | {"vocab_size": vocab_size}}
    settings = {"model_cfg": config, "preprocess_cfg": {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4]}}
    settings["preprocess_cfg"] |= preprocessing
    (folder / "open_clip_config.json").write_text(json.dumps(settings))
    torch.save(open_clip.CLIP(**config).state_dict(), folder / "open_clip_pytorch_model.bin")
    return f"local-dir:{folder}"


# What makes a model of each kind, and its image processor.
HUGGING_FACE = {
    "clip": lambda: (
        transformers.CLIPModel(transformers.CLIPConfig(text_config=_TEXT, vision_config=_VISION, projection_dim=24)),
        transformers.CLIPImageProcessor(size=_SHORT, crop_size=_SQUARE),
    ),
    "clip-vision": lambda: (
        transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**_VISION)),
        transformers.CLIPImageProcessor(size={"shortest_edge": 71}, crop_size=_SQUARE),
    ),
    "siglip": lambda: (
        transformers.SiglipModel(transformers.SiglipConfig(text_config=_TEXT, vision_config=_VISION)),
        transformers.SiglipImageProcessor(size=_SQUARE),
    ),
    "dinov2": lambda: (
        transformers.Dinov2Model(transformers.Dinov2Config(**_SIZE, image_size=126, patch_size=14)),
        transformers.BitImageProcessor(size={"shortest_edge": 80}, crop_size={"height": 70, "width": 70}),
    ),
    "dinov3": lambda: (
        transformers.DINOv3ViTModel(transformers.DINOv3ViTConfig(**_VISION, num_register_tokens=4)),
        transformers.DINOv3ViTImageProcessor(size=_SQUARE),
    ),
    "vit": lambda: (
        transformers.ViTModel(transformers.ViTConfig(**_VISION)),
        transformers.ViTImageProcessor(size=_SQUARE),
    ),
    "convnext": lambda: (
        transformers.ConvNextModel(transformers.ConvNextConfig(hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1])),
        transformers.ConvNextImageProcessor(size=_SHORT, crop_pct=0.9),
    ),
}


def make_hugging_face(folder: Path, kind: str) -> tuple[torch.nn.Module, transformers.BaseImageProcessor]:
    """Save a model of transformers with random weights, and its image processor; returns both, read back."""
    torch.manual_seed(0)
    for part in HUGGING_FACE[kind]():
        part.save_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    return model, transformers.AutoImageProcessor.from_pretrained(folder)


def measure_cosines(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Cosine similarity of two arrays of vectors, row by row."""
    left, right = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True) for vectors in (left, right))
    return (left * right).sum(axis=1)


for name in ("transformers", "open_clip"):
    logging.getLogger(name).setLevel(logging.ERROR)
