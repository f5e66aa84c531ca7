"""`OpenClipImageEmbedder` against open_clip's own preprocessing and model, over a tiny random checkpoint."""

import io
import json
import os
import shutil
import sys
from pathlib import Path

import huggingface_hub
import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from support.encoders import make_open_clip, make_pictures, measure_cosines, open_pictures
from support.tools import encode, make_image, run_python

from embedders import OpenClipImageEmbedder
from embedders.builtin import open_clip_embedder, open_clip_source
from embedders.errors import EmbedderError
from embedders.reading.images import ImageError

PICTURES = make_pictures()
MEAN, STD = (torch.tensor(values).view(3, 1, 1) for values in ([0.4, 0.5, 0.6], [0.2, 0.3, 0.4]))
PREPROCESSING = {
    "shortest": {},
    "bilinear": {"interpolation": "bilinear"},
    "squash": {"resize_mode": "squash"},
    "longest": {"resize_mode": "longest", "fill_color": 90},
}


@pytest.fixture(scope="module", params=PREPROCESSING)
def model_name(request, tmp_path_factory):
    """The name of a model for each way of preprocessing."""
    return make_open_clip(tmp_path_factory.mktemp(request.param) / "clip", **PREPROCESSING[request.param])


def decode(embedder):
    return torch.stack([embedder.decode(picture) for picture in PICTURES.values()])


def test_the_vectors_are_those_of_open_clip_used_directly(model_name):
    embedder = OpenClipImageEmbedder(model_name)
    model, preprocess = open_clip.create_model_from_pretrained(model_name)
    vectors = embedder.load_embedding_model("cpu")(decode(embedder)).numpy()
    with torch.inference_mode():
        pixels = torch.stack([preprocess(picture) for picture in open_pictures(PICTURES)])
        expected = model.eval().encode_image(pixels, normalize=True).numpy()
    assert vectors.shape == expected.shape == (len(PICTURES), 24)
    cosines = measure_cosines(vectors, expected)
    print(f"{model_name}: cosine mean {cosines.mean():.6f}, min {cosines.min():.6f}")
    assert cosines.mean() >= 0.9999
    assert cosines.min() >= 0.999
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)


def test_the_pixels_are_those_of_open_clip(model_name):
    embedder = OpenClipImageEmbedder(model_name)
    _, preprocess = open_clip.create_model_from_pretrained(model_name)
    found = decode(embedder)
    expected = torch.stack([preprocess(picture) * STD + MEAN for picture in open_pictures(PICTURES)]) * 255
    assert found.dtype == torch.uint8
    difference = (found - expected).abs().amax(dim=(1, 2, 3))
    assert difference.max() <= 2.01
    others = [not name.endswith(".jpg") for name in PICTURES]
    assert difference[others].max() < 0.01


def test_a_squashed_picture_that_pillow_resizes_in_another_order_is_left_to_it(tmp_path):
    name = make_open_clip(tmp_path / "clip", resize_mode="squash")
    _, preprocess = open_clip.create_model_from_pretrained(name)
    noise = np.random.default_rng(0).integers(0, 256, (180, 100, 3), dtype=np.uint8)  # smooth ones hardly differ
    encoded = encode(Image.fromarray(noise), "JPEG", quality=95)
    expected = (preprocess(Image.open(io.BytesIO(encoded))) * STD + MEAN) * 255
    assert (OpenClipImageEmbedder(name).decode(encoded) - expected).abs().max() < 0.01


def test_the_memory_of_a_job_holds_the_image_half_only(tmp_path):
    forward = OpenClipImageEmbedder(make_open_clip(tmp_path / "clip")).load_embedding_model("cpu")
    assert {name.split(".")[0] for name, _ in forward.model.named_parameters()} == {"visual"}


