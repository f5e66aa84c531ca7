"""Several vectors per image and int8, from the model to the commands that read them."""

import json
import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from brightness import Brightness
from click.testing import CliRunner
from support.tools import leftovers, make_image, make_shard, make_tar

from embedders import ImageEmbedder, embed_shard
from embedders.cli import main
from embedders.errors import EmbedderError
from embedders.job.locate import build_embedder
from embedders.job.score import score_file
from embedders.output.parquet import read_ledger, read_vectors

EMBEDDER = """
import torch
from embedders import ImageEmbedder

class Rows(ImageEmbedder):
    "The mean colour of each of four stripes; in a mapping also that of the whole image."
    def __init__(self, both=False, bad=None, room=99, shift=0.0):
        super().__init__("rows")
        self.both, self.bad, self.room, self.shift = both, bad, room, shift

    def load_embedding_model(self, device):
        return self.embed

    def embed(self, batch):
        if len(batch) > self.room:
            raise torch.cuda.OutOfMemoryError("no room")
        stripes = torch.stack([part.mean(dim=(2, 3)) for part in batch.chunk(4, dim=2)], dim=1) + self.shift
        if self.bad is not None:
            stripes[1, 2, 1] = self.bad
        return {"stripes": stripes, "whole": batch.mean(dim=(2, 3))} if self.both else stripes
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    (tmp_path / "rows.py").write_text(EMBEDDER)
    make_shard(tmp_path / "s.tar", 10)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    return tmp_path


def build(**args):
    return build_embedder("rows.py:Rows", args)


def embed(device="cpu", dtype="float32", shard="s.tar", **args):
    ledger = embed_shard(
        build(**args), shard, "o.parquet", ledger_path="o.ledger", device=device, embedding_dtype=dtype
    )
    table, vectors, described = read_vectors("o.parquet")
    return table, vectors, described, ledger


def compute():
    """The stripes of the shard's images, as the model gives them."""
    embedder = build()
    images = [make_image(number) for number in range(10)]
    return embedder.embed(torch.stack([embedder.decode(image) for image in images])).numpy()


def score_by(column):
    classifier = Brightness()
    classifier.embedding_column = column
    return classifier


def call(*arguments):
    return CliRunner().invoke(main, [*map(str, arguments)])


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_each_part_of_an_image_has_its_vector(dtype):
    table, vectors, described, _ = embed(dtype=dtype)
    assert described.shapes == {"image_embedding": (4, 3)}
    expected = compute()
    np.testing.assert_allclose(vectors.reshape(10, 4, 3), expected, atol=1e-3 if dtype == "float16" else 0.5 / 127)
    if dtype == "int8":
        numbers, scales = (table[name].to_pylist() for name in ("image_embedding", "image_embedding_scale"))
        read = np.array(numbers) * np.array(scales)[..., None]
        assert np.abs(read - expected).max() <= np.array(scales).max() / 2 + 1e-6
    for name in ("verify", "inspect"):
        done = call(name, "o.parquet", *(["--device", "cpu"] if name == "verify" else []))
        assert done.exit_code == 0, done.output
    said = json.loads(done.output)
    assert (said["dimension"], said["parts"], said["embedding_dtype"]) == (3, 4, dtype)


def test_a_mapping_may_have_columns_of_both_kinds():
    table, _, described, _ = embed(both=True)
    assert described.shapes == {"stripes": (4, 3), "whole": (3,)}
    np.testing.assert_allclose(np.array(table["stripes"].to_pylist()), compute(), atol=1e-6)
    np.testing.assert_allclose(np.array(table["whole"].to_pylist()), compute().mean(axis=1), atol=1e-6)


def test_a_column_is_found_by_its_name_though_the_mapping_has_another_order_in_each_batch():
    class Turning(ImageEmbedder):
        batch_size = 4

        def load_embedding_model(self, device):
            orders = iter(["ab", "ba"] * 10)
            return lambda batch: {name: batch.mean(dim=(2, 3)) + (name == "b") for name in next(orders)}

    embed_shard(Turning(), "s.tar", "o.parquet", device="cpu")
    table, _, described = read_vectors("o.parquet")
    assert list(described.shapes) == ["a", "b"]
    np.testing.assert_allclose(np.array(table["b"].to_pylist()) - np.array(table["a"].to_pylist()), 1, atol=1e-5)


