"""An embedder of each wrong kind, and what the check says of it. The command as a whole: test_check.py."""

import numpy as np
import pytest
import torch
from mean_color import MeanColor
from support.tools import make_image, make_shard, make_tar, start_python

from embedders import ImageEmbedder
from embedders.checks.loader_contract import MAX_FAILED
from embedders.testing import check_embedder


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


def normalize_batch(batch):
    return torch.nn.functional.batch_norm(mean(batch), None, None, training=True)


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


def load_numbered(self, tar_path):
    for batch, metadata in MeanColor().load_dataset_shard(tar_path):
        yield batch, [{"__key__": number} for number in range(len(metadata))]


def load_all_but_one(self, tar_path):
    for batch, metadata in MeanColor().load_dataset_shard(tar_path):
        yield batch[1:], metadata[1:]


def load_after_nothing(self, tar_path):
    yield torch.zeros(0, 3, 8, 8), []
    yield from MeanColor().load_dataset_shard(tar_path)


def load_singly(self, tar_path):
    for batch, metadata in MeanColor().load_dataset_shard(tar_path):
        yield from zip(batch, metadata, strict=True)


def load_twice(self, tar_path):
    yield from MeanColor().load_dataset_shard(tar_path)
    yield from MeanColor().load_dataset_shard(tar_path)


def load_under_other_names(self, tar_path):
    for batch, metadata in MeanColor().load_dataset_shard(tar_path):
        yield batch, [{"__key__": f"images/{sample['__key__']}"} for sample in metadata]


def load_as_dict(self, tar_path):
    for batch, metadata in MeanColor().load_dataset_shard(tar_path):
        yield {"pixels": batch}, metadata


def load_as_arrays(self, tar_path):
    for batch, metadata in MeanColor().load_dataset_shard(tar_path):
        yield batch.numpy(), metadata


def load_as_tuple(self, tar_path):
    for batch, metadata in MeanColor().load_dataset_shard(tar_path):
        yield (batch, len(batch)), metadata


def load_and_raise(self, tar_path):
    raise KeyError("no index file")
    yield


class Training(torch.nn.Module):
    def forward(self, batch):
        return mean(batch)


class Wrapped:
    """A callable that holds a module of which one part is in training mode."""

    def __init__(self):
        self.module = torch.nn.Sequential(torch.nn.Identity(), Training()).eval()
        self.module[1].train()

    def __call__(self, batch):
        return self.module(batch)


class Growing:
    """A model that gives one number more for each batch."""

    calls = 0

    def __call__(self, batch):
        self.calls += 1
        return torch.ones(len(batch), self.calls)


def raise_on_cpu(batch):
    raise RuntimeError("expected a CUDA tensor")


class Incomplete(ImageEmbedder):
    pass


class WithoutWeights(MeanColor):
    def __init__(self):
        raise FileNotFoundError("weights.pt")


class WithoutSuper(MeanColor):
    def __init__(self):
        self.model_name = "bare"


