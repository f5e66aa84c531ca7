import io
import shutil
import warnings
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from lite0 import Lite0Embedder
from PIL import Image
from support.tools import encode, make_image, make_shard, make_tar
from timm.data import create_transform, resolve_data_config

from embedders import ImageEmbedder, TimmImageEmbedder, embed_shard
from embedders.builtin.timm_model import PaddedModel
from embedders.errors import EmbedderError
from embedders.job.locate import build_embedder
from embedders.output.parquet import read_vectors
from embedders.reading.images import ImageError

SMALL = "test_vit.r160_in1k"  # 0.4 million weights


@pytest.fixture(autouse=True)
def same_random_weights():
    torch.manual_seed(0)


def vectors_of(embedder, path, tmp_path):
    torch.manual_seed(0)
    embed_shard(embedder, path, tmp_path / "o.parquet", device="cpu")
    return read_vectors(str(tmp_path / "o.parquet"))[1]


# The same as timm's own transform and model.


MODELS = {
    "bicubic, centre": lambda: Lite0Embedder(),
    "bilinear, centre": lambda: TimmImageEmbedder("test_resnet.r160_in1k"),
    "squash": lambda: TimmImageEmbedder("test_resnet.r160_in1k"),
    "border": lambda: TimmImageEmbedder("test_resnet.r160_in1k"),
    "not square": lambda: TimmImageEmbedder("test_resnet.r160_in1k"),
    "larger at test time": lambda: TimmImageEmbedder("test_resnet.r160_in1k"),
}
CHANGES = {
    "bilinear, centre": {"interpolation": "bilinear"},
    "squash": {"crop_mode": "squash", "interpolation": "bilinear"},
    "border": {"crop_mode": "border", "crop_pct": 0.9, "interpolation": "bicubic"},
    "not square": {"input_size": (3, 160, 96), "test_input_size": None, "fixed_input_size": False},
    "larger at test time": {"test_input_size": (3, 192, 192), "test_crop_pct": 1.0},
}
NAMES = [f"{n}.jpg" for n in range(10)]
SIZES = [(300, 200), (200, 300), (224, 224), (90, 70), (641, 481), (1000, 333)]


@pytest.mark.slow
@pytest.mark.parametrize("kind", MODELS)
def test_pixels_and_vectors_equal_timms_own_transform_and_model(tmp_path, monkeypatch, kind):
    if kind in CHANGES:
        find = timm.get_pretrained_cfg
        monkeypatch.setattr("timm.get_pretrained_cfg", lambda name: replace(find(name), **CHANGES[kind]))
    images = [make_image(n, size, quality=90) for n, size in enumerate(SIZES)]
    images += [make_image(7, (320, 240), "PNG"), make_image(8, (320, 240), "WEBP"), make_image(9, mode="L")]
    images += [make_image(10, (250, 200), mode="CMYK")]
    embedder = MODELS[kind]()
    ours = vectors_of(embedder, make_tar(tmp_path / "s.tar", dict(zip(NAMES, images, strict=True))), tmp_path)

    # What timm's documentation tells a user to do, image by image.
    torch.manual_seed(0)
    model = embedder.load_embedding_model("cpu").model
    config = resolve_data_config(pretrained_cfg=embedder._entry.to_dict(), use_test_size=True)
    assert all(config[key] == value for key, value in CHANGES.get(kind, {}).items() if key in config)
    transform = create_transform(**config, is_training=False)
    inputs = [transform(Image.open(io.BytesIO(image)).convert("RGB")) for image in images]
    with torch.inference_mode():
        theirs = torch.nn.functional.normalize(torch.cat([model(tensor[None]) for tensor in inputs])).numpy()

    mean, std = (torch.tensor(config[name]).view(3, 1, 1) for name in ("mean", "std"))
    pixels = [(tensor * std + mean) * 255 for tensor in inputs]
    furthest = max((embedder.decode(image) - row).abs().max() for image, row in zip(images, pixels, strict=True))
    cosines = (ours * theirs).sum(axis=1)
    print(
        f"{kind}: cosine mean {cosines.mean():.6f}, min {cosines.min():.6f}; pixels differ by {furthest:.1f} at most"
    )
    assert furthest < 3
    assert cosines.mean() >= 0.9999
    assert cosines.min() >= 0.999
    assert np.abs(np.linalg.norm(ours, axis=1) - 1).max() < 1e-5


