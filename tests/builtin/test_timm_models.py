"""Models of timm from folders and from the hub, with arguments and pools of their own: held to timm's own vectors."""

import io
import json
import re

import numpy as np
import pytest
import timm
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file
from support.tools import ROOT, make_image, make_shard, make_tar
from timm.data import create_transform, resolve_data_config
from timm.layers import SwiGLUPacked
from timm.models import save_for_hf

from embedders import TimmImageEmbedder, embed_shard
from embedders.checks.contract import check_embedder
from embedders.errors import EmbedderError
from embedders.job.sources import describe_recipe, find_deciding_files
from embedders.output.footers import describe_file
from embedders.output.parquet import read_vectors

BLOCKS = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs/models.md").read_text(), re.S)
EXAMPLES = [yaml.safe_load(block) for block in BLOCKS if "TimmImageEmbedder" in block]
TINY_VIT = {"embed_dim": 48, "depth": 2, "num_heads": 4}


def save_model(folder, architecture: str, **args) -> str:
    """Make a folder as a user has it: config.json and random weights."""
    torch.manual_seed(0)
    model = timm.create_model(architecture, **args)
    save_for_hf(model, folder, model_args=args, safe_serialization=True)
    return f"local-dir:{folder}"


def embed(tmp_path, images: list[bytes], **args) -> np.ndarray:
    path = make_tar(tmp_path / "s.tar", {f"{n}.jpg": image for n, image in enumerate(images)})
    embed_shard(TimmImageEmbedder(pretrained=True, **args), path, tmp_path / "o.parquet", device="cpu")
    _, vectors, described = read_vectors(str(tmp_path / "o.parquet"))
    (shape,) = described.shapes.values()
    return vectors.reshape(-1, *shape)


def cosines_with_timms_own(ours, images, model, config, pool=lambda model, pixels: model(pixels), mode="RGB"):
    """Embed as timm's documentation tells a user to do, and compare."""
    transform = create_transform(**config, is_training=False)
    with torch.inference_mode():
        pixels = torch.stack([transform(Image.open(io.BytesIO(image)).convert(mode)) for image in images])
        theirs = torch.nn.functional.normalize(pool(model.eval(), pixels), dim=-1).numpy()
    assert ours.shape == theirs.shape
    return (ours * theirs).sum(axis=-1)


def tokens(model, pixels, patches_from):
    features = model.forward_features(pixels)
    return features[:, 0], features[:, patches_from:].mean(1)


