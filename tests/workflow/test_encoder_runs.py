"""open_clip and Hugging Face embedders in real Snakemake runs, from the configurations in examples/ alone."""

import json
import shutil

import numpy as np
import open_clip
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner
from support.encoders import make_hugging_face, make_open_clip, make_pictures, measure_cosines, open_pictures
from support.tools import ROOT, make_tar
from support.workflow import find_planned, run_well

from embedders.builtin.laion import AestheticModel
from embedders.cli import main
from embedders.output.parquet import read_vectors

PICTURES = make_pictures()
WEIGHTS = "models/sac+logos+ava1-l14-linearMSE.pth"


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with one shard, in which a test makes the models that an example names."""
    (tmp_path / "data").mkdir()
    make_tar(tmp_path / "data/a.tar", PICTURES)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_example(project, name):
    shutil.copy(ROOT / f"examples/{name}.yaml", project / "config.yaml")
    run_well(project, "--cores", "1")
    table, vectors, provenance = read_vectors("results/embeddings/a.parquet")
    assert table["key"].to_pylist() == [name.partition(".")[0] for name in PICTURES]
    return vectors, provenance


def check_sound(*lines):
    """Hold the run against itself by `verify`, and see what `inspect` shows."""
    verified = CliRunner().invoke(main, ["verify", "results/embeddings/a.parquet"])
    assert verified.exit_code == 0, verified.output
    shown = CliRunner().invoke(main, ["inspect", "results/embeddings/a.parquet"]).output
    for line in lines:
        assert line in shown


def test_open_clip_with_a_score_from_the_example_alone(project):
    make_open_clip(project / "models/clip", embed_dim=768)
    scorer = AestheticModel().eval()
    torch.save(scorer.state_dict(), WEIGHTS)
    vectors, _ = run_example(project, "open_clip")

    model, preprocess = open_clip.create_model_from_pretrained("local-dir:models/clip")
    with torch.inference_mode():
        pixels = torch.stack([preprocess(picture) for picture in open_pictures(PICTURES)])
        expected = model.eval().encode_image(pixels, normalize=True)
        scores = scorer(expected)[:, 0]
    cosines = measure_cosines(vectors, expected.numpy())
    assert cosines.mean() >= 0.9999
    assert cosines.min() >= 0.999
    scored = pq.read_table("results/scores/AestheticClassifier/a.parquet")
    np.testing.assert_allclose(scored["aesthetic_score"].to_numpy(), scores.numpy(), atol=1e-3)
    check_sound("resize_mode", "open_clip")
    # Other weights in the same folder are another model.
    assert find_planned(project) == set()
    torch.manual_seed(1)
    config = json.loads((project / "models/clip/open_clip_config.json").read_text())["model_cfg"]
    torch.save(open_clip.CLIP(**config).state_dict(), project / "models/clip/open_clip_pytorch_model.bin")
    assert find_planned(project) == {"a"}


def test_hugging_face_from_the_example_alone(project):
    model, processor = make_hugging_face(project / "models/dinov2", "dinov2")
    vectors, _ = run_example(project, "hugging_face")
    with torch.inference_mode():
        expected = model(**processor(images=open_pictures(PICTURES), return_tensors="pt")).pooler_output
    cosines = measure_cosines(vectors, expected.numpy())
    assert cosines.mean() >= 0.9999
    assert cosines.min() >= 0.999
    check_sound("image_mean", "transformers")
    options = ("--embedder-args", '{"model_name": "models/dinov2"}', "--shard", "data/a.tar", "--device", "cpu")
    checked = CliRunner().invoke(main, ["check", "embedders:HuggingFaceImageEmbedder", *options])
    assert checked.exit_code == 0, checked.output
    assert find_planned(project) == set()
    model.layernorm.weight.data += 1
    model.save_pretrained(project / "models/dinov2")
    assert find_planned(project) == {"a"}
