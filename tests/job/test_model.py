"""The model on its device: memory that runs out, and whose fault a failure is. The loop around it: test_embed.py."""

import json
import os
import weakref

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from mean_color import MeanColor
from support.tools import make_shard

from embedders import ImageEmbedder, embed_shard
from embedders.cli import main
from embedders.errors import EmbedderError, GpuError, GpuLostError
from embedders.job.batch import Batch
from embedders.job.locate import build_embedder
from embedders.job.model import Model
from embedders.job.weights import hash_weights
from embedders.output.columns import Columns
from embedders.output.parquet import read_vectors
from embedders.output.timings import Timings

NO_ROOM = [
    torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
    RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
]
LOST = [
    RuntimeError("CUDA error: uncorrectable ECC error encountered"),
    RuntimeError("CUDA error: unspecified launch failure"),
    RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
    RuntimeError("Unexpected error from cudaGetDeviceCount(). Error 802: system not yet initialized"),
    RuntimeError("No CUDA GPUs are available"),
    RuntimeError("The NVIDIA driver on your system is too old (found version 11040)"),
    RuntimeError("Critical error in pipeline: CUDA runtime API error cudaErrorIllegalAddress (700)"),
    RuntimeError("[ONNXRuntimeError] : 1 : FAIL : CUDA failure 719: unspecified launch failure"),
]
if hasattr(torch, "AcceleratorError"):
    LOST.append(torch.AcceleratorError("the launch timed out and was terminated"))
DEFECTS = [
    RuntimeError("Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu!"),
    RuntimeError("Input type (torch.FloatTensor) and weight type (torch.cuda.FloatTensor) should be the same"),
    RuntimeError("CUDA error: device-side assert triggered\nCUDA kernel errors might be asynchronously reported"),
    RuntimeError("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED. This error may appear if you passed in a non-contiguous"),
    RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
    AssertionError("Torch not compiled with CUDA enabled"),
    KeyError("cuda"),
]
if hasattr(torch, "AcceleratorError"):
    DEFECTS.append(torch.AcceleratorError("CUDA error: device-side assert triggered"))


class Small(MeanColor):
    """Its device holds two images: with more, `fail` is called."""

    batch_size = 7

    def __init__(self, fail):
        super().__init__()
        self.fail = fail

    def load_embedding_model(self, device):
        return self.forward

    def forward(self, batch):
        if len(batch) > 2:
            self.fail(batch)
        return batch.mean(dim=(2, 3))


class Raising(ImageEmbedder):
    """Raises an error where it is told to."""

    def __init__(self, error, place):
        super().__init__()
        self.error, self.place = error, place

    def load_dataset_shard(self, tar_path):
        self.reach("load_dataset_shard")
        yield torch.ones(1, 3), [{"__key__": "00000"}]

    def load_embedding_model(self, device):
        self.reach("load_embedding_model")
        return self.forward

    def forward(self, batch):
        self.reach("batch that starts at sample '00000'")
        return batch

    def reach(self, place):
        if place == self.place:
            raise self.error


def raise_error(error):
    raise error


@pytest.fixture
def shard(tmp_path):
    return make_shard(tmp_path / "s.tar", 10)