IMAGES = [make_image(n, size, quality=92) for n, size in enumerate([(300, 200), (200, 300), (90, 70), (641, 481)])]
KINDS = {
    "head of a transformer": ("vit_tiny_patch16_224", TINY_VIT, "head", lambda m, p: m(p)),
    "class token": ("vit_tiny_patch16_224", TINY_VIT, "cls", lambda m, p: tokens(m, p, 1)[0]),
    "mean of patches": ("vit_tiny_patch16_224", TINY_VIT, "mean", lambda m, p: tokens(m, p, 1)[1]),
    "both, with registers": (
        "vit_small_patch14_reg4_dinov2",
        TINY_VIT | {"img_size": 126},
        "cls+mean",
        lambda m, p: torch.cat(tokens(m, p, 5), dim=1),
    ),
    "DINOv3": (
        "vit_small_patch16_dinov3",
        TINY_VIT,
        "cls+mean",
        lambda m, p: torch.cat(tokens(m, p, 5), dim=1),
    ),
    "two prefix tokens": ("deit_tiny_distilled_patch16_224", TINY_VIT, "mean", lambda m, p: tokens(m, p, 2)[1]),
    "no class token": (
        "vit_base_patch16_siglip_224",
        TINY_VIT,
        "mean",
        lambda m, p: m.forward_features(p).mean(1),
    ),
    "convolutions": ("test_resnet", {}, "mean", lambda m, p: m.forward_features(p).mean((2, 3))),
    "channels last": (
        "swin_tiny_patch4_window7_224",
        {"embed_dim": 12, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 2, 2)},
        "mean",
        lambda m, p: m.forward_features(p).mean((1, 2)),
    ),
    "tokens of a transformer, with registers": (
        "vit_small_patch14_reg4_dinov2",
        TINY_VIT | {"img_size": 126},
        "tokens",
        lambda m, p: m.forward_features(p),
    ),
    "tokens of convolutions": (
        "test_resnet",
        {},
        "tokens",
        lambda m, p: m.forward_features(p).flatten(2).transpose(1, 2),
    ),
    "tokens, channels last": (
        "swin_tiny_patch4_window7_224",
        {"embed_dim": 12, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 2, 2)},
        "tokens",
        lambda m, p: m.forward_features(p).flatten(1, 2),
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_vectors_of_a_model_in_a_folder_equal_timms_own(tmp_path, kind):
    architecture, args, pool, theirs = KINDS[kind]
    name = save_model(tmp_path / "m", architecture, num_classes=0, **args)
    ours = embed(tmp_path, IMAGES, model_name=name, pool=pool)
    model = timm.create_model(name, pretrained=True)
    size = args.get("img_size")
    config = resolve_data_config({"img_size": size}, model.pretrained_cfg, use_test_size=True)
    cosines = cosines_with_timms_own(ours, IMAGES, model, config, theirs)
    assert cosines.mean() >= 0.9999, cosines
    assert cosines.min() >= 0.999, cosines


def test_another_image_size_is_read_and_the_positions_are_resampled_as_timm_does(tmp_path):
    name = save_model(tmp_path / "m", "vit_small_patch14_dinov2", **TINY_VIT)
    assert TimmImageEmbedder(name).decode(IMAGES[0]).shape == (3, 518, 518)
    arguments = {"img_size": 112}
    ours = embed(tmp_path, IMAGES, model_name=name, model_args=arguments)
    assert describe_file(str(tmp_path / "o.parquet")).provenance.embedder.preprocessing["input_size"] == [3, 112, 112]
    model = timm.create_model(name, pretrained=True, num_classes=0, **arguments)
    config = resolve_data_config(arguments, model.pretrained_cfg, use_test_size=True)
    assert cosines_with_timms_own(ours, IMAGES, model, config).min() >= 0.999
    # the same weights, given as a file
    weights = str(tmp_path / "m/model.safetensors")
    from_file = TimmImageEmbedder(
        "vit_small_patch14_dinov2", checkpoint_path=weights, model_args=arguments | TINY_VIT
    ).load_embedding_model("cpu")
    embedder = TimmImageEmbedder(name, pretrained=True, model_args=arguments)
    batch = torch.stack([embedder.decode(image) for image in IMAGES])
    assert torch.allclose(from_file(batch), embedder.load_embedding_model("cpu")(batch), atol=1e-5)


def test_a_size_that_is_not_square_and_any_size_at_all(tmp_path):
    name = save_model(tmp_path / "m", "vit_tiny_patch16_224", **TINY_VIT)
    for arguments in ({"img_size": [96, 160]}, {"img_size": (96, 160), "dynamic_img_size": True}):
        assert TimmImageEmbedder(name, model_args=arguments).decode(IMAGES[0]).shape == (3, 96, 160)
        assert embed(tmp_path, IMAGES, model_name=name, model_args=arguments).shape == (4, 48)


def test_a_model_of_one_channel_reads_grey_as_timm_does(tmp_path):
    name = save_model(tmp_path / "m", "vit_tiny_patch16_224", **TINY_VIT)
    ours = embed(tmp_path, IMAGES, model_name=name, model_args={"in_chans": 1})
    model = timm.create_model(name, pretrained=True, in_chans=1, num_classes=0)
    config = resolve_data_config({"in_chans": 1}, model.pretrained_cfg, use_test_size=True)
    config |= {"input_size": (1, 224, 224), "mean": (0.5,), "std": (0.5,)}
    assert cosines_with_timms_own(ours, IMAGES, model, config, mode="L").min() >= 0.9999


