import pytest
from support.fake_nvml.world import describe

from embedders.errors import GpuError, NoDriverError
from embedders.gpu import nvml
from embedders.gpu.nvml import connect, has_driver, open_gpu, read_gpus

MIB = 1 << 20
NOT_SUPPORTED, NO_PERMISSION, LOST, MISMATCH, UNKNOWN = 3, 4, 15, 18, 999


def test_reads_what_the_driver_reports(node):
    node.write(describe("GPU-a", name="Fake-H100", total=80000, used=7, procs=2, util=35, mode=3))
    (gpu,) = read_gpus()
    assert (gpu.index, gpu.uuid, gpu.name, gpu.problem) == (0, "GPU-a", "Fake-H100", None)
    assert (gpu.total_bytes, gpu.used_bytes) == (80000 * MIB, 7 * MIB)
    assert gpu.free_bytes == (80000 - 7 - 600) * MIB, "what the driver reserves is neither free nor used"
    assert (gpu.utilization_percent, gpu.process_count, gpu.compute_mode) == (35, 2, "exclusive")
    assert (gpu.mig_parent_uuid, gpu.mig_name) == (None, None)


def test_real_loader_finds_the_fake_driver(world):
    world.write_gpus(2)
    assert world.run("-c", "from embedders.gpu.nvml import *; print([gpu.label for gpu in read_gpus()])") == (
        "['GPU 0 GPU-0', 'GPU 1 GPU-1']\n"
    )


def test_snapshot_imports_no_torch(world):
    assert world.run("-c", "import sys, embedders.gpu.lease; print('torch' in sys.modules)") == "False\n"


def test_no_driver_library(world):
    code = """
from embedders.gpu.nvml import *
print(has_driver())
try:
    read_gpus()
except NoDriverError as error:
    print(error)
"""
    said = world.run("-c", code, LD_LIBRARY_PATH=str(world.folder))
    if said.startswith("True"):
        pytest.skip("this machine has an NVIDIA driver of its own")
    assert said.startswith("False\nNVML does not start (") and "'cpu'" in said


def test_driver_is_not_loaded(node):
    node.file.unlink()
    assert not has_driver()
    with pytest.raises(NoDriverError, match=r"Driver Not Loaded.*expected an NVIDIA driver"):
        read_gpus()


def test_a_driver_that_was_left_outside_of_a_container_is_no_missing_driver(node, monkeypatch, tmp_path):
    node.file.unlink()
    monkeypatch.setattr(nvml, "KERNEL_MODULE", tmp_path)
    assert has_driver(), "or `auto` would compute on the CPU in a container that was started without --nv"
    with pytest.raises(NoDriverError, match="--nv"):
        read_gpus()


def test_broken_driver_is_no_missing_driver(node):
    node.write("fail nvmlInitWithFlags * 18")
    assert has_driver(), "or `auto` would fall back to the CPU until somebody reboots the machine"
    with pytest.raises(GpuError, match=r"version mismatch.*nvidia-smi") as caught:
        read_gpus()
    assert not isinstance(caught.value, NoDriverError)


def test_no_gpu_is_an_empty_list(node):
    assert read_gpus() == []


def test_connections_nest(node):
    node.write_gpus(1)
    with connect(), connect():
        assert len(read_gpus()) == 1
    assert len(read_gpus()) == 1


def test_driver_of_another_version(world, drivers):
    world.write_gpus(1)
    code = "from embedders.gpu.nvml import *; [g] = read_gpus(); print(g.uuid, g.used_bytes, g.process_count)"
    said = world.run("-c", code, LD_LIBRARY_PATH=str(drivers / "old"))
    # No second version of the memory call (so `used` has the reserve in it), no processes, no MIG: no
    # problem.
    assert said == f"GPU-0 {604 * MIB} None\n"


@pytest.mark.parametrize("code", [NOT_SUPPORTED, NO_PERMISSION, 13, 25])
@pytest.mark.parametrize(
    ("call", "unknown"),
    [
        ("nvmlDeviceGetName", {"name"}),
        ("nvmlDeviceGetMemoryInfo", {"total_bytes", "free_bytes", "used_bytes"}),
        ("nvmlDeviceGetUtilizationRates", {"utilization_percent"}),
        ("nvmlDeviceGetComputeRunningProcesses_v3", {"process_count"}),
        ("nvmlDeviceGetComputeMode", {"compute_mode"}),
        ("nvmlDeviceGetMigMode", set()),
    ],
)
def test_unsupported_call_costs_its_field_only(node, call, unknown, code):
    fails = [f"fail {call} * {code}", f"fail {call}_v2 * {code}"]
    node.write(describe("GPU-a"), *fails)
    (gpu,) = read_gpus()
    never_known = {"mig_parent_uuid", "mig_name", "problem"}
    assert {name for name, value in vars(gpu).items() if value is None} == unknown | never_known