def test_every_way_in_which_timm_prepares_images_is_one_that_is_tested():
    configs = [timm.get_pretrained_cfg(name) for name in timm.list_pretrained()]
    assert {config.interpolation for config in configs} <= {"bicubic", "bilinear"}
    assert {config.crop_mode for config in configs} <= {"center", "squash", "border"}
    assert {config.input_size[0] for config in configs} == {3}


@pytest.mark.slow
def test_vectors_do_not_depend_on_the_batch_size_or_on_neighbours(tmp_path):
    path = make_shard(tmp_path / "s.tar", 7)
    found = []
    for size in (1, 3, 7):
        embedder = TimmImageEmbedder("resnet18", batch_size=size, num_threads_per_worker=4)
        found.append(vectors_of(embedder, path, tmp_path))
    assert found[0].shape == (7, 512)
    assert np.allclose(found[0], found[1], atol=1e-5)
    assert np.allclose(found[0], found[2], atol=1e-5)


def test_two_runs_give_the_same_bytes(tmp_path):
    path = make_shard(tmp_path / "s.tar", 5)
    files = []
    for _ in range(2):
        vectors_of(TimmImageEmbedder(SMALL), path, tmp_path)
        files.append((tmp_path / "o.parquet").read_bytes())
    assert files[0] == files[1]


# Which layer gives the vector.


def test_projections_are_kept_and_classifiers_are_not():
    kept, dropped = [], []
    for name in timm.list_pretrained():
        config = timm.get_pretrained_cfg(name)
        is_kept = TimmImageEmbedder(name).ends_in_projection()
        (kept if is_kept else dropped).append(f"{name} ({config.num_classes})")
        # A projection is as wide as an embedding; a set of labels has 1,000 or more than 10,000.
        is_projection = 300 < config.num_classes <= 1280 and config.num_classes != 1000
        assert is_kept == is_projection, f"{name}: {config.num_classes} outputs, kept: {is_kept}"
    assert len(kept) > 100, kept
    assert len(dropped) > 1500, dropped


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "dimension"),
    [
        ("vit_base_patch16_clip_224.openai", 512),  # 768 without its projection
        ("vit_xsmall_patch16_clip_224.tinyclip_yfcc15m", 512),
        ("resnet18", 512),
        (SMALL, 64),
        ("vit_tiny_patch16_224", 192),
    ],
)
def test_the_dimension_is_that_of_the_embedding(name, dimension):
    embedder = TimmImageEmbedder(name)
    model = embedder.load_embedding_model("cpu")
    assert model(embedder.decode(make_image())[None]).shape == (1, dimension)


def test_the_head_is_kept_on_demand():
    assert Lite0Embedder(keep_head=True).load_embedding_model("cpu").model.num_classes == 1000
    clip = TimmImageEmbedder("vit_xsmall_patch16_clip_224.tinyclip_yfcc15m", keep_head=False)
    assert clip.load_embedding_model("cpu")(clip.decode(make_image())[None]).shape == (1, 256)


# NeMo Curator's arguments.


def test_nemos_arguments_are_taken_by_name_and_by_place(tmp_path):
    by_name = TimmImageEmbedder(
        "resnet18",
        pretrained=False,
        batch_size=4,
        num_threads_per_worker=2,
        image_embedding_column="vector",
        normalize_embeddings=False,
        classifiers=[],
        autocast=True,
        use_index_files=False,
    )
    by_place = TimmImageEmbedder("resnet18", False, 4, 2, "vector", False, [], True, False)
    for embedder in (by_name, by_place):
        assert (embedder.batch_size, embedder.num_threads_per_worker) == (4, 2)
        assert (embedder.image_embedding_column, embedder.normalize_embeddings) == ("vector", False)
    path = make_shard(tmp_path / "s.tar", 3)
    lengths = np.linalg.norm(vectors_of(by_name, path, tmp_path), axis=1)
    assert lengths.min() > 1.1


