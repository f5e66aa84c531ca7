"""What a job reads of a sample beside its image: what the configuration asks for, and nothing else."""

import pyarrow.parquet as pq
import pytest
from mean_color import MeanColor
from support.tools import make_image, make_shard, make_tar

from embedders import embed_shard
from embedders.errors import ConfigError, EmbedderError
from embedders.output.footers import describe_file


def embed(shard, tmp_path, embedder=None, **options):
    ledger = embed_shard(embedder or MeanColor(), shard, tmp_path / "s.parquet", device="cpu", **options)
    return pq.read_table(tmp_path / "s.parquet"), {failed.key: failed.kind for failed in ledger.failed}


def write(tmp_path, *sidecars):
    """Write a shard of an image with each of these sidecars."""
    members = []
    for number, sidecar in enumerate(sidecars):
        members += [
            (f"{number}.jpg", make_image(number)),
            *((f"{number}.{suffix}", sidecar[suffix]) for suffix in sidecar),
        ]
    return make_tar(tmp_path / "s.tar", members)


BAD = [
    {"json": b"[[0, 0, 9, 9]]"}, {"json": b"7"}, {"json": b""}, {"json": b"{}\n{}\n"}, {"json": b'{"a":' * 999},
    {"json": b'{"a": "' + b"x" * (1 << 20) + b'"}'}, {"txt": b"caf\xe9"}, {"txt": "text".encode("utf-16")},
]  # fmt: skip


def test_a_sidecar_that_nobody_asked_for_fails_no_image(tmp_path):
    table, failed = embed(write(tmp_path, *BAD), tmp_path)
    assert (len(table), failed) == (len(BAD), {})


def test_where_a_field_is_asked_for_only_the_samples_that_lack_it_fail(tmp_path):
    path = write(tmp_path, *BAD, {"json": {"a": 5}, "txt": b"text"})
    table, failed = embed(path, tmp_path, metadata_columns={"a": "int64"}, max_failed_fraction=1)
    assert table["key"].to_pylist() == ["6", "7", "8"]
    assert table["a"].to_pylist() == [None, None, 5]
    assert failed == dict.fromkeys("012345", "bad_metadata")
    table, failed = embed(path, tmp_path, metadata_columns=["caption"], max_failed_fraction=1)
    assert table["key"].to_pylist() == ["8"]  # without a .txt, the caption may stand in the .json


def test_short_text_members_become_columns_of_their_types(tmp_path):
    path = write(tmp_path, {"cls": b"7\n", "id": b"a"}, {"cls": b"-1", "id": b"b"}, {"id": b"c"})
    table, failed = embed(path, tmp_path, id_col="id", metadata_columns={"cls": "int64"})
    assert table.select(["id", "cls"]).to_pydict() == {"id": ["a", "b", "c"], "cls": [7, -1, None]}
    assert failed == {}
    table, failed = embed(path, tmp_path, metadata_columns={"id": "float64"}, max_failed_fraction=1)
    assert failed == dict.fromkeys("012", "bad_metadata")


def test_a_caption_beside_an_image_with_dots_in_their_names(tmp_path):
    path = make_tar(tmp_path / "s.tar", {"x.input.jpg": make_image(), "x.outputs.txt": b"a caption"})
    table, _ = embed(path, tmp_path, metadata_columns=["caption", "outputs.txt"])
    assert table.drop(["image_embedding"]).to_pylist() == [
        {"shard": "s", "key": "x", "caption": "a caption", "outputs.txt": "a caption"}
    ]


def test_a_loader_that_calls_the_default_one_gets_all_the_fields(tmp_path):
    class Own(MeanColor):
        def load_dataset_shard(self, tar_path):
            for batch, metadata in super().load_dataset_shard(tar_path):
                yield batch, [{**sample, "length": len(sample["caption"])} for sample in metadata]

    path = write(tmp_path, {"txt": b"text"}, {"txt": b"texts"})
    table, _ = embed(path, tmp_path, Own(), metadata_columns={"length": "int64"})
    assert table["length"].to_pylist() == [4, 5]


def test_the_image_is_chosen_by_its_suffix_and_the_file_says_so(tmp_path):
    members = [(f"{n}.{suffix}", make_image(n + seed)) for n in range(3) for seed, suffix in
               enumerate(["left.jpg", "right.JPG", "jpg", "png"])]  # fmt: skip
    path = make_tar(tmp_path / "s.tar", members)
    by_suffix = {}
    for seed, suffix in enumerate(["left.jpg", "Right.jpg", "jpg", "png"]):
        table, failed = embed(path, tmp_path, image_suffix=suffix)
        assert failed == {}
        by_suffix[suffix] = table["image_embedding"].to_pylist()
        assert describe_file(str(tmp_path / "s.parquet")).provenance.image_suffix == suffix.lower()
        assert by_suffix[suffix][0] == by_suffix["left.jpg"][seed] if seed < 3 else True
    assert embed(path, tmp_path, max_failed_fraction=1)[1] == dict.fromkeys("012", "no_single_image")
    assert embed(path, tmp_path, image_suffix="webp", max_failed_fraction=1)[1] == dict.fromkeys(
        "012", "no_single_image"
    )


def test_a_suffix_that_cannot_be_used_is_one_line(tmp_path):
    with pytest.raises(ConfigError, match=r"image_suffix: '\.jpg'; expected a suffix without the dot"):
        embed(make_shard(tmp_path / "s.tar", 1), tmp_path, image_suffix=".jpg")

    class Own(MeanColor):
        def load_dataset_shard(self, tar_path):
            return []

    with pytest.raises(EmbedderError, match=r"its own loader, which ignores image_suffix 'jpg'"):
        embed(make_shard(tmp_path / "s.tar", 1), tmp_path, Own(), image_suffix="jpg")
