"""`TarSamples` at the start of webdataset's own pipelines: no damage is overlooked, and every sample is counted."""

import io
import json
import os
import pickle

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import webdataset as wds
from mean_color import MeanColor
from PIL import Image
from support.tools import make_image, make_shard, make_tar

from embedders import TarSamples, embed_shard
from embedders.errors import EmbedderError, ShardError
from embedders.output.failed import FailureKind
from embedders.output.parquet import read_ledger


def to_pixels(image):
    return torch.from_numpy(np.array(image.convert("RGB").resize((224, 224)))).permute(2, 0, 1).float() / 255


class Pipeline(MeanColor):
    """Loads by webdataset's stages behind the strict source."""

    handler = staticmethod(wds.reraise_exception)

    def load_dataset_shard(self, tar_path):
        return wds.DataPipeline(
            TarSamples(tar_path),
            wds.decode("pil", only=["jpg", "json"], handler=self.handler),
            wds.map(lambda sample: (to_pixels(sample["jpg"]), {"__key__": sample["__key__"], **sample["json"]})),
            wds.batched(4),
        )


class Generator(Pipeline):
    """Makes the pipeline when it is first drawn from."""

    def load_dataset_shard(self, tar_path):
        yield from super().load_dataset_shard(tar_path)


class Lenient(Pipeline):
    """Leaves out what does not decode."""

    handler = staticmethod(wds.warn_and_continue)


class Worker(MeanColor):
    """Has the same stages run in another process."""

    def load_dataset_shard(self, tar_path):
        pipeline = Pipeline.load_dataset_shard(self, tar_path)
        return wds.WebLoader(pipeline, batch_size=None, num_workers=1, multiprocessing_context="fork")

    handler = Pipeline.handler


class Plain(MeanColor):
    """Reads by webdataset alone, as a class of NeMo Curator did, and knows a sample by its id only."""

    def load_dataset_shard(self, tar_path):
        samples = wds.WebDataset(tar_path, shardshuffle=False).to_tuple("jpg", "json")
        decoded = samples.map_tuple(lambda jpg: to_pixels(Image.open(io.BytesIO(jpg))), json.loads)
        yield from decoded.batched(3)


STRICT = [MeanColor, Pipeline, Generator]


@pytest.fixture
def embed(tmp_path):
    def run(embedder, path, **options):
        output, ledger = tmp_path / "o.parquet", tmp_path / "l.parquet"
        embed_shard(embedder, path, output, ledger_path=ledger, device="cpu", max_failed_fraction=1, **options)
        keys = pq.read_table(output, columns=["key"])["key"].to_pylist()
        return keys, read_ledger(str(ledger))

    return run


def cut(path):
    """Cut a tar in its middle."""
    os.truncate(path, os.path.getsize(path) // 2)
    return path


def name_members(count):
    return [
        (f"{n}.{suffix}", content)
        for n in range(count)
        for suffix, content in (("jpg", make_image(n)), ("json", {"n": n}))
    ]


def make_faulty(path):
    """A whole tar with a sample of every kind that its headers show."""
    members = name_members(5)
    members += [("LICENSE", b"text"), ("twice.jpg", make_image()), ("twice.JPG", make_image()), members[0]]
    return make_tar(path, members)


def test_samples_equal_webdatasets_own(tmp_path):
    members = {"d/1.JPG": b"x", "d/1.left.txt": b"y", "d/1.pyd": b"no pickle", "2.cls": b"", "._2.cls": b"hidden"}
    path = make_tar(tmp_path / "s.tar", members)
    theirs = [dict(sample) for sample in wds.WebDataset(path, shardshuffle=False)]
    for sample in theirs:
        sample.pop("__local_path__", None)
    assert [list(sample.items()) for sample in TarSamples(path)] == [list(sample.items()) for sample in theirs]
    assert len(theirs) == 2


@pytest.mark.parametrize("loader", [Pipeline, Generator, Worker])
def test_a_pipeline_of_webdatasets_stages_embeds_what_the_default_loader_does(tmp_path, embed, loader):
    path = make_shard(tmp_path / "s.tar", 10)
    keys, failed = embed(loader(), path, id_col="id", metadata_columns={"number": "int64"})
    assert (keys, failed) == ([f"{number:05}" for number in range(10)], [])
    assert pq.read_table(tmp_path / "o.parquet")["number"].to_pylist() == list(range(10))


def test_samples_that_cannot_be_used_are_rows_of_the_ledger_as_with_the_default_loader(tmp_path, embed):
    path = make_faulty(tmp_path / "s.tar")
    default, *ours = [embed(loader(), path) for loader in STRICT]
    assert ours == [default, default]
    assert {failed.kind for failed in default[1]} == {"bad_name", "repeated_member", "repeated_key"}
    assert all(failed.member and failed.offset is not None for failed in default[1])


@pytest.mark.parametrize("loader", STRICT)
def test_damage_is_an_error_and_where_it_is_accepted_named_with_its_neighbours(tmp_path, embed, loader):
    path = cut(make_tar(tmp_path / "s.tar", name_members(30)))
    with pytest.raises(ShardError, match=r"damaged at byte \d+"):
        embed(loader(), path)
    keys, failed = embed(loader(), path, accept_damaged_shards=True)
    assert keys == [str(number) for number in range(len(keys))] and 0 < len(keys) < 30
    assert {sample.kind for sample in failed} == {FailureKind.DAMAGED_TAR}
    assert [sample.key for sample in failed if sample.key.startswith("(damage at byte ")]


def test_what_a_later_stage_leaves_out_is_named_as_not_loaded(tmp_path, embed):
    path = make_tar(tmp_path / "s.tar", [*name_members(6), ("x.jpg", b"no image"), ("x.json", {})])
    with pytest.raises(EmbedderError, match="failed: DecodingError: UnidentifiedImageError: cannot"):
        embed(Pipeline(), path)
    with pytest.warns(UserWarning):
        keys, failed = embed(Lenient(), path)
    assert keys == [str(number) for number in range(6)]
    assert [(sample.key, sample.kind) for sample in failed] == [("x", "not_loaded")]


def test_in_a_worker_process_all_is_counted_too(tmp_path, embed):
    path = make_faulty(tmp_path / "s.tar")
    keys, failed = embed(Worker(), path)
    assert keys == [str(number) for number in range(5)]
    assert {sample.kind for sample in failed} == {"not_loaded"} and len(failed) == 3
    # as a worker gets it that is not forked
    assert [*pickle.loads(pickle.dumps(TarSamples(path)))] == [*TarSamples(path)]


def test_by_itself_it_reads_strictly_and_names_what_it_leaves_out_in_the_log(tmp_path, caplog):
    path = make_faulty(tmp_path / "s.tar")
    assert [sample["__key__"] for sample in TarSamples(path)] == [str(number) for number in range(5)]
    assert "'LICENSE': bad_name" in caplog.text
    with pytest.raises(ShardError, match="damaged at byte"):
        list(TarSamples(cut(path)))


def test_without_the_source_losses_are_noticed_all_the_same(tmp_path, embed):
    path = make_tar(tmp_path / "s.tar", [*name_members(4), ("LICENSE", b"text")])
    keys, failed = embed(Plain(), path, id_col="n")
    assert keys == [str(number) for number in range(4)]
    assert [(sample.key, sample.kind) for sample in failed] == [("LICENSE", "not_loaded")]
    with pytest.raises(ShardError, match="damaged at byte"):
        embed(Plain(), cut(path), id_col="n")
