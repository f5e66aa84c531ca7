"""The vectors of captions beside those of images, against open_clip used directly; and metadata for any `decode`."""

import json
import os
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from click.testing import CliRunner
from support.encoders import make_open_clip, make_pictures, measure_cosines, open_pictures
from support.tools import make_image, make_tar

from embedders import ImageEmbedder, OpenClipImageEmbedder, embed_shard
from embedders.cli import main
from embedders.errors import EmbedderError
from embedders.job.locate import build_embedder
from embedders.output.parquet import read_ledger, read_vectors
from embedders.output.vectors import split_columns

PICTURES = make_pictures()
CAPTIONS = [f"picture number {number}, a photograph of {word}" for number, word in enumerate("abcdefghijkl")]
CLIP = "embedders:OpenClipImageEmbedder"


@pytest.fixture(autouse=True)
def model(tmp_path_factory, monkeypatch):
    """The name of a tiny model, in a folder that tests work in."""
    folder = tmp_path_factory.mktemp("captions")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", os.environ.get("CUDA_VISIBLE_DEVICES", ""))
    make_open_clip(folder / "clip", vocab_size=49408)
    return "local-dir:clip"


def make_captioned(path, captions=CAPTIONS, suffix="txt"):
    """Write a shard of pictures with a caption each; without one where it is `None`."""
    members = {}
    for (name, picture), caption in zip(PICTURES.items(), captions, strict=True):
        members[name] = picture
        key = name.partition(".")[0]
        if caption is not None:
            members[f"{key}.{suffix}"] = {"title": caption} if suffix == "json" else caption.encode()
    make_tar(path, members)


def embed(shard, args, **options):
    embedder = build_embedder(CLIP, {"batch_size": 5, "with_text": True} | args)
    embed_shard(embedder, shard, "o.parquet", ledger_path="o.ledger", device="cpu", **options)
    table, vectors, described = read_vectors("o.parquet")
    return table, split_columns(vectors, described.shapes)


def embed_directly(name):
    model, preprocess = open_clip.create_model_from_pretrained(name)
    with torch.inference_mode():
        pixels = torch.stack([preprocess(picture) for picture in open_pictures(PICTURES)])
        texts = model.eval().encode_text(open_clip.get_tokenizer(name)(CAPTIONS), normalize=True)
        return model.encode_image(pixels, normalize=True).numpy(), texts.numpy()


@pytest.mark.parametrize(
    ("suffix", "args"), [("txt", {}), ("json", {"text_field": "title", "text_embedding_column": "title"})]
)
def test_both_vectors_are_those_of_open_clip_used_directly(model, suffix, args):
    make_captioned("s.tar", suffix=suffix)
    table, found = embed("s.tar", {"model_name": model} | args)
    assert table["key"].to_pylist() == [name.partition(".")[0] for name in PICTURES]
    assert list(found) == ["image_embedding", args.get("text_embedding_column", "text_embedding")]
    for vectors, expected in zip(found.values(), embed_directly(model), strict=True):
        assert measure_cosines(vectors, expected).min() >= 0.999
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(list(found.values())[1], embed_directly(model)[1], atol=1e-5)
    alone = OpenClipImageEmbedder(model)
    pixels = torch.stack([alone.decode(picture) for picture in PICTURES.values()])
    np.testing.assert_allclose(found["image_embedding"], alone.load_embedding_model("cpu")(pixels), atol=1e-6)


def test_a_sample_without_a_caption_fails_with_a_line_and_the_others_are_embedded(model):
    make_captioned("s.tar", [None, " \n", *CAPTIONS[2:]])
    table, _ = embed("s.tar", {"model_name": model}, max_failed_fraction=0.5)
    assert len(table) == len(PICTURES) - 2
    missing, empty = read_ledger("o.ledger")
    assert (missing.key, missing.kind, empty.kind) == ("0", "bad_metadata", "bad_metadata")
    assert missing.message.startswith("its 'caption' (text_field) is none; expected a text, in its .txt or .json")
    assert empty.message.startswith("its 'caption' (text_field) is an empty one")


