"""Heads: what a classifier may be, with an embedder and over Parquet that exists."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from brightness import Brightness
from mean_color import MeanColor
from support.tools import MEAN_COLOR, ROOT, leftovers, make_shard, make_tar, run_cli

from embedders import AestheticClassifier, ImageClassifier, NsfwClassifier, TimmImageEmbedder, embed_shard
from embedders.builtin.laion import AestheticModel, NsfwModel
from embedders.errors import ConfigError, EmbedderError, ShardError
from embedders.job.head import Head
from embedders.job.locate import build_classifier
from embedders.job.score import score_file
from embedders.output.footers import describe_file
from embedders.output.parquet import inspect_file, read_vectors

BRIGHTNESS = f"{ROOT}/examples/brightness.py:Brightness"


class NemoStyle(ImageClassifier):
    """As one for NeMo Curator is written: scores are squeezed, and taken out of the lists of a cuDF series."""

    def __init__(self, embedding_column="image_embedding", pred_column="nemo", batch_size=-1):
        super().__init__(
            model_name="nemo",
            embedding_column=embedding_column,
            pred_column=pred_column,
            pred_type=float,
            batch_size=batch_size,
            embedding_size=3,
        )

    def load_model(self, device):
        model = torch.nn.Linear(3, 1).to(device)
        torch.nn.init.constant_(model.weight, 2)
        torch.nn.init.constant_(model.bias, 1)
        return lambda vectors: model(vectors).squeeze()

    def postprocess(self, series):
        new_series = series.list.leaves
        new_series.index = series.index
        return new_series


class Given(Brightness):
    """Its model and its type are given by the test."""

    def __init__(self, forward, pred_type=float, postprocess=None):
        super().__init__()
        self.forward, self.pred_type = forward, pred_type
        if postprocess:
            self.postprocess = postprocess

    def load_model(self, device):
        return self.forward


@pytest.fixture
def shard(tmp_path):
    return make_shard(tmp_path / "s.tar", 7)


def embed(embedder, shard, tmp_path, **options):
    path = tmp_path / "out.parquet"
    embed_shard(embedder, shard, path, **{"device": "cpu"} | options)
    return str(path)


def score(vectors, classifier):
    return Head(classifier, "cpu").score(np.asarray(vectors, dtype=np.float32), "s.parquet").to_pylist()


# With an embedder.


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_scores_stand_before_the_vectors_and_are_theirs(tmp_path, shard, dtype):
    class Small(MeanColor):
        batch_size = 2

    path = embed(Small(classifiers=[Brightness(), NemoStyle()]), shard, tmp_path, embedding_dtype=dtype)
    table, vectors, described = read_vectors(path)
    classifiers = described.provenance.classifiers
    assert table.column_names == ["shard", "key", "brightness", "nemo", "image_embedding"]
    assert table.schema.field("brightness") == pa.field("brightness", pa.float32(), nullable=False)
    assert np.allclose(table["brightness"].to_numpy(), vectors.astype(np.float32).mean(axis=1), atol=1e-6)
    assert np.allclose(table["nemo"].to_numpy(), vectors.astype(np.float32).sum(axis=1) * 2 + 1, atol=1e-5)
    assert [entry.pred_column for entry in classifiers] == ["brightness", "nemo"]
    assert classifiers[0].weights_sha256 is None  # a lambda has none
    assert len(classifiers[1].weights_sha256) == 64


def test_an_empty_shard_has_the_columns_too(tmp_path):
    path = embed(MeanColor(classifiers=[Brightness()]), make_tar(tmp_path / "s.tar", {}), tmp_path)
    assert pq.read_schema(path).names == ["shard", "key", "brightness", "image_embedding"]
    assert describe_file(path).rows == 0


@pytest.mark.slow
def test_an_embedder_of_config_yaml_brings_its_classifiers_itself(tmp_path, shard):
    (tmp_path / "both.py").write_text(
        "from brightness import Brightness\nfrom mean_color import MeanColor\n\nclass Both(MeanColor):\n"
        "    def __init__(self):\n        super().__init__(classifiers=[Brightness()])\n"
    )
    done = run_cli(
        "embed", shard, tmp_path / "o.parquet", "--embedder", f"{tmp_path}/both.py:Both", "--device", "cpu"
    )
    assert done.returncode == 0, done.stderr
    assert pq.read_schema(tmp_path / "o.parquet").names == ["shard", "key", "brightness", "image_embedding"]


@pytest.mark.parametrize("taken", ["shard", "key", "number", "image_embedding", "brightness"])
def test_a_column_that_is_taken_is_refused(tmp_path, shard, taken):
    classifiers = [Brightness(), Brightness(pred_column=taken)]
    with pytest.raises(ConfigError, match=f"column '{taken}' would be there twice; rename"):
        embed(MeanColor(classifiers=classifiers), shard, tmp_path, metadata_columns=["number"])
    assert leftovers(tmp_path) == ["s.tar"]


def test_vectors_of_another_width_are_refused_in_one_line(tmp_path, shard):
    with pytest.raises(
        EmbedderError, match=r"s.tar: the vectors have 3 dimensions, and brightness expects 768 .embedding_s"
    ):
        embed(MeanColor(classifiers=[Brightness(embedding_size=768)]), shard, tmp_path)


# What a classifier may give.


def test_scores_are_those_of_each_vector_alone_and_in_a_batch():
    vectors = np.arange(15).reshape(5, 3)
    assert score(vectors, Brightness()) == [1, 4, 7, 10, 13]
    assert score(vectors, NemoStyle()) == score(vectors, NemoStyle(batch_size=2)) == [7, 25, 43, 61, 79]
    assert [score(vectors[:1], NemoStyle()), score(vectors[:0], NemoStyle())] == [[7], []]


@pytest.mark.parametrize(
    ("pred_type", "arrow", "expected"),
    [
        (float, pa.float32(), [0.0, 3.0]),
        ("float64", pa.float64(), [0.0, 3.0]),
        (np.float16, pa.float16(), [0.0, 3.0]),
        (int, pa.int64(), [0, 3]),
        (bool, pa.bool_(), [False, True]),
    ],
)
def test_the_column_is_of_the_type_that_was_asked_for(pred_type, arrow, expected):
    head = Head(Given(lambda vectors: vectors.sum(dim=1, keepdim=True), pred_type), "cpu")
    assert head.field.type == arrow
    assert head.score(np.array([[0, 0, 0], [1, 1, 1]], dtype=np.float32), "").to_pylist() == expected


def test_a_postprocess_can_turn_scores_into_labels():
    head = Given(lambda vectors: vectors[:, 0], str, lambda scores: np.where(scores > 0.5, "light", "dark"))
    assert score([[0, 0, 0], [1, 1, 1]], head) == ["dark", "light"]


WRONG = {
    "two numbers per vector": (
        Given(lambda vectors: vectors[:, :2]),
        r"returned scores of shape \(4, 2\) for 4 vectors; exp",
    ),
    "one number for all": (Given(lambda vectors: vectors.sum()), r"returned scores of shape \(\) for 4 vectors"),
    "an error": (Given(lambda vectors: vectors @ vectors), "brightness: the model raised RuntimeError"),
    "a type that does not fit": (
        Given(lambda vectors: vectors[:, 0] + 0.5, int),
        "for a column of int64 .pred_type.",
    ),
    "a postprocess that drops": (
        Given(lambda vectors: vectors[:, 0], float, lambda scores: scores[1:]),
        "postprocess returned 3 values, 0 of them null; expected 4",
    ),
    "an error in postprocess": (
        Given(lambda vectors: vectors[:, 0], float, lambda scores: scores.nope),
        "has no attribute",
    ),
    "no type": (Given(None, "colour"), "pred_type is 'colour'; expected float, int"),
    "no classifier": ("nsfw", "'nsfw' is not an ImageClassifier"),
    "no super().__init__": (
        type("Bare", (Brightness,), {"__init__": lambda self: None})(),
        "Bare.__init__ does not call",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_breaks_the_contract_is_one_clear_line(case):
    classifier, message = WRONG[case]
    with pytest.raises(EmbedderError, match=message) as caught:
        score(np.ones((4, 3)), classifier)
    assert "\n" not in str(caught.value)


def test_a_score_that_is_not_finite_is_null_and_the_others_go_through_postprocess():
    divide = Given(lambda vectors: vectors[:, 0] / vectors[:, 1], int, lambda scores: scores.astype(int) * 10)
    assert score([[2, 1, 0], [0, 0, 0], [3, 1, 0], [1, 0, 0]], divide) == [20, None, 30, None]
    assert score([[0, 0, 0]], divide) == [None]


def test_a_sample_without_a_score_fails_alone(tmp_path):
    class Zero(MeanColor):
        def load_embedding_model(self, device):
            return lambda batch: torch.arange(len(batch) * 3).view(-1, 3)  # the first vector is 0, 1, 2

    shard = make_shard(tmp_path / "s.tar", 4)
    first, other = Given(lambda vectors: 1 / vectors[:, 0]), Brightness(pred_column="other")
    path = tmp_path / "out.parquet"
    ledger = embed_shard(Zero(classifiers=[first, other]), shard, path, device="cpu", max_failed_fraction=0.5)
    assert [(failed.key, failed.kind) for failed in ledger.failed] == [("00000", "bad_score")]
    assert ledger.failed[0].message == "brightness: the score is NaN or infinite; expected a finite number"
    table, vectors, _ = read_vectors(str(path))
    assert table["key"].to_pylist() == ["00001", "00002", "00003"]
    assert table["brightness"].to_pylist() == pytest.approx([1 / 3, 1 / 6, 1 / 9])
    assert table["other"].to_pylist() == vectors.mean(axis=1).tolist() == [4, 7, 10]


def test_a_score_of_a_file_that_is_not_finite_names_the_key(tmp_path, shard):
    path = embed(MeanColor(), shard, tmp_path)
    with pytest.raises(EmbedderError, match=r"brightness returned a score that is NaN or infinite for '00000'"):
        score_file(path, tmp_path / "scores.parquet", Given(lambda vectors: vectors[:, 0] / 0), "cpu")
    assert not (tmp_path / "scores.parquet").exists()


# LAION's.


def save(model, path):
    torch.manual_seed(1)
    state = {key: torch.rand_like(value) * 0.1 + 0.01 for key, value in model.state_dict().items()}
    torch.save(state, path)
    return state


def test_the_aesthetic_head_is_five_linear_layers(tmp_path):
    state = save(AestheticModel(), tmp_path / "weights.pth")
    assert [tuple(value.shape) for value in state.values() if value.ndim == 2] == [
        *((1024, 768), (128, 1024), (64, 128), (16, 64), (1, 16)),
    ]
    vectors = np.random.default_rng(0).normal(size=(5, 768)).astype(np.float32)
    expected = torch.tensor(vectors)
    for number in (0, 2, 4, 6, 7):  # the names of the published weights
        expected = expected @ state[f"layers.{number}.weight"].T + state[f"layers.{number}.bias"]
    found = score(vectors, AestheticClassifier(model_path=tmp_path / "weights.pth"))
    assert np.allclose(found, expected.flatten().numpy(), rtol=1e-4)


def test_the_nsfw_head_normalises_and_ends_in_a_sigmoid(tmp_path):
    state = save(NsfwModel(), tmp_path / "weights.pth")
    assert set(state) == {
        *("norm.mean", "norm.variance"),
        *(f"linear_{number}.{part}" for number in (1, 2, 3, 4) for part in ("weight", "bias")),
    }
    state["linear_4.bias"] -= 2000
    torch.save(state, tmp_path / "weights.pth")
    vectors = np.random.default_rng(0).normal(size=(5, 768)).astype(np.float32)
    hidden = (torch.tensor(vectors) - state["norm.mean"]) / state["norm.variance"].sqrt()
    for number in (1, 2, 3):
        hidden = torch.relu(hidden @ state[f"linear_{number}.weight"].T + state[f"linear_{number}.bias"])
    expected = torch.sigmoid(hidden @ state["linear_4.weight"].T + state["linear_4.bias"]).flatten().numpy()
    found = score(vectors, NsfwClassifier(embedding_column="v", model_path=tmp_path / "weights.pth"))
    assert np.allclose(found, expected, atol=1e-4)
    assert max(found) <= 1


def test_laions_heads_run_with_a_model_of_768_numbers(tmp_path, shard):
    save(AestheticModel(), tmp_path / "weights.pth")

    class Wide(MeanColor):
        def load_embedding_model(self, device):
            return lambda batch: batch.mean(dim=(2, 3)).repeat(1, 256)

    path = embed(Wide(classifiers=[AestheticClassifier(model_path=tmp_path / "weights.pth")]), shard, tmp_path)
    table = pq.read_table(path)
    assert table.column_names == ["shard", "key", "aesthetic_score", "image_embedding"]
    assert len(set(table["aesthetic_score"].to_pylist())) == 7


def test_weights_that_do_not_fit_are_one_clear_line(tmp_path):
    path = tmp_path / "weights.pth"
    with pytest.raises(EmbedderError, match="model_path is None; expected a file of weights; nothing is downloaded"):
        AestheticClassifier()
    with pytest.raises(EmbedderError, match="cannot be read: FileNotFoundError"):
        Head(NsfwClassifier(model_path=path), "cpu")
    save(NsfwModel(), path)
    with pytest.raises(EmbedderError, match=r"'layers.0.bias' is missing; expected \(1024,\) .20 keys differ"):
        Head(AestheticClassifier(model_path=path), "cpu")
    save(torch.nn.Linear(2, 1), path)
    with pytest.raises(EmbedderError, match="do not fit"):
        Head(NsfwClassifier(model_path=path), "cpu")
    torch.save([1, 2], path)
    with pytest.raises(EmbedderError, match="cannot be read: AttributeError"):
        Head(NsfwClassifier(model_path=path), "cpu")
    torch.save(torch.nn.Linear(2, 1), path)  # a pickle, which could run anything
    with pytest.raises(EmbedderError, match="cannot be read: UnpicklingError"):
        Head(NsfwClassifier(model_path=path), "cpu")


# Over Parquet that exists.


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_score_with_the_embedder_is_the_score_over_its_file(tmp_path, shard, dtype, monkeypatch):
    monkeypatch.setattr("embedders.output.writer.BYTES_PER_GROUP", 1)
    embedder = MeanColor(classifiers=[Brightness()])
    embedder.batch_size = 3
    path = embed(embedder, shard, tmp_path, embedding_dtype=dtype)
    assert pq.read_metadata(path).num_row_groups > 1
    assert score_file(path, tmp_path / "scores.parquet", Brightness(), "cpu") == 7
    scores = pq.read_table(tmp_path / "scores.parquet")
    assert scores.equals(pq.read_table(path, columns=["shard", "key", "brightness"]).cast(scores.schema))


@pytest.mark.slow
def test_a_file_is_scored_from_the_command_line(tmp_path, shard):
    path = embed(MeanColor(), shard, tmp_path)
    command = ("score", path, tmp_path / "scores/a.parquet", "--classifier", BRIGHTNESS, "--device", "cpu")
    (tmp_path / "s.tar").unlink()  # nobody asks for the tar
    done = run_cli(*command, "--classifier-args", '{"pred_column": "light"}')
    assert done.returncode == 0, done.stderr
    table, (embeddings, vectors, _) = pq.read_table(tmp_path / "scores/a.parquet"), read_vectors(path)
    assert table["key"].equals(embeddings["key"])
    assert np.allclose(table["light"].to_numpy(), vectors.mean(axis=1), atol=1e-6)
    assert leftovers(tmp_path / "scores") == ["a.parquet"]
    said = json.loads(run_cli("inspect", tmp_path / "scores/a.parquet").stdout)
    assert said == inspect_file(tmp_path / "scores/a.parquet")
    assert (said["rows"], said["classifier"]["class"]) == (7, BRIGHTNESS)
    assert said["classifier"]["args"] == {"pred_column": "light"}
    refused = run_cli(*command, "--classifier-args", '{"embedding_size": 768}')
    assert (refused.returncode, len(refused.stderr.strip().splitlines()[-1:])) == (1, 1)
    assert f"error: {path}: the vectors have 3 dimensions, and brightness expects 768" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_what_cannot_be_scored_is_one_clear_line(tmp_path, shard):
    path = embed(MeanColor(image_embedding_column="color"), shard, tmp_path)
    for classifier, message in [
        (
            Brightness(),
            r"are 3 \(color\), and brightness expects 'image_embedding' with .*; set embedding_column to 'color'",
        ),
        (NemoStyle("color", pred_column="key"), "there would be two columns 'key'; rename pred_column"),
        (NemoStyle("color", pred_column="shard"), "there would be two columns 'shard'; rename pred_column"),
    ]:
        with pytest.raises(EmbedderError, match=message):
            score_file(path, tmp_path / "scores.parquet", classifier, "cpu")
    with pytest.raises(ShardError, match="cannot be read"):
        score_file(shard, tmp_path / "scores.parquet", Brightness(), "cpu")
    assert leftovers(tmp_path) == ["out.parquet", "s.tar"]


@pytest.mark.parametrize(
    ("class_path", "args", "message"),
    [
        (MEAN_COLOR, {}, "is not an ImageClassifier; expected `class MeanColor(ImageClassifier)`"),
        (f"{BRIGHTNESS}s", {}, "no class 'Brightnesss'; did you mean 'Brightness'?"),
        ("none.py:Head", {}, "classifier class 'none.py:Head': there is no file 'none.py'"),
        (BRIGHTNESS, {"colour": 1}, "classifier args {'colour': 1}: got an unexpected keyword argument 'colour'"),
    ],
)
def test_a_classifier_that_cannot_be_built_is_one_clear_line(class_path, args, message):
    with pytest.raises(EmbedderError) as caught:
        build_classifier(class_path, args)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_timm_model_takes_classifiers_too(tmp_path, shard):
    embedder = TimmImageEmbedder("test_vit", pretrained=False, classifiers=[Brightness(embedding_size=64)])
    table, vectors, _ = read_vectors(embed(embedder, shard, tmp_path))
    assert np.allclose(table["brightness"].to_numpy(), vectors.mean(axis=1), atol=1e-6)