def test_layers_are_given_by_the_names_of_their_classes(tmp_path):
    arguments = TINY_VIT | {"mlp_ratio": 4.0, "init_values": 1e-5}
    layers = {"mlp_layer": SwiGLUPacked, "act_layer": torch.nn.SiLU}
    name = save_model(tmp_path / "m", "vit_tiny_patch16_224", num_classes=0, **arguments)
    weights = timm.create_model("vit_tiny_patch16_224", num_classes=0, **arguments, **layers).state_dict()
    save_file(weights, tmp_path / "m/model.safetensors")
    model = timm.create_model(name, pretrained=True, **layers)
    config = resolve_data_config({}, model.pretrained_cfg, use_test_size=True)
    for names in (("SwiGLUPacked", "SiLU"), ("timm.layers.SwiGLUPacked", "torch.nn.SiLU"), ("SwiGLUPacked", "silu")):
        named = dict(zip(("mlp_layer", "act_layer"), names, strict=True))
        ours = embed(tmp_path, IMAGES, model_name=name, model_args=named)
        assert cosines_with_timms_own(ours, IMAGES, model, config).min() >= 0.9999


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The cache of a hub that cannot be reached."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def test_a_model_of_the_hub_is_loaded_from_its_cache(tmp_path, hub):
    repository = hub / "models--org--tiny"
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text("0" * 40)
    save_model(snapshot, "vit_tiny_patch16_224", num_classes=0, **TINY_VIT)
    for name in ("hf-hub:org/tiny", "hf_hub:org/tiny"):
        ours = embed(tmp_path, IMAGES, model_name=name)
        assert np.allclose(ours, embed(tmp_path, IMAGES, model_name=f"local-dir:{snapshot}"), atol=1e-6)


def test_a_hub_that_cannot_be_reached_is_one_line_with_what_to_fetch(hub):
    advice = r"hf download org/none --local-dir FOLDER\).* set model_name: local-dir:FOLDER"
    with pytest.raises(EmbedderError, match=f"its config.json cannot be read: .*{advice}") as caught:
        TimmImageEmbedder("hf-hub:org/none", pretrained=True)
    assert "\n" not in str(caught.value)
    with pytest.raises(EmbedderError, match="hf download org/none --revision v2 --local-dir"):
        TimmImageEmbedder("hf-hub:org/none@v2")
    with pytest.raises(EmbedderError, match=r"hf download timm/test_vit\.r160_in1k --local-dir FOLDER"):
        TimmImageEmbedder("test_vit.r160_in1k", pretrained=True).load_embedding_model("cpu")


