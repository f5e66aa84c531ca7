"""One sample does not take its shard with it: vectors and metadata that cannot be stored are rows of the ledger."""

import json
import re
import tarfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from mean_color import MeanColor
from PIL import Image
from support.tools import encode, make_image, make_shard, make_tar, run_cli

from embedders import ImageEmbedder, embed_shard
from embedders.errors import EmbedderError, ShardError
from embedders.output.parquet import read_ledger, read_vectors

BLACK = encode(Image.new("RGB", (40, 30)), "JPEG")


class Norm(MeanColor):
    """Divides by the norm: 0 / 0 for a black image."""

    batch_size = 4

    def load_embedding_model(self, device):
        forward = super().load_embedding_model(device)
        return lambda batch: (vectors := forward(batch)) / vectors.norm(dim=1, keepdim=True)


class Given(ImageEmbedder):
    """Has a loader of its own, which yields what the test gives."""

    def __init__(self, *batches):
        super().__init__(model_name="given")
        self.batches = batches

    def load_dataset_shard(self, tar_path):
        yield from self.batches

    def load_embedding_model(self, device):
        return lambda batch: batch


class NemoStyle(Norm):
    """Reads the tar by itself, and knows a sample by its id only."""

    def load_dataset_shard(self, tar_path):
        with tarfile.open(tar_path) as archive:
            files = {member.name: archive.extractfile(member).read() for member in archive}
        for name, content in files.items():
            if name.endswith(".jpg"):
                yield self.decode(content)[None], [json.loads(files[name.replace(".jpg", ".json")])]


class Drawing(Norm):
    """Draws from the default loader."""

    def load_dataset_shard(self, tar_path):
        yield from super().load_dataset_shard(tar_path)


LOADERS = [Norm, NemoStyle, Drawing]


@pytest.fixture
def embed(tmp_path):
    def run(embedder, path, **options):
        output, ledger = tmp_path / "o.parquet", tmp_path / "l.parquet"
        embed_shard(embedder, path, output, ledger_path=ledger, device="cpu", **options)
        table, vectors, _ = read_vectors(str(output))
        assert len(table) == len(vectors) and np.isfinite(vectors).all()
        return table, [(failed.key, str(failed.kind), failed.message) for failed in read_ledger(str(ledger))]

    return run


def make_shard_of(path, metadata, black=()):
    """A shard of one picture for each dict of metadata; `black` are the numbers of those without any colour."""
    members = {}
    for number, fields in enumerate(metadata):
        picture = BLACK if number in black else make_image(number)
        members |= {f"{number}.jpg": picture, f"{number}.json": fields}
    return make_tar(path, members)


@pytest.mark.parametrize("loader", LOADERS)
def test_a_vector_of_nan_fails_its_sample_alone(tmp_path, embed, loader):
    path = make_shard_of(tmp_path / "s.tar", [{"id": n} for n in range(12)], black=[5])
    table, failed = embed(loader(), path, id_col="id")
    assert table["key"].to_pylist() == [str(n) for n in range(12) if n != 5]
    assert failed == [("5", "bad_vector", "its vector contains NaN; expected finite numbers")]


def test_many_vectors_of_nan_fail_the_shard_in_one_line_with_advice_that_fits(tmp_path, embed):
    path = make_shard_of(tmp_path / "s.tar", [{}] * 12, black=range(3))
    with pytest.raises(
        ShardError, match=r"3 of 12 samples failed \(3 bad_vector\), such as '0': its vector contains NaN"
    ) as error:
        embed(Norm(), path)
    assert "check the weights" in str(error.value) and "autocast" not in str(error.value)
    assert "\n" not in str(error.value)
    embedder = Norm()
    embedder.autocast = True
    with pytest.raises(ShardError, match="set autocast: false"):
        embed(embedder, path)


def test_a_sample_with_a_bad_vector_can_be_retried(tmp_path, embed):
    path = make_shard_of(tmp_path / "s.tar", [{}] * 12, black=[5])
    embed(Norm(), path)
    only = {failed.key for failed in read_ledger(str(tmp_path / "l.parquet"))}
    table, failed = embed(MeanColor(), path, only=only)
    assert (table["key"].to_pylist(), failed) == (["5"], [])