# By kind: the embedder, and words of the one line that says what is wrong and of the part that says what to do.
WRONG = {
    "no method": (Incomplete, "load_embedding_model", "fix the class"),
    "cannot be built": (WithoutWeights, "FileNotFoundError: weights.pt", "fix the class"),
    "something else": (lambda: 5, "it returns a int", "derive the class from it"),
    "no super": (WithoutSuper, "does not call super().__init__", "add the call"),
    "no model": (embedder_of(None), "load_embedding_model returned a NoneType", "return the model"),
    "one row for all": (
        embedder_of(lambda batch: mean(batch)[0]),
        "returned shape (3,)",
        "expected (images, dimension)",
    ),
    "a row too few": (embedder_of(lambda batch: mean(batch)[1:]), "returned shape (5, 3)", "expected (6, dimension)"),
    "two dimensions": (embedder_of(Growing()), "dimension 2, but 1 before", "expected the same one"),
    "not finite": (embedder_of(lambda batch: mean(batch) / 0), "6 of 6 images fail, bad_vector", "check the weights"),
    "integers": (embedder_of(lambda batch: (mean(batch) * 255).int()), "torch.int32", "expected floats"),
    "one vector": (
        embedder_of(lambda batch: torch.ones(len(batch), 3)),
        "all the images have the same vector",
        "check preprocess and the layer",
    ),
    "random": (embedder_of(lambda batch: torch.rand(len(batch), 3)), "the same batch twice", "remove randomness"),
    "batch statistics": (
        embedder_of(lambda batch: mean(batch) - mean(batch).mean(0)),
        "an image alone and in a batch",
        "use no batch statistics",
    ),
    "training mode": (embedder_of(Wrapped()), "Training is in training mode", "expected .eval()"),
    "one image fails": (
        embedder_of(normalize_batch),
        "with one image alone: the model raised ValueError: Expected more than 1 value",
        "value",
    ),
    "a tuple": (embedder_of(lambda batch: (mean(batch),)), "returned a tuple", "expected a tensor"),
    "a column of another kind": (
        embedder_of(lambda batch: {"key": mean(batch)}),
        "column 'key' would be there twice",
        "the name in the model's mapping",
    ),
    "indescribable": (
        embedder_of(mean, describe_preprocessing=lambda self: {"size": np.float32(1)}),
        "describe_preprocessing: TypeError: Object of type float32",
        "expected a dict of values for JSON",
    ),
    "a field without brackets": (
        embedder_of(mean, metadata_fields="number", decode=lambda self, encoded, metadata: torch.ones(3)),
        "metadata_fields is the text 'number'; expected names, as in ['number']",
        "add the brackets",
    ),
    "no batch size": (embedder_of(mean, batch_size=0), "batch_size: 0", "a whole number of at least 1"),
    "a batch size in quotes": (embedder_of(mean, batch_size="8"), "batch_size: '8'", "a whole number of at least 1"),
    "raises": (embedder_of(raise_on_cpu), "the model raised RuntimeError", "expected a CUDA tensor"),
    "preprocess": (
        embedder_of(mean, preprocess=lambda self, image: image.pixels),
        "preprocess fails on 6 of the first 6 images, for example '00000': AttributeError",
        "fix it",
    ),
    "no tensor": (embedder_of(mean, preprocess=lambda self, image: 5), "preprocess gave a int", "a torch.Tensor"),
    "loader raises": (
        embedder_of(mean, load_dataset_shard=load_and_raise),
        "load_dataset_shard failed: KeyError: 'no index file'",
        "expected it to yield pairs",
    ),
    "no id": (
        embedder_of(mean, load_dataset_shard=load_with_names),
        "have no '__key__' (id_col), or null there; expected it next to 'name'",
        "set id_col",
    ),
    "a dict too few": (
        embedder_of(mean, load_dataset_shard=load_too_few),
        "batch of 6 images came with 5 dicts",
        "expected one dict per image",
    ),
    "augmented": (
        embedder_of(mean, load_dataset_shard=load_flipped),
        "other images the second time",
        "remove random augmentation",
    ),
    "nothing": (
        embedder_of(mean, load_dataset_shard=load_nothing),
        "yielded no image",
        "check the content of the shard",
    ),
    "single images": (
        embedder_of(mean, load_dataset_shard=load_singly),
        "its metadata is a dict",
        "not a list with one dict per image",
    ),
    "a sample twice": (embedder_of(mean, load_dataset_shard=load_twice), "'00000' 2 times", "fix the loader"),
    "numbers for keys": (
        embedder_of(mean, load_dataset_shard=load_numbered),
        "'0', which is not a __key__ in the tar",
        "take the name from the tar",
    ),
    "a sample is lost": (
        embedder_of(mean, load_dataset_shard=load_all_but_one),
        "1 of 6 samples will fail, not_loaded, for example '00000'",
        "yield every sample of the tar once",
    ),
    "other names": (
        embedder_of(mean, load_dataset_shard=load_under_other_names),
        "'images/00000', which is not a __key__ in the tar",
        "take the name from the tar",
    ),
}


@pytest.mark.parametrize("kind", WRONG)
def test_an_embedder_that_breaks_the_contract_is_told_how(shard, kind):
    embedder, what, fix = WRONG[kind]
    wrong = find_wrong(embedder, shard)
    assert len(wrong) == 1, wrong
    assert what in wrong[0]
    assert fix in wrong[0].partition(what)[2] or what.endswith(fix)
    assert "\n" not in wrong[0]