# The config.json of the repositories whose weights need consent, as far as it decides the model.
HUB = {
    "MahmoodLab/UNI": ("vit_large_patch16_224", {"img_size": 224, "num_classes": 0}, (1024, 24)),
    "MahmoodLab/UNI2-h": ("vit_giant_patch14_224", {"num_classes": 0}, (1536, 24)),
    "paige-ai/Virchow2": (
        "vit_huge_patch14_224",
        {
            "img_size": 224, "init_values": 1e-5, "num_classes": 0, "reg_tokens": 4, "mlp_ratio": 5.3375,
            "global_pool": "", "dynamic_img_size": True,
        },
        (2560, 32),
    ),
    "prov-gigapath/prov-gigapath": (
        "vit_giant_patch14_dinov2",
        {
            "img_size": 224, "in_chans": 3, "patch_size": 16, "embed_dim": 1536, "depth": 40, "num_heads": 24,
            "init_values": 1e-5, "mlp_ratio": 5.33334, "num_classes": 0,
        },
        (1536, 40),
    ),
    "bioptimus/H-optimus-0": (
        "vit_giant_patch14_reg4_dinov2",
        {"img_size": 224, "num_classes": 0, "global_pool": "token"},
        (1536, 40),
    ),
}  # fmt: skip


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_the_documented_examples_build_the_models_that_they_name(tmp_path, number):
    arguments = EXAMPLES[number]["embedder"]["args"] | {"pretrained": False}  # a licence is needed for the weights
    place = arguments["model_name"].removeprefix("hf-hub:")
    expected = {"vit_base_patch16_dinov3.lvd1689m": (768, 12), "vit_small_patch14_dinov2.lvd142m": (384, 12)}
    if place in HUB:
        architecture, saved, expected[place] = HUB[place]
        cfg = {
            "input_size": [3, 224, 224],
            "mean": [0.485, 0.456, 0.406],
            "std": [0.229, 0.224, 0.225],
            "crop_pct": 1.0,
        }
        config = {"architecture": architecture, "num_classes": 0, "pretrained_cfg": cfg, "model_args": saved}
        (tmp_path / "config.json").write_text(json.dumps(config))
        arguments["model_name"] = f"local-dir:{tmp_path}"
    embedder = TimmImageEmbedder(**arguments)
    pixels = embedder.decode(IMAGES[0])
    assert pixels.shape == (3, 256, 256) if "dinov3" in place else (3, 224, 224)
    with torch.device("meta"):  # 1.1 thousand million weights that take no memory
        model = embedder.load_embedding_model("meta").model
        vectors = model(torch.zeros(2, *pixels.shape))
    dimension, depth = expected[place]
    assert vectors.shape == (2, dimension)
    assert len(getattr(model, "model", model).blocks) == depth


def test_there_are_examples_of_the_models_that_are_asked_for():
    names = " ".join(example["embedder"]["args"]["model_name"] for example in EXAMPLES)
    for name in ("UNI", "UNI2-h", "Virchow2", "prov-gigapath", "H-optimus", "dinov3", "dinov2"):
        assert name in names


# Bad input: one clear line.