@pytest.mark.parametrize(
    ("vector", "dtype", "message"),
    [
        ([1, torch.inf], "float32", "its vector contains infinity; expected finite numbers"),
        (
            [1, -70_000],
            "float16",
            "its vector has numbers too large for float16; .*; set embedding_dtype: float32",
        ),
    ],
)
def test_infinity_and_what_the_stored_type_cannot_hold(tmp_path, embed, vector, dtype, message):
    path = make_tar(tmp_path / "s.tar", {"a.jpg": b"", "b.jpg": b""})
    embedder = Given((torch.tensor([[1.0, 2.0], vector]), [{"__key__": "a"}, {"__key__": "b"}]))
    table, failed = embed(embedder, path, embedding_dtype=dtype, max_failed_fraction=0.5)
    assert (table["key"].to_pylist(), failed[0][:2]) == (["a"], ("b", "bad_vector"))
    assert re.fullmatch(message, failed[0][2])


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("fields", [{"other": 1}, {"id": None}])
def test_a_sample_without_the_id_fails_alone(tmp_path, embed, loader, fields):
    metadata = [{"id": f"id-{n}"} for n in range(12)]
    metadata[7] = fields
    table, failed = embed(loader(), make_shard_of(tmp_path / "s.tar", metadata), id_col="id")
    assert table["id"].to_pylist() == [f"id-{n}" for n in range(12) if n != 7]
    ((key, kind, message),) = failed
    assert (key, kind) == ("7", "bad_metadata")
    assert message.startswith("has no 'id' (id_col), or null there")


def test_an_id_that_no_sample_has_fails_the_shard_and_names_its_fields_and_runs_no_model(tmp_path, embed):
    class Untouched(MeanColor):
        def load_embedding_model(self, device):
            def forward(batch):
                raise AssertionError("there is nothing to embed")

            return forward

    with pytest.raises(
        ShardError, match=r"as '00000': has no 'url' .*; its fields are: id, number.*another id_col"
    ) as error:
        embed(Untouched(), make_shard(tmp_path / "s.tar", 7), id_col="url")
    assert "7 of 7 samples failed (7 bad_metadata)" in str(error.value)


def test_a_loader_whose_metadata_has_neither_key_nor_id_is_told_so(tmp_path, embed):
    path = make_tar(tmp_path / "s.tar", {f"{key}.jpg": b"" for key in "abc"})
    embedder = Given((torch.ones(3, 2), [{"name": key} for key in "abc"]))
    with pytest.raises(ShardError, match=r"3 not_loaded.*yielded 3 images whose metadata has no '__key__'"):
        embed(embedder, path)


@pytest.mark.parametrize("loader", LOADERS)
def test_a_value_of_a_wrong_type_fails_its_sample_alone_and_whole_floats_are_integers(tmp_path, embed, loader):
    values = [512.0, 1, None, "12", 1.5, *range(5, 20)]
    path = make_shard_of(tmp_path / "s.tar", [{"id": n, "size": value} for n, value in enumerate(values)])
    table, failed = embed(loader(), path, id_col="id", metadata_columns={"size": "int64"})
    assert table["size"].to_pylist() == [512, 1, None, *range(5, 20)]
    assert failed == [
        ("3", "bad_metadata", "size is '12'; expected int64"),
        ("4", "bad_metadata", "size is 1.5; expected int64"),
    ]


def test_a_bad_row_whose_key_the_tar_does_not_hold_is_the_loaders_fault(tmp_path, embed):
    path = make_tar(tmp_path / "s.tar", {"a.jpg": b""})
    embedder = Given((torch.full((1, 2), torch.nan), [{"__key__": "x"}]))
    with pytest.raises(EmbedderError, match="a sample 'x' that is not in the tar"):
        embed(embedder, path)


