"""Several models over one reading: a column for each, with the vectors that each gives by itself."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from click.testing import CliRunner
from support.encoders import make_hugging_face, make_open_clip, make_pictures
from support.tools import make_tar
from support.workflow import find_planned, run_well

from embedders import HuggingFaceImageEmbedder, OpenClipImageEmbedder, SeveralEmbedders
from embedders.base import ImageEmbedder
from embedders.cli import main
from embedders.errors import ConfigError, EmbedderError
from embedders.job.embed import embed_shard
from embedders.output.footers import describe_file
from embedders.reading import jpeg

PICTURES = make_pictures()
CONFIG = """\
shards: "data/*.tar"
embedder:
  class: "embedders:SeveralEmbedders"
  args:
    batch_size: 5
    embedders:
      - class: "embedders:OpenClipImageEmbedder"
        args: {model_name: "local-dir:models/clip", image_embedding_column: clip}
      - class: "embedders:HuggingFaceImageEmbedder"
        args: {model_name: models/dinov2, image_embedding_column: dinov2}
      - class: "mine.py:MeanColor"
        args: {}
device: cpu
report: false
"""
MINE = """
from embedders import ImageEmbedder
class MeanColor(ImageEmbedder):
    def load_embedding_model(self, device):
        return lambda batch: batch.mean(dim=(2, 3))
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    make_tar(tmp_path / "data/a.tar", PICTURES)
    make_tar(tmp_path / "data/empty.tar", {})
    (tmp_path / "mine.py").write_text(MINE)
    make_open_clip(tmp_path / "models/clip")
    make_hugging_face(tmp_path / "models/dinov2", "dinov2")
    (tmp_path / "config.yaml").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def embed_alone(embedder):
    pixels = torch.stack([embedder.decode(picture) for picture in PICTURES.values()])
    return embedder.load_embedding_model("cpu")(pixels).numpy()


def test_a_run_has_a_column_for_each_with_the_vectors_that_it_gives_alone(project):
    run_well(project, "--cores", "1")
    table = pq.read_table("results/embeddings/a.parquet")
    assert table.column_names == ["shard", "key", "clip", "dinov2", "image_embedding"]
    for column, embedder in (
        ("clip", OpenClipImageEmbedder("local-dir:models/clip")),
        ("dinov2", HuggingFaceImageEmbedder("models/dinov2")),
    ):
        np.testing.assert_allclose(np.stack(table[column].to_numpy()), embed_alone(embedder), atol=1e-5)
    assert pq.read_schema("results/embeddings/empty.parquet").equals(table.schema)
    described = describe_file("results/embeddings/a.parquet")
    assert described.shapes == {"clip": (24,), "dinov2": (32,), "image_embedding": (3,)}
    verified = CliRunner().invoke(main, ["verify", "results/embeddings/a.parquet"])
    assert verified.exit_code == 0, verified.output
    args = json.dumps(yaml.safe_load(CONFIG)["embedder"]["args"])
    options = ("--embedder-args", args, "--shard", "data/a.tar", "--device", "cpu")
    checked = CliRunner().invoke(main, ["check", "embedders:SeveralEmbedders", *options])
    assert checked.exit_code == 0, checked.output
    assert "24 (clip), 32 (dinov2), 3 (image_embedding) dimensions" in " ".join(checked.output.split())
    assert find_planned(project) == set()
    (project / "mine.py").write_text(MINE.replace("mean", "amax"))
    assert find_planned(project) == {"a", "empty"}


def test_an_image_is_decoded_once(project, monkeypatch):
    decoded, decode = [], jpeg.decode
    monkeypatch.setattr(jpeg, "decode", lambda encoded: (decoded.append(encoded), decode(encoded))[1])
    clip = {"class": "embedders:OpenClipImageEmbedder", "args": {"model_name": "local-dir:models/clip"}}
    args = {"model_name": "models/dinov2", "image_embedding_column": "dinov2"}
    several = SeveralEmbedders([clip, {"class": "embedders:HuggingFaceImageEmbedder", "args": args}])
    several.decode(PICTURES["0.jpg"])
    several.decode(PICTURES["4.jpg"])
    assert decoded == [PICTURES["0.jpg"], PICTURES["4.jpg"]]


LABELS = """
import torch
from embedders import ImageEmbedder
class Labels(ImageEmbedder):
    metadata_fields = ("n",)
    def __init__(self):
        super().__init__("labels", image_embedding_column="label")
    def decode(self, encoded, metadata):
        return torch.tensor([{read}, len(metadata["__key__"])])
    def load_embedding_model(self, device):
        return lambda batch: batch
"""


@pytest.mark.parametrize(
    ("read", "numbers"),
    [
        ("float(metadata['n'])", [3, "4"]),  # as a text
        ("2.0 + metadata['n']", [1, 2]),  # as a number
        ("metadata['n']['deep']", [{"deep": 3.0}, {"deep": 4.0}]),  # neither: no blank image can be made
    ],
)
def test_one_of_several_may_read_metadata_of_any_kind(project, read, numbers):
    (project / "labels.py").write_text(LABELS.format(read=read))
    members = [(f"{row}.{end}", value) for row, n in enumerate(numbers)
               for end, value in (("png", PICTURES["rgb.png"]), ("json", {"n": n}))]  # fmt: skip
    several = SeveralEmbedders([{"class": "labels.py:Labels"}, {"class": "mine.py:MeanColor"}])
    embed_shard(several, make_tar("n.tar", members), "o.parquet", device="cpu")
    table = pq.read_table("o.parquet")
    assert table.column_names == ["shard", "key", "label", "image_embedding"]
    assert [label[0] for label in table["label"].to_pylist()] == [3, 4]


def test_two_of_one_column_and_what_is_no_list_are_refused(project):
    mine = {"class": "mine.py:MeanColor"}
    with pytest.raises(EmbedderError, match="two of them write the column 'image_embedding'; set image_embedding_co"):
        SeveralEmbedders([mine, mine])
    for wrong in ([], "mine.py:MeanColor", [{"args": {}}], [mine | {"batch_size": 3}]):
        with pytest.raises(EmbedderError, match="expected a list of"):
            SeveralEmbedders(wrong)


class Named(ImageEmbedder):
    """Returns what a function makes of each batch."""

    def __init__(self, make):
        super().__init__("named")
        self.batch_size = 5
        self.make = make

    def load_embedding_model(self, device):
        return self.make


def give(**dimensions):
    return lambda batch: {name: torch.ones(len(batch), dimension) for name, dimension in dimensions.items()}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda batch: {}, "the model returned no vectors; expected"),
        (lambda batch: {"a": torch.ones(5, 2), "b": torch.ones(4, 2)}, r"\(5, 2\), 'b' of shape \(4, 2\); expected"),
        (lambda batch: {"a": torch.ones(5)}, r"'a' of shape \(5,\); expected \(images, dimension\)"),
        (lambda batch: give(a=len(batch), b=2)(batch), r"dimension 2 \(a\), 2 \(b\), but 5 \(a\), 2 \(b\) before"),
    ],
)
def test_a_mapping_that_cannot_be_columns_is_refused(project, make, message):
    with pytest.raises(EmbedderError, match=message):
        embed_shard(Named(make), "data/a.tar", "o.parquet", device="cpu")


def test_a_column_that_is_there_already_is_refused(project):
    with pytest.raises(ConfigError, match="column 'key' would be there twice"):
        embed_shard(Named(give(key=2, b=2)), "data/a.tar", "o.parquet", device="cpu")