def test_random_weights_are_never_used_without_a_word(tmp_path, caplog):
    TimmImageEmbedder(SMALL).load_embedding_model("cpu")
    assert "random weights" in caplog.text
    caplog.clear()
    Lite0Embedder().load_embedding_model("cpu")
    assert "random weights" not in caplog.text


def test_the_cpu_computes_in_float32_and_without_a_warning(tmp_path):
    path = make_shard(tmp_path / "s.tar", 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "The image decoding and encoding capabilities of TorchVision")
        fast, exact = (
            vectors_of(TimmImageEmbedder(SMALL, autocast=choice), path, tmp_path) for choice in (True, False)
        )
    assert np.array_equal(fast, exact)


def test_a_cpu_computes_in_bfloat16_by_choice_and_near_to_float32(tmp_path):
    path = make_shard(tmp_path / "s.tar", 3)
    exact = vectors_of(TimmImageEmbedder(SMALL), path, tmp_path)
    reduced = vectors_of(TimmImageEmbedder(SMALL, autocast="bfloat16"), path, tmp_path)
    cosines = (exact * reduced).sum(axis=1)
    assert not np.array_equal(exact, reduced)
    assert cosines.min() > 0.99, cosines
    with pytest.raises(EmbedderError, match="autocast 'bf16': expected true, false, bfloat16 or float16"):
        TimmImageEmbedder(SMALL, autocast="bf16")


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("gcc"), reason="torch.compile needs a C++ compiler on the CPU")
def test_a_compiled_model_gives_the_same_vectors(tmp_path):
    path = make_shard(tmp_path / "s.tar", 3)
    plain = vectors_of(TimmImageEmbedder(SMALL, batch_size=2), path, tmp_path)
    compiled = vectors_of(TimmImageEmbedder(SMALL, batch_size=2, compile=True), path, tmp_path)
    np.testing.assert_allclose(compiled, plain, atol=1e-5)


def test_a_compiled_model_sees_few_sizes_and_after_one_that_did_not_fit_its_half():
    sizes = []

    class Traced(torch.nn.Module):
        def forward(self, pixels):
            sizes.append(len(pixels))
            if len(pixels) > 8:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory")
            return pixels.mean(dim=(2, 3))

    model, pixels = PaddedModel(Traced()), torch.rand(16, 3, 2, 2)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        model(pixels)
    for images in (8, 8, 3, 8):
        assert torch.equal(model(pixels[:images]), pixels[:images].mean(dim=(2, 3)))
    assert sizes == [16, 8, 8, 8, 8]


def test_it_stands_on_nothing_that_a_user_could_not_use():
    assert issubclass(TimmImageEmbedder, ImageEmbedder)
    assert isinstance(build_embedder("embedders:TimmImageEmbedder", {"model_name": SMALL}), TimmImageEmbedder)


# Bad input: one clear line.


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("resnet81", r"timm has no model 'resnet81'; near names: resnet18"),
        ("zzzzzzzzz", "near names: none"),
        ("resnet18.no_such_tag", "timm has no weights 'no_such_tag' for 'resnet18'; it has: .*resnet18.a1_in1k"),
    ],
)
def test_an_unknown_model_has_near_names_suggested(name, reason):
    with pytest.raises(EmbedderError, match=reason):
        TimmImageEmbedder(name)


@pytest.mark.parametrize("option", ["pretrained", "normalize_embeddings", "keep_head", "compile"])
def test_a_flag_in_quotes_is_refused(option):
    with pytest.raises(EmbedderError, match=f"{option} 'false': expected true or false, without quotes"):
        TimmImageEmbedder(SMALL, **{option: "false"})


def test_a_background_that_is_no_colour_is_refused_at_once():
    with pytest.raises(EmbedderError, match="background 'blanc': expected a colour"):
        TimmImageEmbedder(SMALL, background="blanc")
    assert TimmImageEmbedder(SMALL, background="#123456").background == "#123456"


