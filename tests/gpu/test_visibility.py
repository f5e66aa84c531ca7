import logging
import os

import pytest
from support.fake_nvml.world import describe

from embedders.gpu.nvml import Gpu, read_gpus
from embedders.gpu.visibility import pinned, select_visible, warn_of_order

NO_PERMISSION = 4

CARDS = [Gpu(index=0, uuid="GPU-aa11"), Gpu(index=1, uuid="GPU-aa22"), Gpu(index=2, uuid="GPU-bb33")]
MIG_CARDS = [
    Gpu(index=0, uuid="GPU-aa11", problem="in MIG mode"),
    Gpu(index=0, uuid="MIG-cc1", mig_parent_uuid="GPU-aa11", mig_name="MIG-GPU-aa11/7/0"),
    Gpu(index=0, uuid="MIG-cc2", mig_parent_uuid="GPU-aa11", mig_name="MIG-GPU-aa11/9/0"),
    Gpu(index=1, uuid="GPU-aa22"),
]


def select(gpus, visible):
    return [gpu.uuid for gpu in select_visible(gpus, visible)]


@pytest.mark.parametrize(
    ("visible", "admitted"),
    [
        (None, "GPU-aa11 GPU-aa22 GPU-bb33"),
        ("", ""),
        ("-1", ""),
        ("NoDevFiles", ""),  # an older SLURM's word for none
        ("0", "GPU-aa11"),
        ("2,0", "GPU-bb33 GPU-aa11"),
        (" 1 , 2 ", "GPU-aa22 GPU-bb33"),
        ("0,2,-1,1", "GPU-aa11 GPU-bb33"),  # the example of CUDA's guide
        ("0,7,1", "GPU-aa11"),
        ("0,,1", "GPU-aa11"),
        ("0,one,1", "GPU-aa11"),
        ("7", ""),
        ("0,0", ""),
        ("1,GPU-aa22", ""),
        ("GPU-bb33,GPU-aa11", "GPU-bb33 GPU-aa11"),
        ("GPU-b", "GPU-bb33"),
        ("GPU-aa", ""),  # the start of two
        ("GPU-", ""),
        ("G", ""),
        ("GPU-bb33,GPU-zz,GPU-aa11", "GPU-bb33"),
        ("MIG-cc1", ""),
    ],
)
def test_bounds(visible, admitted):
    assert select(CARDS, visible) == admitted.split()


@pytest.mark.parametrize(
    ("visible", "admitted"),
    [
        ("MIG-cc2", "MIG-cc2"),
        ("MIG-cc2,MIG-cc1", "MIG-cc2 MIG-cc1"),
        ("MIG-cc", ""),
        ("MIG-GPU-aa11/9/0", "MIG-cc2"),
        ("MIG-GPU-aa11/9/0,MIG-cc2", ""),
        ("0", "GPU-aa11 MIG-cc1 MIG-cc2"),
        ("GPU-aa11", "GPU-aa11 MIG-cc1 MIG-cc2"),
        ("1", "GPU-aa22"),
    ],
)
def test_bounds_with_mig(visible, admitted):
    assert select(MIG_CARDS, visible) == admitted.split()


def test_mig_names_of_drivers_before_470_are_their_uuids():
    instance = Gpu(index=0, uuid="MIG-GPU-aa11/7/0", mig_parent_uuid="GPU-aa11", mig_name="MIG-GPU-aa11/7/0")
    assert select([MIG_CARDS[0], instance], "MIG-GPU-aa11/7/0") == ["MIG-GPU-aa11/7/0"]


def test_slurm_numbers_without_device_cgroups(node):
    node.write_gpus(4)
    assert select(read_gpus(), "2,3") == ["GPU-2", "GPU-3"]


def test_slurm_numbers_with_device_cgroups(node):
    # The job has the last two of the node's four cards; SLURM numbers them 0 and 1, as CUDA does in there.
    hidden = [describe(f"GPU-{number}", open=NO_PERMISSION) for number in range(2)]
    node.write(*hidden, describe("GPU-2"), describe("GPU-3"))
    assert select(read_gpus(), "0,1") == ["GPU-2", "GPU-3"]
    assert select(read_gpus(), "2,3") == [], "the node's numbers mean nothing in there, to CUDA neither"


def test_lost_card_keeps_its_number(node):
    node.write(describe("GPU-0"), describe("GPU-1", open=15), describe("GPU-2"))
    assert select(read_gpus(), "2") == ["GPU-2"]


@pytest.mark.parametrize("inherited", [None, "", "0,1"])
def test_pin_is_undone(monkeypatch, inherited):
    for name in ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"):
        monkeypatch.delenv(name, raising=False)
    if inherited is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", inherited)
    before = dict(os.environ)
    with pytest.raises(KeyError), pinned("GPU-a"):
        assert (os.environ["CUDA_VISIBLE_DEVICES"], os.environ["CUDA_DEVICE_ORDER"]) == (
            "GPU-a",
            "PCI_BUS_ID",
        )
        raise KeyError
    assert dict(os.environ) == before


@pytest.mark.parametrize(
    ("visible", "order", "names", "warned"),
    [
        ("0", None, "AB", True),
        ("0", "FASTEST_FIRST", "AB", True),
        ("0", "PCI_BUS_ID", "AB", False),
        ("0", None, "AA", False),
        ("GPU-A", None, "AB", False),
        (None, None, "AB", False),
    ],
)
def test_index_among_unlike_cards_is_remarked(monkeypatch, caplog, visible, order, names, warned):
    for name, value in (("CUDA_VISIBLE_DEVICES", visible), ("CUDA_DEVICE_ORDER", order)):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    with caplog.at_level(logging.WARNING):
        warn_of_order([Gpu(index=place, name=name) for place, name in enumerate(names)])
    assert ("order of nvidia-smi" in caplog.text) is warned


CHECK = """
import ctypes
from embedders.gpu.visibility import check_unpinned
check_unpinned()
cuda = ctypes.CDLL("libcuda.so.1")
check_unpinned()
print("loaded only: fine")
cuda.cuInit(0)
check_unpinned()
"""


def test_cuda_that_already_runs_is_refused(world):
    said = world.run("-c", CHECK)
    assert "loaded only: fine" in said and "GpuError: CUDA already runs in this process" in said
