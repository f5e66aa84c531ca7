"""An embedder of each wrong kind, and what the check says of it. The command as a whole: test_check.py."""

import pytest
import torch
from mean_color import MeanColor
from tools import make_shard

from embedders import ImageEmbedder
from embedders.contract import check_embedder


@pytest.fixture(scope="module")
def shard(tmp_path_factory):
    return make_shard(tmp_path_factory.mktemp("data") / "s.tar", 6)


def find_wrong(embedder, shard, **options):
    return [str(finding) for finding in check_embedder(embedder, shard, **options) if finding.is_wrong]


def embedder_of(forward, **methods):
    """An embedder with this function as its model."""
    methods = {"load_embedding_model": lambda self, device: forward, **methods}
    return type("Tried", (ImageEmbedder,), methods)()


def mean(batch):
    return batch.mean(dim=(2, 3))


def load_plainly(self, tar_path):
    yield from MeanColor().load_dataset_shard(tar_path)


def load_with_names(self, tar_path):
    for batch, metadata in MeanColor().load_dataset_shard(tar_path):
        yield batch, [{"name": sample["__key__"]} for sample in metadata]


def load_too_few(self, tar_path):
    for batch, metadata in MeanColor().load_dataset_shard(tar_path):
        yield batch, metadata[1:]


def load_flipped(self, tar_path):
    for batch, metadata in MeanColor().load_dataset_shard(tar_path):
        yield batch + torch.rand(1), metadata


def load_nothing(self, tar_path):
    yield from ()


def load_singly(self, tar_path):
    for batch, metadata in MeanColor().load_dataset_shard(tar_path):
        yield from zip(batch, metadata, strict=True)


class Training(torch.nn.Module):
    def forward(self, batch):
        return mean(batch)


class Wrapped:
    """A callable that holds a module in training mode."""

    def __init__(self):
        self.module = Training()

    def __call__(self, batch):
        return self.module(batch)


def raise_on_cpu(batch):
    raise RuntimeError("expected a CUDA tensor")


WRONG = {
    "one row for all": (embedder_of(lambda batch: mean(batch)[0]), "expected (6, dimension)"),
    "a row too few": (embedder_of(lambda batch: mean(batch)[1:]), "shape (5, 3); expected (6, dimension)"),
    "not finite": (embedder_of(lambda batch: mean(batch) / 0), "NaN"),
    "integers": (embedder_of(lambda batch: (mean(batch) * 255).int()), "torch.int32; expected floats"),
    "one vector": (embedder_of(lambda batch: torch.ones(len(batch), 3)), "all the images have one vector"),
    "random": (embedder_of(lambda batch: torch.rand(len(batch), 3)), "the same batch twice"),
    "batch statistics": (embedder_of(lambda batch: mean(batch) - mean(batch).mean(0)), "alone and in a batch"),
    "training mode": (embedder_of(Wrapped()), "Training is in training mode"),
    "raises": (embedder_of(raise_on_cpu), "expected a CUDA tensor"),
    "no id": (
        embedder_of(mean, load_dataset_shard=load_with_names),
        "'__key__', the id_col, but with 'name'",
    ),
    "a dict too few": (embedder_of(mean, load_dataset_shard=load_too_few), "batch of 6 images came with 5 dicts"),
    "augmented": (embedder_of(mean, load_dataset_shard=load_flipped), "other images the second time"),
    "nothing": (embedder_of(mean, load_dataset_shard=load_nothing), "yielded no image"),
    "single images": (embedder_of(mean, load_dataset_shard=load_singly), "not a list with one dict per image"),
    "no super": (
        type("Bare", (MeanColor,), {"__init__": lambda self: setattr(self, "model_name", "bare")})(),
        "does not call super().__init__",
    ),
}


@pytest.mark.parametrize("kind", WRONG)
def test_an_embedder_that_breaks_the_contract_is_told_how(shard, kind):
    embedder, words = WRONG[kind]
    wrong = find_wrong(embedder, shard)
    assert len(wrong) == 1, wrong
    assert words in wrong[0]
    assert "\n" not in wrong[0]


@pytest.mark.parametrize("embedder", [MeanColor(), embedder_of(mean, load_dataset_shard=load_plainly)])
def test_a_sound_embedder_has_nothing_wrong(shard, embedder):
    assert find_wrong(embedder, shard) == []
    assert len(list(check_embedder(embedder, shard))) == 6


def test_an_id_col_of_the_data_set_serves(shard):
    assert find_wrong(embedder_of(mean), shard, id_col="id") == []


def test_the_images_per_second_are_told(shard):
    speeds = []
    list(check_embedder(MeanColor(), shard, on_speed=speeds.append))
    assert (speeds[0].images, speeds[0].dimension) == (6, 3)
    assert speeds[0].seconds > 0