def test_a_number_that_is_not_finite_in_any_part_fails_its_image_only():
    for bad, dtype, reason in [(float("nan"), "int8", "contains NaN"), (1e5, "float16", "too large for float16")]:
        _, vectors, _, _ = embed(bad=bad, dtype=dtype)
        (failed,) = read_ledger("o.ledger")
        assert (failed.key, failed.kind) == ("00001", "bad_vector")
        assert reason in failed.message
        assert len(vectors) == 9


def test_a_batch_without_room_is_halved():
    expected = embed()[1]
    for both in (False, True):
        assert np.array_equal(embed("cuda", room=2, both=both)[1][:, :12], expected)
        assert read_vectors("o.parquet")[2].provenance.max_batch_size == 2


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_an_empty_shard_has_the_same_columns(dtype):
    for both in (False, True):
        full = embed(both=both, dtype=dtype)[0].schema
        make_tar("empty.tar", {})
        assert embed(both=both, dtype=dtype, shard="empty.tar")[0].schema.equals(full)


def test_parts_that_differ_or_that_are_none_are_refused():
    class Growing(ImageEmbedder):
        batch_size = 6

        def load_embedding_model(self, device):
            return lambda batch: torch.ones(len(batch), len(batch), 3)

    with pytest.raises(EmbedderError, match="returned dimension 4 x 3, but 6 x 3 before"):
        embed_shard(Growing(), "s.tar", "o.parquet", device="cpu")
    Growing.load_embedding_model = lambda self, device: lambda batch: torch.ones(len(batch), 0, 3)
    with pytest.raises(
        EmbedderError, match=r"shape \(6, 0, 3\); expected \(images, dimension\): one vector per image"
    ):
        embed_shard(Growing(), "s.tar", "o.parquet", device="cpu")


def test_verify_names_the_part_that_has_changed():
    embed(both=True, dtype="int8")
    text = EMBEDDER.replace("+ self.shift", "* torch.tensor([1, 1, -1, 1]).view(1, 4, 1)")
    Path("rows.py").write_text(text)
    done = call("verify", "o.parquet", "--device", "cpu", "--sample", "10")
    assert done.exit_code == 1
    # By the rounding of int8, the cosine of some images is not exactly -1.
    assert len(re.findall(r"', stripes, part 2: cosine -(?:1\.0000|0\.9999)", done.output)) == 10
    assert "whole" not in done.output


@pytest.mark.parametrize("factor", [1.02, 0.98])
def test_verify_allows_the_rounding_of_int8_and_no_more(factor):
    embed(dtype="int8")
    assert call("verify", "o.parquet", "--device", "cpu", "--sample", "10").exit_code == 0
    text = EMBEDDER.replace("return {", f"stripes = stripes * torch.tensor([1, 1, {factor}])\n        return {{")
    Path("rows.py").write_text(text)
    done = call("verify", "o.parquet", "--device", "cpu", "--sample", "10")
    assert done.exit_code == 1, done.output


def test_check_says_the_shape_and_counts_all_the_bytes():
    options = ("--embedder-args", '{"both": true}', "--shard", "s.tar", "--device", "cpu", "--json")
    done = call("check", "rows.py:Rows", *options)
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    assert any("4 x 3 (stripes), 3 (whole) dimensions" in found["message"] for found in said["findings"])
    assert said["estimate"]["output_bytes"] == pytest.approx(10 * 15 * 4, rel=0.2)


def test_a_classifier_takes_one_vector_per_image_or_one_line_says_so():
    embed()
    with pytest.raises(EmbedderError, match=r"are 4 x 3 \(image_embedding\), and brightness expects .*; no column"):
        score_file("o.parquet", "scores.parquet", Brightness(), "cpu")
    embed(both=True)
    with pytest.raises(EmbedderError, match="set embedding_column to 'whole'"):
        score_file("o.parquet", "scores.parquet", score_by("stripes"), "cpu")
    embedder = build(both=True)
    embedder.classifiers = [score_by("stripes")]
    with pytest.raises(EmbedderError, match="gives several vectors per image in the column 'stripes', 4 x 3"):
        embed_shard(embedder, "s.tar", "p.parquet", device="cpu")
    assert leftovers(".") == ["o.ledger", "o.parquet", "rows.py", "s.tar"]


def test_scores_of_int8_are_those_of_the_stored_vectors():
    embedder = build(both=True)
    embedder.classifiers = [score_by("whole")]
    embed_shard(embedder, "s.tar", "o.parquet", device="cpu", embedding_dtype="int8")
    assert score_file("o.parquet", "scores.parquet", score_by("whole"), "cpu") == 10
    scores = pq.read_table("scores.parquet")["brightness"]
    assert scores.equals(pq.read_table("o.parquet")["brightness"])
