"""`HuggingFaceImageEmbedder` against transformers' own processors and models, over tiny random checkpoints."""

import sys

import huggingface_hub
import numpy as np
import pytest
import torch
import transformers
from support.encoders import HUGGING_FACE, make_hugging_face, make_pictures, measure_cosines, open_pictures
from support.tools import make_image

from embedders import HuggingFaceImageEmbedder
from embedders.builtin import hugging_face_embedder
from embedders.errors import EmbedderError
from embedders.reading.images import ImageError

PICTURES = make_pictures()
# Of the others the processor's own output is taken.
FAST = set(HUGGING_FACE) - {"convnext"}


@pytest.fixture(scope="module", params=HUGGING_FACE)
def checkpoint(request, tmp_path_factory):
    """A model of each kind: its kind, its folder, and model and processor as transformers reads them."""
    folder = tmp_path_factory.mktemp(request.param)
    return request.param, str(folder), *make_hugging_face(folder, request.param)


def embed(embedder):
    batch = torch.stack([embedder.decode(picture) for picture in PICTURES.values()])
    return embedder.load_embedding_model("cpu")(batch)


def use_directly(kind, model, pixels):
    with torch.inference_mode():
        if kind in ("clip", "siglip"):
            features = model.get_image_features(pixel_values=pixels)
            return features if isinstance(features, torch.Tensor) else features.pooler_output
        output = model(pixel_values=pixels)
        return output.last_hidden_state[:, 0] if kind.startswith("dino") else output.pooler_output


def test_the_vectors_are_those_of_transformers_used_directly(checkpoint):
    kind, folder, model, processor = checkpoint
    embedder = HuggingFaceImageEmbedder(folder, normalize_embeddings=False)
    pixels = processor(images=open_pictures(PICTURES), return_tensors="pt")["pixel_values"]
    vectors, expected = embed(embedder), use_directly(kind, model, pixels)
    assert vectors.shape == expected.shape
    cosines = measure_cosines(vectors.numpy(), expected.numpy())
    print(f"{kind}: cosine mean {cosines.mean():.6f}, min {cosines.min():.6f}")
    assert cosines.mean() >= 0.9999
    assert cosines.min() >= 0.999
    np.testing.assert_allclose(vectors.norm(dim=1), expected.norm(dim=1), rtol=1e-2)


def test_the_pixels_are_those_of_the_processor(checkpoint):
    kind, folder, _, processor = checkpoint
    embedder = HuggingFaceImageEmbedder(folder)
    expected = processor(images=open_pictures(PICTURES), return_tensors="pt")["pixel_values"]
    found = torch.stack([embedder.decode(picture) for picture in PICTURES.values()])
    assert (found.dtype == torch.uint8) == (kind in FAST)
    if kind in FAST:
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (processor.image_mean, processor.image_std))
        found, expected = found.float(), (expected * std + mean) * 255
        assert (found - expected).abs().max() < (1.01 if kind == "dinov3" else 0.01)  # that one resizes floats
    else:
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("pool", ["cls", "mean", "cls+mean", "tokens"])
def test_a_pool_takes_the_class_token_the_mean_of_the_patches_both_or_all_the_tokens(checkpoint, pool):
    kind, folder, model, processor = checkpoint
    embedder = HuggingFaceImageEmbedder(folder, pool=pool, normalize_embeddings=False)
    pixels = processor(images=open_pictures(PICTURES), return_tensors="pt")["pixel_values"]
    prefix = {"siglip": 0, "convnext": 0, "dinov3": 5}.get(kind, 1)
    if "cls" in pool and prefix == 0:
        with pytest.raises(EmbedderError, match=f"pool '{pool.replace('+', '.')}': .* has no class token; expected"):
            embed(embedder)
        return
    with torch.inference_mode():
        tokens = getattr(model, "vision_model", model)(pixel_values=pixels).last_hidden_state
    tokens = tokens.flatten(2).transpose(1, 2) if tokens.ndim == 4 else tokens
    parts = {"cls": tokens[:, 0], "mean": tokens[:, prefix:].mean(1), "tokens": tokens}
    expected = torch.cat([parts[part] for part in pool.split("+")], 1)
    vectors = embed(embedder)
    assert vectors.shape == expected.shape
    assert measure_cosines(vectors.flatten(1).numpy(), expected.flatten(1).numpy()).min() >= 0.999