@pytest.mark.parametrize(
    "call",
    [
        "nvmlDeviceGetHandleByIndex_v2",
        "nvmlDeviceGetUUID",
        "nvmlDeviceGetMemoryInfo_v2",
        "nvmlDeviceGetComputeRunningProcesses_v3",
        "nvmlDeviceGetMigMode",
    ],
)
@pytest.mark.parametrize("code", [LOST, UNKNOWN])
def test_bad_device_does_not_stop_the_others(node, call, code):
    node.write(*(describe(f"GPU-{name}") for name in "abc"), f"fail {call} 1 {code}")
    first, bad, last = read_gpus()
    assert (first.problem, last.problem, last.index) == (None, None, 2)
    assert bad.index == 1 and "cannot" in bad.problem
    if code == LOST:
        assert "GPU is lost" in bad.problem


def test_device_without_uuid_cannot_be_used(node):
    node.write(describe(None))
    assert "no UUID" in read_gpus()[0].problem


def test_prohibited_mode_is_a_problem(node):
    node.write(describe("GPU-a", mode=2))
    assert "prohibited" in read_gpus()[0].problem


def test_hidden_card_does_not_count_in_the_index(node):
    node.write(describe("GPU-a", open=NO_PERMISSION), describe("GPU-b"), describe("GPU-c"))
    assert [(gpu.index, gpu.uuid) for gpu in read_gpus()] == [(None, ""), (0, "GPU-b"), (1, "GPU-c")]


def test_mig_instances_follow_their_card(node):
    node.write(
        describe("GPU-a", mig=1, mode=3),
        describe("MIG-a1", "mig", total=10000, gi=7, ci=0, util=None, mig=None),
        "mig",
        describe("MIG-a2", "mig", total=20000, gi=9, ci=1, procs=1, util=None, mig=None),
        describe("GPU-b"),
    )
    card, small, large, other = read_gpus()
    assert "MIG mode" in card.problem and "(2)" in card.problem
    assert (small.uuid, small.mig_name, small.mig_parent_uuid) == ("MIG-a1", "MIG-GPU-a/7/0", "GPU-a")
    assert (small.index, small.total_bytes, small.utilization_percent) == (0, 10000 * MIB, None)
    assert (large.mig_name, large.process_count, large.problem) == ("MIG-GPU-a/9/1", 1, None)
    assert small.compute_mode == "exclusive", "an instance has its card's"
    assert (other.uuid, other.index) == ("GPU-b", 1)


def test_mig_card_that_cannot_list_its_instances(node):
    node.write(describe("GPU-a", mig=1), describe("GPU-b"), "fail nvmlDeviceGetMaxMigDeviceCount 0 999")
    card, other = read_gpus()
    assert "MIG instances" in card.problem and other.problem is None


def test_bytes_of_other_releases_are_decoded(node, monkeypatch):
    import pynvml

    node.write_gpus(1)
    decode = pynvml.nvmlDeviceGetUUID
    monkeypatch.setattr(pynvml, "nvmlDeviceGetUUID", lambda handle: decode(handle).encode())
    assert read_gpus()[0].uuid == "GPU-0"


def test_one_device_is_read_again_and_again_by_its_uuid(node):
    mig = {"util": None, "mig": None}
    node.write(describe("GPU-a", util=10), describe("GPU-ab", mig=1), describe("MIG-b", "mig", used=9, **mig))
    with open_gpu("GPU-a") as read, open_gpu("MIG-b") as read_instance:
        assert (read().utilization_percent, read_instance().utilization_percent) == (10, None)
        assert read_instance().used_bytes == 9 * MIB
        node.write(describe("GPU-a", util=90, used=5))
        assert (read().utilization_percent, read().used_bytes) == (90, 5 * MIB)


def test_a_device_that_cannot_be_read_is_an_error(node):
    node.write(describe("GPU-a"))
    with pytest.raises(GpuError, match="does not answer"), open_gpu("GPU-b"):
        pass
    with open_gpu("GPU-a") as read:
        node.write(describe("GPU-a"), f"fail nvmlDeviceGetUtilizationRates * {LOST}")
        with pytest.raises(GpuError, match="GPU is lost"):
            read()