def test_what_cannot_be_pooled_is_refused_before_an_image_is_read(tmp_path):
    for name, pool, reason in (
        ("test_resnet", "cls", "pool 'cls': 'test_resnet' has no class token; expected 'head' or 'mean'"),
        ("vit_base_patch16_siglip_224", "cls+mean", "has no class token"),
    ):
        arguments = TINY_VIT if name.startswith("vit") else {}
        with pytest.raises(EmbedderError, match=reason):
            TimmImageEmbedder(name, pool=pool, model_args=arguments).load_embedding_model("cpu")
    with pytest.raises(EmbedderError, match="pool 'max': expected one of head, cls, mean, cls\\+mean"):
        TimmImageEmbedder("test_vit", pool="max")
    with pytest.raises(EmbedderError, match="pool 'cls' leaves the head out, and keep_head keeps it"):
        TimmImageEmbedder("test_vit", pool="cls", keep_head=True)
    embedder = TimmImageEmbedder("vit_tiny_patch16_224", model_args=TINY_VIT | {"global_pool": ""})
    with pytest.raises(EmbedderError, match=r"pool 'head': .* gives its tokens; expected 'cls', 'mean', 'cls"):
        embedder.load_embedding_model("cpu")
    path = make_shard(tmp_path / "s.tar", 2)
    embedder = TimmImageEmbedder("coat_tiny", pool="mean")
    with pytest.raises(EmbedderError, match="pool 'mean': 'coat_tiny' has no tokens that can be pooled"):
        embed_shard(embedder, path, tmp_path / "o.parquet", device="cpu")


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (
            {"no_such_thing": 1},
            r"timm refuses model_args \{'no_such_thing': 1\} for 'test_vit': TypeError: .*no_such_thing",
        ),
        (
            {"init_values": "1e-5"},
            "TypeError: .*; '1e-5' is a text; YAML takes a number such as 1.0e-5, with a point, as one",
        ),
        ({"act_layer": "no_such_layer"}, "timm refuses model_args .*KeyError: 'no_such_layer'"),
        ({"mlp_layer": "NoSuchLayer"}, "timm refuses model_args .*TypeError: 'str' object is not callable"),
        ({"img_size": 100, "patch_size": "x"}, "timm refuses model_args"),
        ({"img_size": "large"}, r"img_size is 'large'; expected a number of pixels, or \[height, width\]"),
        ({"img_size": [224]}, r"img_size is \[224\]; expected"),
        ({"img_size": 0}, "img_size is 0; expected"),
        ({"in_chans": 4}, r"in_chans is 4; expected 3 \(RGB\) or 1 \(grey\)"),
        (["img_size"], r"model_args \['img_size'\]: expected arguments by name"),
    ],
)
def test_arguments_that_timm_refuses_are_told_in_its_own_words(arguments, reason):
    with pytest.raises(EmbedderError, match=reason) as caught:
        TimmImageEmbedder("test_vit", model_args=arguments).load_embedding_model("cpu")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "config", "reason"),
    [
        (
            "local-dir:none",
            None,
            "its config.json cannot be read: FileNotFoundError: .*expected a folder with the config",
        ),
        ("local-dir:m", "{", "its config.json cannot be read: JSONDecodeError"),
        ("local-dir:m", '{"model_type": "vit"}', "its config.json cannot be read: KeyError: 'architecture'"),
        (
            "local-dir:m",
            '{"architecture": "vit_tini", "pretrained_cfg": {}}',
            "has no architecture 'vit_tini'; near names",
        ),
        (
            "hub:org/name",
            None,
            r"model_name 'hub:org/name': expected timm's name, hf-hub:org/name or local-dir:/folder",
        ),
        (
            "org/name",
            None,
            "timm has no model 'org/name'; .*of the hub: hf-hub:org/name; a folder: local-dir:org/name",
        ),
    ],
)
def test_a_name_that_means_no_model_is_one_line(tmp_path, monkeypatch, name, config, reason):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m").mkdir()
    if config:
        (tmp_path / "m/config.json").write_text(config)
    with pytest.raises(EmbedderError, match=reason) as caught:
        TimmImageEmbedder(name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 1\n", "begins as a pointer of Git LFS"),
        (b"<!DOCTYPE html><html>", "begins as an HTML page"),
        (b"PK\x03\x04" + b"x" * 600, "begins as a zip archive"),
    ],
)
def test_weights_that_are_none_are_told_by_what_they_begin_with(tmp_path, content, said):
    name = save_model(tmp_path / "m", "vit_tiny_patch16_224", **TINY_VIT)
    (tmp_path / "m/model.safetensors").write_bytes(content)
    with pytest.raises(EmbedderError, match=f"timm cannot load 'local-dir:.*; model.safetensors {said}"):
        TimmImageEmbedder(name, pretrained=True).load_embedding_model("cpu")
    for suffix in ("safetensors", "pt", "bin"):
        path = tmp_path / f"w.{suffix}"
        path.write_bytes(content)
        with pytest.raises(EmbedderError, match=f"checkpoint_path '{path}' cannot be read: .*; it {said}") as caught:
            TimmImageEmbedder("test_vit", checkpoint_path=str(path)).load_embedding_model("cpu")
        assert "\n" not in str(caught.value)
    (tmp_path / "m/model.safetensors").unlink()
    with pytest.raises(EmbedderError, match="no weights are there"):
        TimmImageEmbedder(name, pretrained=True).load_embedding_model("cpu")


def test_what_only_training_uses_is_left_out_of_a_checkpoint(tmp_path, caplog):
    weights = timm.create_model("test_vit", num_classes=0).state_dict()
    path = str(tmp_path / "w.pt")
    torch.save(weights | {"mask_token": torch.ones(1, 64), "decoder_blocks.0.weight": torch.ones(2)}, path)
    with caplog.at_level("INFO"):
        model = TimmImageEmbedder("test_vit", checkpoint_path=path).load_embedding_model("cpu").model
    assert torch.equal(model.pos_embed, weights["pos_embed"])
    assert "2 weights are not used by this model, such as 'mask_token'" in caplog.text
    torch.save(weights | {"mask_tokens_of_my_own": torch.ones(1)}, path)
    with pytest.raises(EmbedderError, match=r"1 of the file's .* weights are unknown to .*, such as 'mask_tokens"):
        TimmImageEmbedder("test_vit", checkpoint_path=path).load_embedding_model("cpu")


