"""Every way in which timm's pretrained models prepare an image, against timm's own transform on Pillow."""

import io
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import skimage
import timm
import torch
from PIL import Image
from support.tools import encode
from timm.data import create_transform, resolve_data_config

from embedders import TimmImageEmbedder
from embedders.builtin.pixel_model import PixelModel

# The least that must take the fast path, of 112 and 1,826 with timm 1.0.31: else this file would prove nothing.
MIN_FAST_CONFIGS, MIN_FAST_MODELS = 108, 1817


def resolve(name: str) -> dict:
    return resolve_data_config(pretrained_cfg=timm.get_pretrained_cfg(name).to_dict(), use_test_size=True)


def group_models(*keys: str) -> dict[tuple, list[str]]:
    """Models by their values of these keys of timm's data configuration."""
    groups = {}
    for name in timm.list_pretrained():
        config = resolve(name)
        groups.setdefault(tuple(config[key] for key in keys), []).append(name)
    return groups


@pytest.fixture(scope="module")
def photographs():
    """Parts of photographs by shape; small, so that a thousand comparisons take seconds."""
    parts = {
        "landscape": ("coffee.png", (0, 0, 599, 397)),
        "portrait": ("astronaut.png", (50, 0, 351, 499)),
        "square": ("astronaut.png", (100, 0, 324, 224)),
        "tiny": ("astronaut.png", (200, 60, 223, 77)),
        "strip": ("chelsea.png", (0, 100, 401, 243)),
        "tall": ("motorcycle_left.png", (300, 0, 431, 490)),
    }
    folder = Path(skimage.__file__).parent / "data"
    return {shape: Image.open(folder / name).convert("RGB").crop(box) for shape, (name, box) in parts.items()}


def measure_difference(embedder, transform, encoded: bytes) -> tuple[int, float]:
    """Greatest and mean difference between our pixels and timm's, of 255."""
    ours = embedder.decode(encoded)
    theirs = transform(Image.open(io.BytesIO(encoded)).convert("RGB"))
    assert ours.dtype == theirs.dtype == torch.uint8
    assert ours.shape == theirs.shape
    # NumPy, because torch would do this on threads that a busy machine does not have
    difference = np.abs(np.subtract(ours.numpy(), theirs.numpy(), dtype=np.int16))
    return int(difference.max()), float(difference.mean())


@pytest.mark.slow
def test_every_configuration_of_timm_gives_timms_own_pixels(photographs):
    groups = group_models("input_size", "interpolation", "crop_pct", "crop_mode")
    jpegs = {shape: encode(image, "JPEG", quality=90) for shape, image in photographs.items()}
    png = encode(photographs["tiny"])
    fast, exact, fast_configs, furthest = Counter(), Counter(), 0, 0
    for geometry, names in groups.items():
        embedder = TimmImageEmbedder(names[0])
        transform = create_transform(**resolve(names[0]), is_training=False, use_prefetcher=True)
        is_fast = embedder._pixels.resize is not None
        fast_configs += is_fast
        kind = geometry[3] if geometry[2] <= 1 else f"{geometry[3]} with a border"
        (fast if is_fast else exact)[kind] += len(names)
        for shape, encoded in jpegs.items():
            greatest, mean = measure_difference(embedder, transform, encoded)
            limit = 2 if is_fast and shape != "tall" else 0
            assert greatest <= limit, f"{geometry} ({names[0]}), {shape}: off by {greatest}"
            assert mean < 0.05, f"{geometry} ({names[0]}), {shape}: off by {mean} in the mean"
            furthest = max(furthest, greatest)
        assert measure_difference(embedder, transform, png) == (0, 0), f"{geometry} ({names[0]}): a PNG"
    print(f"{len(groups)} configurations of {fast.total() + exact.total()} models")
    print(f"fast path: {fast_configs} configurations, {dict(fast)} models; off by {furthest} of 255 at most")
    print(f"timm's own transform: {len(groups) - fast_configs} configurations, {dict(exact)} models")
    assert not set(fast) & set(exact)
    assert fast_configs >= MIN_FAST_CONFIGS
    assert fast.total() >= MIN_FAST_MODELS


def test_every_mean_and_deviation_of_timm_is_applied_as_timm_does(photographs):
    for (mean, std), names in group_models("mean", "std").items():
        config = resolve(names[0]) | {"input_size": (3, 17, 23), "crop_mode": "squash", "crop_pct": 1.0}
        image = photographs["tiny"]
        theirs = create_transform(**config, is_training=False)(image)
        pixels = create_transform(**config, is_training=False, use_prefetcher=True)(image)
        scales = [[255 * value for value in values] for values in (mean, std)]
        ours = PixelModel(torch.nn.Identity(), *scales, "cpu", normalize=False, autocast=False)(pixels[None])[0]
        assert torch.allclose(ours, theirs, atol=1e-5), f"{mean}, {std} ({names[0]})"


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_grey_and_cmyk_jpegs_take_the_same_paths(photographs, mode):
    encoded = encode(photographs["landscape"].convert(mode), "JPEG")
    for name in ("resnet50.a1_in1k", "convnext_base.fb_in22k_ft_in1k_384"):
        transform = create_transform(**resolve(name), is_training=False, use_prefetcher=True)
        greatest, mean = measure_difference(TimmImageEmbedder(name), transform, encoded)
        assert greatest <= 2
        assert mean < 0.05


def test_the_jpegs_of_phones_with_several_pictures_take_the_fast_path_too(photographs):
    encoded = encode(photographs["landscape"], "MPO", save_all=True, append_images=[photographs["tiny"]])
    assert Image.open(io.BytesIO(encoded)).format == "MPO"
    embedder = TimmImageEmbedder("resnet50.a1_in1k")
    transform = create_transform(**resolve("resnet50.a1_in1k"), is_training=False, use_prefetcher=True)
    greatest, mean = measure_difference(embedder, transform, encoded)
    assert greatest <= 2
    assert 0 < mean < 0.05  # 0 would be Pillow's resize