def test_a_classifiers_checkpoint_has_no_pooler_and_is_told_so(tmp_path):
    _, processor = HUGGING_FACE["vit"]()
    config = HUGGING_FACE["vit"]()[0].config
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    with pytest.raises(
        EmbedderError, match=r"no weights for 2 parts of its ViTModel, such as 'pooler\.dense.*set pool: cls"
    ):
        embed(HuggingFaceImageEmbedder(str(tmp_path)))
    assert embed(HuggingFaceImageEmbedder(str(tmp_path), pool="cls")).shape == (len(PICTURES), 32)


def test_weights_of_another_model_are_refused(tmp_path):
    make_hugging_face(tmp_path, "vit")
    transformers.ResNetModel(
        transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1])
    ).save_pretrained(tmp_path / "other")
    (tmp_path / "other/model.safetensors").rename(tmp_path / "model.safetensors")
    embedder = HuggingFaceImageEmbedder(str(tmp_path), pool="cls")
    with pytest.raises(EmbedderError, match="would be random; give weights of this model"):
        embedder.load_embedding_model("cpu")


def test_a_checkpoint_of_half_precision_computes_in_float32(tmp_path):
    model, processor = HUGGING_FACE["dinov2"]()
    model.half().save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    forward = HuggingFaceImageEmbedder(str(tmp_path)).load_embedding_model("cpu")
    assert {value.dtype for value in forward.model.parameters()} == {torch.float32}


def test_an_image_like_a_thread_is_refused_before_it_grows(checkpoint):
    kind, folder, _, _ = checkpoint
    embedder = HuggingFaceImageEmbedder(folder)
    thread = make_image(0, (1, 60000), "PNG")
    if kind in ("siglip", "vit", "dinov3"):  # these squash it
        assert embedder.decode(thread).shape[1:] == (64, 64)
    else:
        with pytest.raises(ImageError, match="too many pixels"):
            embedder.decode(thread)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pool": "max"}, "pool 'max': expected one of head, cls, mean, cls+mean, tokens"),
        ({"autocast": "fp8"}, "autocast 'fp8': expected true, false, bfloat16 or float16"),
        ({"normalize_embeddings": "false"}, "normalize_embeddings 'false': expected true or false, without quotes"),
        ({"background": "whit"}, "background 'whit': expected a colour"),
    ],
)
def test_an_option_that_cannot_be_is_refused_in_a_line(options, message):
    with pytest.raises(EmbedderError) as caught:
        HuggingFaceImageEmbedder("no/such", **options)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("folder", ["/no/such", "./such", "~/such"])
def test_a_folder_that_is_not_there_is_not_looked_for_on_the_hub(folder):
    with pytest.raises(EmbedderError, match=r"there is no such folder; expected its path, without ~$"):
        HuggingFaceImageEmbedder(folder)


def test_a_model_that_cannot_be_fetched_is_told_with_what_to_fetch_and_where_to_put_it(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(EmbedderError) as caught:
        HuggingFaceImageEmbedder("facebook/dinov2-base")
    message = str(caught.value)
    assert "model_name 'facebook/dinov2-base' cannot be loaded" in message
    assert "(hf download facebook/dinov2-base --local-dir FOLDER)" in message
    assert message.endswith("set model_name: FOLDER")
    assert "\n" not in message


def test_a_folder_that_holds_no_model_is_told_what_to_hold(tmp_path):
    with pytest.raises(EmbedderError, match=r"expected a folder with config\.json, preprocessor_config\.json"):
        HuggingFaceImageEmbedder(str(tmp_path))


def test_a_missing_library_is_told_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.delitem(sys.modules, hugging_face_embedder.__name__)
    from embedders.builtin.hugging_face_embedder import HuggingFaceImageEmbedder as WithoutLibrary

    with pytest.raises(EmbedderError, match=r"transformers cannot be .*: pip install 'tarquet\[transformers\]'"):
        WithoutLibrary("facebook/dinov2-base")