STARTS_CUDA = """
import ctypes, sys
from mean_color import MeanColor
from embedders.testing import check_embedder
class Eager(MeanColor):
    def __init__(self):
        super().__init__()
        ctypes.CDLL("libcuda.so.1").cuInit(0)
for embedder in (MeanColor, Eager):
    print([str(finding) for finding in check_embedder(embedder, sys.argv[1]) if finding.is_wrong])
"""


@pytest.mark.slow
def test_a_constructor_that_starts_cuda_is_told_so(shard, drivers, monkeypatch):
    monkeypatch.setenv("LD_LIBRARY_PATH", str(drivers / "new"))
    output, errors = start_python(STARTS_CUDA, shard).communicate(timeout=300)
    good, wrong = output.splitlines()
    assert good == "[]", errors
    assert "starts CUDA" in wrong and "move it to load_embedding_model" in wrong


SOUND = {
    "class": MeanColor,
    "instance": MeanColor(),
    "function that builds it": lambda: MeanColor(),
    "own loader": embedder_of(mean, load_dataset_shard=load_plainly),
    "half precision": embedder_of(lambda batch: mean(batch).half()),
    "numpy vectors": embedder_of(lambda batch: mean(batch).cpu().numpy()),
    "dicts": embedder_of(lambda batch: mean(batch["pixels"]), load_dataset_shard=load_as_dict),
    "arrays": embedder_of(lambda batch: np.mean(batch, axis=(2, 3)), load_dataset_shard=load_as_arrays),
    "an empty batch": embedder_of(mean, load_dataset_shard=load_after_nothing),
    "bfloat16 images": embedder_of(mean, preprocess=lambda self, image: MeanColor().preprocess(image).bfloat16()),
    "tuples": embedder_of(lambda batch: mean(batch[0]), load_dataset_shard=load_as_tuple),
}


@pytest.mark.parametrize("kind", SOUND)
def test_a_sound_embedder_has_nothing_wrong(shard, kind):
    assert find_wrong(SOUND[kind], shard) == []
    findings = [finding.message for finding in check_embedder(SOUND[kind], shard)]
    alone = "was not tried: cannot take one out of a tuple" if kind == "tuples" else "alone as in a batch"
    assert findings[-1].endswith(alone)


def test_a_shard_of_one_image_is_checked_as_far_as_it_goes(tmp_path):
    findings = list(check_embedder(embedder_of(mean), make_shard(tmp_path / "s.tar", 1)))
    assert not any(finding.is_wrong for finding in findings)
    assert findings[-1].message == "an image alone was not tried: the first batch has only one"


def test_an_id_col_of_the_data_set_serves(shard):
    assert find_wrong(embedder_of(mean), shard, id_col="id") == []
    assert find_wrong(embedder_of(mean, load_dataset_shard=load_plainly), shard, id_col="id") == []


def test_a_few_images_that_preprocess_cannot_take_do_not_end_the_check(tmp_path):
    def preprocess(self, image):
        return ImageEmbedder.preprocess(self, image if image.width > 20 else None)

    path = make_tar(
        tmp_path / "s.tar", {"a.jpg": make_image(), "b.jpg": make_image(1, (9, 9)), "c.jpg": make_image(2)}
    )
    findings = list(check_embedder(embedder_of(mean, preprocess=preprocess), path))
    wrong = next(finding.message for finding in findings if finding.is_wrong)
    assert wrong.startswith("preprocess fails on 1 of")
    assert findings[-1].message == "the same vector alone as in a batch"


def test_a_huge_shard_on_which_nothing_succeeds_is_not_read_to_its_end(tmp_path):
    image = make_image()
    members = {f"{number:05}.jpg": image for number in range(4 * MAX_FAILED)}
    path = make_tar(tmp_path / "s.tar", members)
    wrong = find_wrong(embedder_of(mean, preprocess=lambda self, image: image.pixels), path)
    assert f"fails on {MAX_FAILED} of the first {MAX_FAILED} images" in wrong[0]


def test_the_images_per_second_are_told(shard):
    speeds = []
    list(check_embedder(MeanColor(), shard, on_speed=speeds.append))
    assert speeds[0].dimension == 3
    assert min(speeds[0].loaded_per_s, speeds[0].embedded_per_s) > 0