def test_a_model_of_the_hubs_cache_needs_no_network(tmp_path):
    make_open_clip(tmp_path / "clip")
    snapshot = tmp_path / "hub/models--me--tiny/snapshots/0123"
    shutil.copytree(tmp_path / "clip", snapshot)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs/main").write_text("0123")
    code = (
        "from embedders import OpenClipImageEmbedder; e = OpenClipImageEmbedder('hf-hub:me/tiny'); "
        "print(e.load_embedding_model('cpu')(e.decode(open('a.jpg', 'rb').read())[None]).shape)"
    )
    (tmp_path / "a.jpg").write_bytes(PICTURES["0.jpg"])
    # A hub that answers nobody: whoever asks it first waits for half a minute.
    environment = os.environ | {"HF_HUB_CACHE": str(tmp_path / "hub"), "HF_ENDPOINT": "http://127.0.0.1:9"}
    paths = {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = run_python("-c", code, env=environment | paths, cwd=tmp_path)
    assert done.stdout == "torch.Size([1, 24])\n", done.stderr
    assert "Retrying" not in done.stderr


def test_an_image_like_a_thread_is_refused_before_it_grows(tmp_path):
    embedder = OpenClipImageEmbedder(make_open_clip(tmp_path / "clip"))
    for form in ("PNG", "JPEG"):
        with pytest.raises(ImageError, match="too many pixels"):
            embedder.decode(make_image(0, (60000, 1), form))
    longest = OpenClipImageEmbedder(make_open_clip(tmp_path / "longest", resize_mode="longest"))
    assert longest.decode(make_image(0, (3000, 60), "PNG")).shape == (3, 64, 64)


@pytest.mark.parametrize(
    ("model_name", "pretrained", "message"),
    [
        ("ViT-B-3", "openai", "open_clip has no model 'ViT-B-3'; near names: ViT-B-32"),
        (
            "ViT-B-32",
            None,
            "pretrained None: .* needs weights; expected a file, or one of open_clip's tags: openai",
        ),
        ("ViT-B-32", "laion3b", "pretrained 'laion3b': 'ViT-B-32' needs weights"),
        (
            "ViT-L-14",
            "openai",
            "was trained with QuickGELU, .* would be wrong; set model_name: ViT-L-14-quickgelu",
        ),
        ("ViT-H-14-quickgelu", "laion2b_s32b_b79k", "needs weights; expected a file, or one of open_clip's tags"),
        (
            "hf-hub:me/tiny",
            "openai",
            "'hf-hub:me/tiny' includes its weights; leave pretrained out",
        ),
        ("local-dir:no/such", None, "'no/such/open_clip_config.json' cannot be used: FileNotFoundError"),
    ],
)
def test_a_model_that_there_is_not_is_refused_in_a_line(model_name, pretrained, message):
    with pytest.raises(EmbedderError, match=message) as caught:
        OpenClipImageEmbedder(model_name, pretrained)
    assert "\n" not in str(caught.value)


def test_weights_that_do_not_fit_and_folders_without_any_are_refused_in_a_line(tmp_path):
    name = make_open_clip(tmp_path / "clip")
    embedder = OpenClipImageEmbedder(name)
    weights = tmp_path / "clip/open_clip_pytorch_model.bin"
    torch.save({"visual.conv1.weight": torch.zeros(3)}, weights)
    with pytest.raises(EmbedderError, match=r"cannot load .*(size mismatch|Missing key)") as caught:
        embedder.load_embedding_model("cpu")
    assert "\n" not in str(caught.value)
    weights.unlink()
    with pytest.raises(EmbedderError, match="expected weights that fit the model"):
        embedder.load_embedding_model("cpu")
    (tmp_path / "clip/open_clip_config.json").write_text(json.dumps({"vision_cfg": {}}))
    with pytest.raises(EmbedderError, match="cannot be used: KeyError: 'model_cfg'"):
        OpenClipImageEmbedder(name)


@pytest.mark.parametrize(
    ("model_name", "pretrained", "repository"),
    [
        ("hf-hub:me/none", None, "me/none"),
        ("ViT-B-32", "laion2b_s34b_b79k", "laion/CLIP-ViT-B-32-laion2B-s34B-b79K"),
    ],
)
def test_weights_that_cannot_be_fetched_are_told_with_what_to_fetch_and_where_to_put_it(
    monkeypatch, model_name, pretrained, repository
):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(EmbedderError) as caught:
        OpenClipImageEmbedder(model_name, pretrained).load_embedding_model("cpu")
    message = str(caught.value)
    assert f"'{repository}' cannot be read from the Hugging Face hub or its cache" in message
    assert f"(hf download {repository} --local-dir FOLDER)" in message
    assert message.endswith("set model_name: local-dir:FOLDER")
    assert "\n" not in message


def test_a_missing_library_is_told_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "open_clip", None)
    for module in (open_clip_embedder, open_clip_source):
        monkeypatch.delitem(sys.modules, module.__name__)
    from embedders.builtin.open_clip_embedder import OpenClipImageEmbedder as WithoutLibrary

    with pytest.raises(EmbedderError, match=r"open_clip cannot be imported: .*pip install 'tarquet\[open-clip\]'"):
        WithoutLibrary("ViT-B-32", "openai")
