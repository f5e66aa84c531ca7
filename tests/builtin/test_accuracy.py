"""Real weights on real images: a wrong channel order, mean, crop or row order would show here and nowhere else."""

import importlib.util
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from lite0 import Lite0Embedder
from PIL import Image
from support.tools import make_tar
from timm.data import create_transform, resolve_data_config

from embedders import TimmImageEmbedder, embed_shard
from embedders.output.parquet import read_vectors

STAMPS = Path("/usr/share/tuxpaint/stamps")


def embed_files(embedder, files, tmp_path):
    """Embed (key, file) pairs as one shard; gives the keys and the vectors of the Parquet."""
    members = {f"{key}{path.suffix.lower()}": path.read_bytes() for key, path in files}
    embed_shard(embedder, make_tar(tmp_path / "s.tar", members), tmp_path / "s.parquet", device="cpu")
    table, vectors, _ = read_vectors(str(tmp_path / "s.parquet"))
    assert len(vectors) == len(files)
    return table["key"].to_pylist(), vectors


def find_photographs():
    """The 20 ImageNet photographs that foolbox ships, found without importing it: their class is in the name."""
    spec = importlib.util.find_spec("foolbox")
    if spec is None:
        pytest.skip("needs foolbox 3.3.4 for its photographs")
    return sorted((Path(spec.origin).parent / "data").glob("imagenet_*.jpg"))


@pytest.mark.slow
def test_at_least_18_of_20_photographs_get_their_right_class(tmp_path):
    photographs = find_photographs()
    assert len(photographs) == 20
    embedder = Lite0Embedder(keep_head=True, normalize_embeddings=False)
    keys, logits = embed_files(embedder, [(path.stem, path) for path in photographs], tmp_path)
    assert logits.shape == (20, 1000)
    right = sum(row.argmax() == int(key.rpartition("_")[2]) for key, row in zip(keys, logits, strict=True))
    print(f"{right} of 20 photographs get their right class")
    assert right >= 18


@pytest.mark.slow
def test_vectors_of_photographs_equal_timms_own_transform_and_model(tmp_path):
    photographs = find_photographs()
    embedder = Lite0Embedder()
    _, ours = embed_files(embedder, [(path.stem, path) for path in photographs], tmp_path)
    model = embedder.load_embedding_model("cpu").model
    transform = create_transform(**resolve_data_config(model=model, use_test_size=True), is_training=False)
    with torch.inference_mode():
        rows = [model(transform(Image.open(path).convert("RGB"))[None]) for path in photographs]
    cosines = (ours * torch.nn.functional.normalize(torch.cat(rows)).numpy()).sum(axis=1)
    print(f"20 photographs against timm's own: cosine mean {cosines.mean():.6f}, min {cosines.min():.6f}")
    assert cosines.mean() >= 0.9999
    assert cosines.min() >= 0.999


@pytest.fixture(scope="module")
def stamps():
    """386 labelled drawings and photographs: no cartoons or symbols, 48 pixels or more, in classes of 8 or more."""
    if not STAMPS.is_dir():
        pytest.skip("needs Debian's package tuxpaint-stamps-default")
    paths = [path for path in sorted(STAMPS.rglob("*.png")) if not {"cartoon", "symbols"} & set(path.parts)]
    paths = [path for path in paths if "cartoon" not in path.as_posix() and min(Image.open(path).size) >= 48]
    classes = Counter(path.relative_to(STAMPS).parts[0] for path in paths)
    return [path for path in paths if classes[path.relative_to(STAMPS).parts[0]] >= 8]


def measure_nearest(embedder, stamps, tmp_path) -> float:
    """Share of stamps whose nearest other stamp by cosine is of their own class."""
    files = [(path.relative_to(STAMPS).with_suffix("").as_posix().replace(".", "_"), path) for path in stamps]
    keys, vectors = embed_files(embedder, files, tmp_path)
    assert keys == [key for key, _ in files]
    labels = np.array([key.split("/")[0] for key in keys])
    cosines = vectors @ vectors.T
    np.fill_diagonal(cosines, -1)
    return float((labels == labels[cosines.argmax(axis=1)]).mean())


@pytest.mark.slow
def test_the_nearest_stamp_is_of_the_same_class(tmp_path, stamps):
    labels = Counter(path.relative_to(STAMPS).parts[0] for path in stamps)
    assert (len(stamps), len(labels)) == (386, 12)
    accuracy = measure_nearest(Lite0Embedder(), stamps, tmp_path)
    print(f"leave-one-out 1-NN accuracy on 386 stamps of 12 classes: {accuracy:.4f}")
    assert accuracy >= 0.78


@pytest.mark.long
def test_random_weights_are_far_worse(tmp_path, stamps):
    # Else the figure above would say nothing of the weights.
    torch.manual_seed(0)
    accuracy = measure_nearest(TimmImageEmbedder("tf_efficientnet_lite0"), stamps, tmp_path)
    print(f"with random weights: {accuracy:.4f}")
    assert accuracy < 0.5