def test_rows_that_fail_for_several_reasons_are_counted_once(tmp_path, embed):
    metadata = [{"id": n, "size": n} for n in range(12)]
    metadata[1] = {"size": "bad"}
    metadata[2]["size"] = "bad"
    table, failed = embed(
        Norm(), make_shard_of(tmp_path / "s.tar", metadata, black=[1, 2, 3]), id_col="id",
        metadata_columns={"size": "int64"}, max_failed_fraction=0.5,
    )  # fmt: skip
    assert sorted(failed)[0][:2] == ("1", "bad_metadata")
    assert [(key, kind) for key, kind, _ in sorted(failed)] == [
        ("1", "bad_metadata"), ("2", "bad_metadata"), ("3", "bad_vector"),
    ]  # fmt: skip
    assert len(table) == 9


# Kinds are kept where a loader of one's own draws from the default one.


def test_kinds_are_kept_where_a_users_loader_draws_from_the_default_one(tmp_path, embed):
    class Picky(Drawing):
        def preprocess(self, image):
            if image.width == 41:
                raise ValueError("41")
            return super().preprocess(image)

    class Eager(Picky):
        """Asks for the batches at once, as code that is no generator does."""

        def load_dataset_shard(self, tar_path):
            return list(ImageEmbedder.load_dataset_shard(self, tar_path))

    members = [(f"{n}.jpg", make_image(n)) for n in range(20)]
    members += [
        ("cut.jpg", members[0][1][:300]),
        ("odd.jpg", make_image(size=(41, 30))),
        ("none.json", {}),
        ("X", b""),
    ]
    path = make_tar(tmp_path / "s.tar", members)
    for loader in (Picky, Eager):
        table, failed = embed(loader(), path, max_failed_fraction=0.2)
        assert len(table) == 20
        assert {key: kind for key, kind, _ in failed} == {
            "cut": "undecodable", "odd": "preprocess_error", "none": "no_single_image", "X": "bad_name",
        }  # fmt: skip
    cut = tmp_path / "cut.tar"
    cut.write_bytes(Path(path).read_bytes()[:-9000])
    with pytest.raises(ShardError, match="damaged"):
        embed(Picky(), cut)


# Columns without a value.


def test_a_column_that_is_null_throughout_is_said_once(tmp_path, embed, caplog):
    path = make_shard_of(tmp_path / "s.tar", [{"a": n if n else None} for n in range(5)])
    for _ in range(2):
        embed(MeanColor(), path, metadata_columns=["a", "captoin", "b"])
    said = [record.message for record in caplog.records if "null in every row" in record.message]
    assert said == [f"{path}: null in every row: 'captoin', 'b'; check the names in metadata_columns"] * 2
    footer = json.loads(pq.read_metadata(tmp_path / "o.parquet").metadata[b"tarquet"])
    assert footer["null_columns"] == ["captoin", "b"]
    embed(MeanColor(), make_tar(tmp_path / "empty.tar", {}), metadata_columns=["a"])
    assert json.loads(pq.read_metadata(tmp_path / "o.parquet").metadata[b"tarquet"])["null_columns"] == []


@pytest.mark.slow
def test_on_the_command_line_a_retry_embeds_what_had_a_bad_vector(tmp_path):
    path = make_shard_of(tmp_path / "s.tar", [{}] * 12, black=[5])
    source = tmp_path / "norm.py"
    source.write_text(
        "from mean_color import MeanColor\n\nclass Norm(MeanColor):\n    eps = 0.0\n"
        "    def load_embedding_model(self, device):\n        forward = super().load_embedding_model(device)\n"
        "        return lambda batch: (v := forward(batch)) / (v.norm(dim=1, keepdim=True) + self.eps)\n"
    )
    options = ("--embedder", f"{source}:Norm", "--device", "cpu")
    first = run_cli("embed", path, tmp_path / "o.parquet", "--ledger", tmp_path / "l.parquet", *options)
    assert (first.returncode, "1 failed" in first.stderr) == (0, True), first.stderr
    source.write_text(source.read_text().replace("eps = 0.0", "eps = 1e-6"))
    only = ("--only", tmp_path / "l.parquet", "--ledger", tmp_path / "l2.parquet")
    again = run_cli("embed", path, tmp_path / "o2.parquet", *only, *options)
    assert again.returncode == 0, again.stderr
    assert pq.read_table(tmp_path / "o2.parquet")["key"].to_pylist() == ["5"]