def test_the_background_reaches_the_pixels():
    clear = encode(Image.new("RGBA", (160, 160), (0, 0, 0, 0)))
    assert TimmImageEmbedder(SMALL).decode(clear).min() == 255
    assert TimmImageEmbedder(SMALL, background="black").decode(clear).max() == 0


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_a_checkpoint_gives_its_own_vectors_with_and_without_its_classifier(tmp_path, suffix):
    torch.manual_seed(1)
    weights = timm.create_model(SMALL).state_dict()
    path = tmp_path / f"w.{suffix}"
    if suffix == "pt":
        torch.save(weights, path)
    else:
        from safetensors.torch import save_file

        save_file(weights, path)
    shard = make_shard(tmp_path / "s.tar", 2)
    found = [vectors_of(TimmImageEmbedder(SMALL, checkpoint_path=str(path)), shard, tmp_path) for _ in range(2)]
    assert np.array_equal(*found)
    assert not np.allclose(found[0], vectors_of(TimmImageEmbedder(SMALL), shard, tmp_path), atol=1e-3)
    kept = TimmImageEmbedder(SMALL, checkpoint_path=str(path), keep_head=True).load_embedding_model("cpu").model
    assert torch.equal(kept.head.weight, weights["head.weight"])


def make_weights(tmp_path, change):
    weights = timm.create_model(SMALL).state_dict()
    change(weights)
    torch.save(weights, tmp_path / "w.pt")
    return str(tmp_path / "w.pt")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda weights: weights.pop("norm.bias"), "the file lacks 1 of the model's .* weights, such as 'norm.bias'"),
        (
            lambda weights: weights.update(extra=torch.ones(1)),
            "1 of the file's .* weights are unknown to the model, such as 'extra'",
        ),
        (
            lambda weights: weights.update({"norm.bias": torch.ones(3)}),
            r"'norm.bias' has the shape \(3,\); the model's has \(64,\)",
        ),
        (lambda weights: weights.clear(), "the file lacks"),
    ],
)
def test_weights_that_do_not_fit_are_told_by_name(tmp_path, change, reason):
    embedder = TimmImageEmbedder(SMALL, checkpoint_path=make_weights(tmp_path, change))
    with pytest.raises(EmbedderError, match=reason):
        embedder.load_embedding_model("cpu")


class Evil:
    def __reduce__(self):
        import os

        return os.mkdir, ("evil-ran",)


def test_a_checkpoint_cannot_run_code_and_one_that_is_none_is_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"weights": Evil()}, tmp_path / "evil.pt")
    (tmp_path / "text.pt").write_bytes(b"no weights")
    (tmp_path / "text.safetensors").write_bytes(b"no weights")
    for name in ("evil.pt", "text.pt", "text.safetensors"):
        with pytest.raises(EmbedderError, match=f"checkpoint_path '{name}' cannot be read") as caught:
            TimmImageEmbedder(SMALL, checkpoint_path=name).load_embedding_model("cpu")
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "evil-ran").exists()
    with pytest.raises(EmbedderError, match=r"checkpoint_path 'none\.pt': there is no such file"):
        TimmImageEmbedder(SMALL, checkpoint_path="none.pt")


def test_weights_that_cannot_be_had_without_a_network_are_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        EmbedderError, match=r"timm cannot load 'test_vit\.r160_in1k': .* set checkpoint_path"
    ) as caught:
        TimmImageEmbedder(SMALL, pretrained=True).load_embedding_model("cpu")
    assert "\n" not in str(caught.value)


# Images of odd shapes.


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_a_thread_like_image_is_refused_before_it_fills_the_memory(form):
    embedder = TimmImageEmbedder(SMALL)
    with pytest.raises(ImageError, match="too many pixels"):
        embedder.decode(make_image(0, (60_000, 1), form))
    assert embedder.decode(make_image(0, (3_000, 2), form)).shape == (3, 160, 160)
    assert embedder.decode(make_image(0, (1, 1), form)).shape == (3, 160, 160)