# timm's notes.

QUICK = "vit_base_patch32_clip_quickgelu_224.openai"


def test_timms_notes_are_said_where_they_concern_the_name(tmp_path, caplog):
    told = TimmImageEmbedder("vit_base_patch32_clip_224.openai").notes
    assert len(told) == 1
    assert told[0].startswith("timm notes of vit_base_patch32_clip_224.openai: natively QuickGELU, use quickgelu")
    assert told[0].endswith(f"; that is {QUICK}")
    activation = {"act_layer": "quick_gelu"}
    for name, arguments in ((QUICK, {}), ("vit_base_patch32_clip_224.openai", activation), ("resnet18", {})):
        assert TimmImageEmbedder(name, model_args=arguments).notes == []
    (note,) = TimmImageEmbedder("cspnext_s.rsb_a1_in1k").notes
    assert "token hybrid backbone" in note


def test_notes_are_in_the_log_the_footer_and_the_check(tmp_path, caplog):
    # A folder with a model of OpenAI's name and of a size for tests.
    arguments = TINY_VIT | {"num_classes": 32}
    name = save_model(tmp_path / "m", "vit_base_patch32_clip_224.openai", **arguments)
    path = make_shard(tmp_path / "s.tar", 3)
    embed_shard(TimmImageEmbedder(name, pretrained=True), path, tmp_path / "o.parquet", device="cpu")
    assert f"timm notes of {name}: natively QuickGELU" in caplog.text
    made = describe_file(str(tmp_path / "o.parquet"))
    assert made.shapes == {"image_embedding": (32,)}  # the projection is kept, by the name in config.json
    assert len(made.provenance.embedder.notes) == 1
    findings = list(check_embedder(TimmImageEmbedder(name, pretrained=True), path))
    assert [finding for finding in findings if "natively QuickGELU" in finding.message]
    assert not [finding for finding in findings if finding.is_wrong]


def test_the_content_of_a_folder_decides_what_runs_again(tmp_path):
    name = save_model(tmp_path / "m", "test_resnet")
    arguments = {"model_name": name}
    before = describe_recipe("embedders:TimmImageEmbedder", arguments)
    assert {"config.json", "model.safetensors"} <= set(before["args"]["model_name"])
    assert tmp_path / "m/model.safetensors" in find_deciding_files("embedders:TimmImageEmbedder", arguments)
    torch.manual_seed(1)
    save_for_hf(timm.create_model("test_resnet", num_classes=3), tmp_path / "m", safe_serialization=True)
    assert describe_recipe("embedders:TimmImageEmbedder", arguments) != before


# NeMo Curator's own tests of its constructor.


def test_the_constructor_keeps_what_nemo_curators_keeps():
    default = TimmImageEmbedder(model_name="resnet18")
    assert (default.model_name, default.pretrained, default.image_embedding_column) == (
        "resnet18",
        False,
        "image_embedding",
    )
    assert (default.normalize_embeddings, default.autocast, default.use_index_files) == (True, True, False)
    assert len(default.classifiers) == 0
    custom = {
        "model_name": "vit_base_patch16_224", "pretrained": True, "batch_size": 64, "num_threads_per_worker": 8,
        "image_embedding_column": "custom_embedding", "normalize_embeddings": False, "autocast": False,
        "use_index_files": True, "classifiers": [],
    }  # fmt: skip
    embedder = TimmImageEmbedder(**custom)
    assert {name: getattr(embedder, name) for name in custom} == custom