@pytest.fixture(autouse=True)
def pinned(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-7")


def embed(embedder, shard, tmp_path, device="cuda"):
    path = tmp_path / "o.parquet"
    embed_shard(embedder, shard, path, device=device)
    return read_vectors(str(path))[1]


@pytest.mark.slow
@pytest.mark.parametrize("error", NO_ROOM, ids=str)
def test_a_batch_without_room_is_halved_and_inspect_shows_the_size_that_worked(tmp_path, shard, caplog, error):
    expected = embed(MeanColor(), shard, tmp_path, device="cpu")
    assert (embed(Small(lambda batch: raise_error(error)), shard, tmp_path) == expected).all()
    shown = CliRunner().invoke(main, ["inspect", str(tmp_path / "o.parquet")])
    assert json.loads(shown.output)["max_batch_size"] == 1
    assert "out of memory with 7 images; continuing with 3" in caplog.text
    assert "out of memory with 3 images; continuing with 1" in caplog.text


class Tensor:
    """Stands for what a forward pass holds on the device."""


@pytest.mark.slow
@pytest.mark.parametrize("keeps_error", [False, True])
def test_what_a_batch_without_room_held_is_freed_before_the_next_attempt(tmp_path, shard, keeps_error):
    held = []

    def fail(batch):
        assert not [tensor for tensor in held if tensor() is not None], "the last attempt's memory is still taken"
        activation = Tensor()
        held.append(weakref.ref(activation))
        try:
            raise torch.cuda.OutOfMemoryError("no room")
        except RuntimeError as error:
            if keeps_error:
                kept = error  # a cycle: error, traceback, frame, error
                assert kept
            raise

    embed(Small(fail), shard, tmp_path)
    assert len(held) == 2 and [tensor() for tensor in held] == [None, None]


PLACES = ["load_dataset_shard", "load_embedding_model", "batch that starts at sample '00000'"]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("error", LOST, ids=str)
def test_a_lost_gpu_is_named(tmp_path, error, place):
    with pytest.raises(GpuLostError) as caught:
        embed(Raising(error, place), make_shard(tmp_path / "s.tar", 1), tmp_path)
    message = str(caught.value)
    assert "GPU GPU-7 failed: " in message and place in message and "\n" not in message


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("error", NO_ROOM, ids=str)
def test_a_gpu_without_room_is_not_lost(tmp_path, error, place):
    with pytest.raises(GpuError, match="out of memory on the device") as caught:
        embed(Raising(error, place), make_shard(tmp_path / "s.tar", 1), tmp_path)
    assert not isinstance(caught.value, GpuLostError)
    assert place in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(("error", "device"), [*((error, "cuda") for error in DEFECTS), (LOST[0], "cpu")], ids=str)
def test_a_defect_is_not_the_gpus(tmp_path, error, device, place):
    with pytest.raises(EmbedderError):
        embed(Raising(error, place), make_shard(tmp_path / "s.tar", 1), tmp_path, device=device)


def test_a_gpu_that_is_found_lost_when_the_weights_are_read_is_named(tmp_path):
    class Unreadable(torch.nn.Module):
        def state_dict(self, *args, **kwargs):
            raise LOST[0]

    class Embedder(MeanColor):
        def load_embedding_model(self, device):
            return Unreadable()

    with pytest.raises(GpuLostError, match="load_embedding_model: GPU GPU-7 failed"):
        Model(Embedder(), "cuda", "float32")
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "GPU-7"


EMBEDDER = """
import torch
from embedders import ImageEmbedder

class Mine(ImageEmbedder):
    def load_embedding_model(self, device):
        return self.forward

    def forward(self, batch):
        return batch.mean(dim=(2, 3))
"""


@pytest.mark.slow
def test_verify_does_not_blame_the_file_for_the_gpu(tmp_path, shard):
    source = tmp_path / "mine.py"
    source.write_text(EMBEDDER)
    embed(build_embedder(f"{source}:Mine", {}), shard, tmp_path, device="cpu")
    command = ["verify", str(tmp_path / "o.parquet"), "--device", "cpu"]
    verified = CliRunner().invoke(main, command)
    assert (verified.exit_code, verified.output[:6]) == (0, "sound:"), verified.output
    source.write_text(
        EMBEDDER.replace("return batch", "raise torch.cuda.OutOfMemoryError('no room')\n        return batch")
    )
    verified = CliRunner().invoke(main, command)
    assert verified.exit_code == 1
    assert "out of memory on the device with one image" in verified.output.splitlines()[-1]
    assert "wrong" not in verified.output and "not sound" not in verified.output


# One batch is under way while the one before it is fetched.


class Reused(MeanColor):
    """Gives the same memory back with every batch, as a session with bound outputs does."""

    buffer = np.zeros((2, 3), np.float32)

    def load_embedding_model(self, device):
        def forward(batch):
            self.buffer[:] = batch.mean(dim=(2, 3))
            return self.buffer

        return forward


def make_batch(number, *keys):
    images = torch.full((len(keys), 3, 4, 4), float(number))
    columns, _ = Columns().read([{"__key__": key} for key in keys])
    return Batch(images, list(keys), columns, np.zeros(len(keys), bool))


def test_a_model_may_write_each_batch_into_the_same_memory():
    batches = [make_batch(number, "x", "x") for number in range(4)]
    embedded = Model(Reused(), "cpu", "float32").embed_batches(batches, "s.tar", Timings())
    assert [vectors[0, 0] for _, vectors in embedded] == [0.0, 1.0, 2.0, 3.0]


def test_the_next_batch_is_started_before_the_last_one_is_handed_on_and_order_is_kept():
    events = []

    class Traced(MeanColor):
        def load_embedding_model(self, device):
            def forward(batch):
                events.append(f"start {int(batch[0, 0, 0, 0])}")
                return batch.mean(dim=(2, 3))

            return forward

    batches = (make_batch(number, str(number)) for number in range(3))
    for batch, vectors in Model(Traced(), "cpu", "float32").embed_batches(batches, "s.tar", Timings()):
        assert batch.keys == [str(int(vectors[0, 0]))]
        events.append(f"write {int(vectors[0, 0])}")
    assert events == ["start 0", "start 1", "write 0", "start 2", "write 1", "write 2"]


class Owner:
    def __init__(self, layer):
        self.layer = layer
        self.preprocess = torch.nn.Sequential(torch.nn.Dropout())  # has no weights

    def embed(self, batch):
        return self.layer(batch)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda layer: layer,
        lambda layer: lambda batch: layer(batch),
        lambda layer: layer.forward,
        lambda layer: Owner(layer).embed,
    ],
    ids=["module", "function", "method of the module", "method of an object that holds it"],
)
def test_weights_are_fingerprinted_however_the_model_is_wrapped(wrap):
    layer = torch.nn.Linear(3, 2)
    before = hash_weights(wrap(layer))
    assert before == hash_weights(layer)
    torch.nn.init.zeros_(layer.weight)
    assert hash_weights(wrap(layer)) != before