def test_the_commands_know_the_captions(model):
    make_captioned("s.tar", [None, *CAPTIONS[1:]])
    embed("s.tar", {"model_name": model}, metadata_columns=["caption"])
    verified = CliRunner().invoke(main, ["verify", "o.parquet", "--device", "cpu"])
    assert verified.exit_code == 0, verified.output
    args = json.dumps({"model_name": model, "with_text": True})
    checked = CliRunner().invoke(
        main, ["check", CLIP, "--embedder-args", args, "--shard", "s.tar", "--device", "cpu", "--json"]
    )
    wrong = [found["message"] for found in json.loads(checked.stdout)["findings"] if found["is_wrong"]]
    assert len(wrong) == 1
    assert "1 of the first 12 samples fail, bad_metadata, for example '0': its 'caption'" in wrong[0]


def test_an_empty_shard_has_the_same_columns(model):
    make_captioned("s.tar")
    make_tar("empty.tar", {})
    full = embed("s.tar", {"model_name": model}, embedding_dtype="int8")[0].schema
    assert embed("empty.tar", {"model_name": model}, embedding_dtype="int8")[0].schema.equals(full)


def test_one_image_whose_pixels_are_an_odd_number_of_bytes(model):
    settings = json.loads(Path("clip/open_clip_config.json").read_text())
    settings["model_cfg"]["vision_cfg"]["image_size"] = 65  # of as many patches as 64
    Path("clip/open_clip_config.json").write_text(json.dumps(settings))
    make_captioned("s.tar", [CAPTIONS[0]] + [None] * 11)
    table, found = embed("s.tar", {"model_name": model}, max_failed_fraction=1)
    assert table["key"].to_pylist() == ["0"]
    np.testing.assert_allclose(found["text_embedding"], embed_directly(model)[1][:1], atol=1e-5)


def test_several_embedders_may_have_captions_and_each_column_its_own_name(model):
    make_captioned("s.tar")
    clip = {"class": CLIP, "args": {"model_name": model, "with_text": True}}
    other = {"class": CLIP, "args": {"model_name": model, "image_embedding_column": "other"}}
    several = build_embedder("embedders:SeveralEmbedders", {"embedders": [clip, other], "batch_size": 5})
    embed_shard(several, "s.tar", "p.parquet", device="cpu")
    _, vectors, described = read_vectors("p.parquet")
    found = split_columns(vectors, described.shapes)
    assert list(found) == ["image_embedding", "text_embedding", "other"]
    for column, expected in embed("s.tar", {"model_name": model})[1].items():
        np.testing.assert_allclose(found[column], expected, atol=1e-6)
    np.testing.assert_allclose(found["other"], found["image_embedding"], atol=1e-6)
    other["args"]["with_text"] = True
    several = build_embedder("embedders:SeveralEmbedders", {"embedders": [clip, other]})
    with pytest.raises(
        EmbedderError, match=r"two of them write the column 'text_embedding'; set .*text_embedding_col"
    ):
        embed_shard(several, "s.tar", "p.parquet", device="cpu")


def test_what_cannot_be_is_refused_in_a_line(model):
    with pytest.raises(EmbedderError, match="text_embedding_column 'image_embedding': that is the column of the im"):
        OpenClipImageEmbedder(model, with_text=True, text_embedding_column="image_embedding")
    settings = json.loads(Path("clip/open_clip_config.json").read_text())
    settings["model_cfg"]["text_cfg"]["hf_tokenizer_name"] = "me/none"
    Path("clip/open_clip_config.json").write_text(json.dumps(settings))
    with pytest.raises(
        EmbedderError, match="with_text: the tokenizer of 'local-dir:clip' cannot be loaded: "
    ) as caught:
        OpenClipImageEmbedder(model, with_text=True)
    assert "\n" not in str(caught.value)


class Labelled(ImageEmbedder):
    """A class of a user whose `decode` asks for a field of the metadata."""

    metadata_fields = ("label",)

    def decode(self, encoded, metadata):
        return torch.full((3,), float(metadata["label"])) + len(metadata["__key__"])

    def load_embedding_model(self, device):
        return lambda batch: batch


def test_any_class_may_ask_for_metadata():
    members = {}
    for number in range(5):
        members |= {f"{number}.jpg": make_image(number), f"{number}.json": {"label": number, "more": 1}}
    make_tar("s.tar", members)
    embed_shard(Labelled(), "s.tar", "o.parquet", device="cpu")
    table, vectors, _ = read_vectors("o.parquet")
    assert table.column_names == ["shard", "key", "image_embedding"]
    assert vectors[:, 0].tolist() == [1, 2, 3, 4, 5]
