import logging
import os
import re
from dataclasses import replace
from itertools import pairwise

import pytest
from support.fake_nvml.world import describe
from support.lease_events import JOBS, most_at_once, run_jobs

from embedders.errors import ConfigError, GpuError, GpuLostError, NoDriverError
from embedders.gpu import lease, locks
from embedders.gpu.lease import GIB, lease_gpu, rank_gpus, why_busy
from embedders.gpu.nvml import Gpu
from embedders.gpu.terms import Terms

NOBODY = 65534
EXCLUSIVE, PROHIBITED = 3, 2

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become a second user")


def longest_idle_s(events):
    """Return for how long at most a device was free while a job waited."""
    takes = {event["pid"]: event["time_s"] for event in events if event["what"] == "take"}
    last_take_s = max(takes.values())
    idle_s = [0.0]
    for uuid in {event["uuid"] for event in events if "uuid" in event}:
        turns = [event for event in events if event.get("uuid") == uuid]
        idle_s += [late["time_s"] - early["time_s"] for early, late in pairwise(turns) if early["what"] == "leave"]
        idle_s += [last_take_s - turns[-1]["time_s"]]
    return max(idle_s)


@pytest.mark.slow
def test_fifty_jobs_that_start_at_once_on_eight_devices(world):
    world.write_gpus(8)
    events = run_jobs(world, "crowd", 50, 0.1, 1, 60, False)
    takes = [event for event in events if event["what"] == "take"]
    assert len(takes) == 50 and all(event["pin"] == event["uuid"] for event in takes)
    assert most_at_once(events) == {f"GPU-{number}": 1 for number in range(8)}
    print(f"\nfree while a job waited: {longest_idle_s(events):.2f} s at most")
    assert longest_idle_s(events) < 5  # about 1 s; a lost lease would idle until the jobs are done


@pytest.mark.slow
def test_two_hundred_kills(world):
    world.write_gpus(4)
    rounds = run_jobs(world, "kills", 200, 4)
    assert len(rounds) == 200
    for event in rounds:
        assert event["free"] == [event["killed"]], "only the killed job's device is free, and it is at once"
        assert event["taken"] == event["killed"]
        assert event["held"] == ["GPU-0", "GPU-1", "GPU-2", "GPU-3"]


@needs_root
@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_two_users_contend(world, umask):
    world.write_gpus(2)
    before = os.umask(umask)
    try:
        events = run_jobs(world, "crowd", 12, 0.05, 1, 60, True)
    finally:
        os.umask(before)
    assert most_at_once(events) == {"GPU-0": 1, "GPU-1": 1}
    assert {event["uid"] for event in events if event["what"] == "take"} == {0, NOBODY}
    assert len([event for event in events if event["what"] == "leave"]) == 12


@needs_root
@pytest.mark.parametrize(("mode", "leased"), [(0o666, True), (0o644, True), (0o600, False)])
def test_file_of_another_user(world, mode, leased):
    """What cannot be written is locked all the same; what cannot be read is taken for leased."""
    world.write_gpus(1)
    world.leases.mkdir()
    world.leases.chmod(0o1777)
    path = world.leases / "GPU-0.lock"
    path.touch()
    path.chmod(mode)
    (event,) = run_jobs(world, "once", NOBODY, 1)
    assert event["what"] == ("take" if leased else "refused")
    if not leased:
        assert f"its lock file '{path}' cannot be opened (Permission denied)" in event["text"]
    assert path.exists() and path.stat().st_uid == 0


@needs_root
def test_pipe_of_another_user_does_not_hang(world):
    world.write_gpus(2)
    world.leases.mkdir()
    world.leases.chmod(0o1777)
    os.mkfifo(world.leases / "GPU-0.lock")
    (world.leases / "GPU-0.lock").chmod(0o644)  # to open one for reading waits for a writer, who never comes
    (event,) = run_jobs(world, "once", NOBODY, 1)
    assert event["uuid"] == "GPU-1"


@needs_root
def test_lease_of_another_user_is_honoured_and_named(world):
    world.write_gpus(1)
    holder = world.start(world.repository / JOBS, "hold", "1")
    assert "take" in holder.stdout.readline()
    (event,) = run_jobs(world, "once", NOBODY, 1)
    assert event["what"] == "refused" and f"GPU-0: leased by pid {holder.pid} on" in event["text"]
    holder.communicate()
    assert run_jobs(world, "once", NOBODY, 1)[0]["what"] == "take"


def test_lease_pins_and_restores(node):
    node.write_gpus(2)
    before = dict(os.environ)
    with lease_gpu("00000.tar", Terms(0)) as gpu:
        assert gpu.uuid == "GPU-0"
        assert (os.environ["CUDA_VISIBLE_DEVICES"], os.environ["CUDA_DEVICE_ORDER"]) == (
            "GPU-0",
            "PCI_BUS_ID",
        )
    assert dict(os.environ) == before and not locks.is_holding()


def test_lease_ends_with_an_error(node):
    node.write_gpus(1)
    for _ in range(2):
        with pytest.raises(KeyError), lease_gpu(terms=Terms(0)):
            raise KeyError


def fail_at_work():
    with pytest.raises(GpuLostError, match="XID"), lease_gpu(terms=Terms(0)) as gpu:
        raise GpuLostError("XID 79")
    return gpu.uuid


def test_card_that_failed_at_work_is_left_alone_for_a_while_even_as_the_only_free_one(node):
    node.write(describe("GPU-0"), describe("GPU-1", procs=1))
    assert fail_at_work() == "GPU-0"
    with (
        pytest.raises(GpuError, match="GPU 0 GPU-0: it failed during a job a few minutes ago; GPU 1 GPU-1: compute"),
        lease_gpu(terms=Terms(0)),
    ):
        pass
    os.utime(node.leases / "GPU-0.failed", (0, 0))
    with lease_gpu(terms=Terms(0)) as gpu:
        assert gpu.uuid == "GPU-0"


def test_cards_that_failed_are_tried_again_where_there_is_no_other(node):
    node.write(describe("GPU-0"), describe("GPU-1"), describe("GPU-2", mode=PROHIBITED))
    assert [fail_at_work() for _ in range(4)] == ["GPU-0", "GPU-1", "GPU-0", "GPU-0"]


def test_failure_is_the_jobs_error_whatever_became_of_the_folder(node):
    node.write_gpus(1)
    with pytest.raises(GpuLostError), lease_gpu(terms=Terms(0)):
        node.leases.rename(node.folder / "elsewhere")
        raise GpuLostError("XID 79")


def test_error_that_is_not_the_cards_leaves_no_note(node):
    node.write_gpus(2)
    for error in (GpuError("out of memory"), KeyError()):
        with pytest.raises(type(error)), lease_gpu(terms=Terms(0)):
            raise error
    assert [path.name for path in node.leases.iterdir()] == ["GPU-0.lock"]


def test_one_lease_at_a_time(node):
    node.write_gpus(2)
    with lease_gpu(terms=Terms(0)), pytest.raises(GpuError, match="holds a GPU already"), lease_gpu(terms=Terms(0)):
        pass


def test_lease_comes_before_cuda(world):
    world.write_gpus(1)
    start = "import ctypes; ctypes.CDLL('libcuda.so.1').cuInit(0)\n"
    code = start + "from embedders.gpu.lease import *\nwith lease_gpu(): pass"
    assert "GpuError: CUDA already runs in this process" in world.run("-c", code)
    assert not world.leases.exists()


def test_no_driver(node):
    node.file.unlink()
    with pytest.raises(NoDriverError), lease_gpu():
        pass


def test_device_that_becomes_busy_between_snapshot_and_lock_is_skipped(node):
    # The first question about its processes is the snapshot's, the second comes after the lock.
    node.write(describe("GPU-0", procs="0,1"), describe("GPU-1"))
    with lease_gpu(terms=Terms(0)) as gpu:
        assert gpu.uuid == "GPU-1"
        with locks.locked(locks.card_path(node.leases, "GPU-0")):
            pass


def test_device_that_vanishes_between_snapshot_and_lock_is_skipped(node, monkeypatch):
    node.write(describe("GPU-0"), describe("GPU-1"))
    locked = locks.locked

    def locked_late(path, *how):
        node.write(describe("GPU-1"))
        return locked(path, *how)

    monkeypatch.setattr(locks, "locked", locked_late)
    with lease_gpu(terms=Terms(0)) as gpu:
        assert gpu.uuid == "GPU-1"


def test_bad_devices_are_passed_over(node):
    node.write(
        describe("GPU-0", open=15),
        describe("GPU-1", mode=PROHIBITED),
        describe("GPU-2", procs=1),
        describe("GPU-3", used=2000),
        describe("GPU-4", procs=None, util=None),
        "fail nvmlDeviceGetMemoryInfo 4 3",
        "fail nvmlDeviceGetMemoryInfo_v2 4 3",
        describe("GPU-5", procs=None, util=None, mode=EXCLUSIVE),
    )
    with lease_gpu(terms=Terms(0)) as gpu:
        assert gpu.uuid == "GPU-5", "it does not tell its processes, but its memory is free"


def test_error_names_every_device_and_why(node, monkeypatch):
    node.write(
        describe("GPU-0", open=15),
        describe("GPU-1", mode=PROHIBITED),
        describe("GPU-2", procs=2),
        describe("GPU-3", used=2048),
        describe("GPU-4", mig=1),
        describe("GPU-5"),
        describe("GPU-6"),
    )
    node.leases.mkdir()
    os.mkfifo(node.leases / "GPU-5.lock")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3,4,5")
    with pytest.raises(GpuError) as caught, lease_gpu(terms=Terms(0)):
        pass
    reasons = str(caught.value).split(": ", 1)[1]
    for pattern in [
        r"GPU 0 of unknown UUID: NVML cannot open it \(GPU is lost\)",
        r"GPU 1 GPU-1: compute mode 'prohibited'",
        r"GPU 2 GPU-2: compute processes: 2 \(at most 0 expected\)",
        r"GPU 3 GPU-3: 2\.00 GiB in use \(at most 1\.00 expected\)",
        r"GPU 4 GPU-4: in MIG mode",
        r"GPU 5 GPU-5: its lock file '.*/GPU-5.lock' is not a plain file",
        r"GPU 6 GPU-6: not in CUDA_VISIBLE_DEVICES='0,1,2,3,4,5'",
    ]:
        assert re.search(pattern, reasons)
    assert "\n" not in reasons and "wait longer" in reasons


@pytest.mark.parametrize("visible", ["", "-1", "3"])
def test_no_device_is_admitted(node, monkeypatch, visible):
    node.write_gpus(2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with pytest.raises(GpuError, match=f"after 0 s: GPU 0 GPU-0: not in CUDA_VISIBLE_DEVICES='{visible}'"):
        lease_gpu(terms=Terms(3600)).__enter__()


def test_no_device_can_ever_be_free(node):
    node.write(describe("GPU-0", mode=PROHIBITED))
    with pytest.raises(GpuError, match=r"after 0 s.*prohibited"), lease_gpu(terms=Terms(3600)):
        pass


def test_no_device_at_all(node):
    with pytest.raises(GpuError, match="lists no GPU"), lease_gpu(terms=Terms(3600)):
        pass


def test_inherited_bounds_are_kept(node, monkeypatch):
    node.write_gpus(4)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,2")
    with lease_gpu(terms=Terms(0)) as gpu:
        assert gpu.uuid == "GPU-2"
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "3,2"


def test_mig_instances_are_leased_and_their_card_is_not(world):
    instances = [describe(f"MIG-{number}", "mig", gi=number, mig=None, util=None) for number in range(3)]
    world.write(describe("GPU-0", mig=1), *instances)
    events = run_jobs(world, "crowd", 9, 0.05, 1, 60, False)
    assert most_at_once(events) == {"MIG-0": 1, "MIG-1": 1, "MIG-2": 1}


def test_waiting_job_says_so_and_takes_what_becomes_free(node, monkeypatch, caplog):
    monkeypatch.setattr(lease, "_NOTICE_S", 0.5)
    node.write(describe("GPU-0", procs="0,1,1,1,1,1,1,1,0"))
    with caplog.at_level(logging.INFO), lease_gpu(terms=Terms(60)):
        pass
    notices = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(notices) >= 2
    assert re.fullmatch(r"waiting for a GPU since \d s: GPU 0 GPU-0: compute processes: 1 .*", notices[-1])
    assert "leased GPU 0 GPU-0 (Fake)" in caplog.text


def test_wait_ends(node):
    node.write(describe("GPU-0", procs=1))
    with (
        pytest.raises(GpuError, match="no GPU to lease after 1 s: GPU 0 GPU-0: compute processes: 1"),
        lease_gpu(terms=Terms(0.8)),
    ):
        pass


def test_thresholds_can_be_chosen(node):
    node.write(describe("GPU-0", procs=1, used=3000))
    with lease_gpu(terms=Terms(0, gpu_max_processes=1, gpu_max_used_mb=3072)):
        pass
    with pytest.raises(GpuError), lease_gpu(terms=Terms(0, gpu_max_processes=1)):
        pass
    with pytest.raises(GpuError), lease_gpu(terms=Terms(0, gpu_max_used_mb=3072)):
        pass


def test_jobs_per_gpu_is_one_at_least():
    with pytest.raises(ConfigError, match="jobs_per_gpu=0"):
        Terms(jobs_per_gpu=0)


def test_slots_are_filled_and_no_more(world):
    world.write_gpus(2)
    events = run_jobs(world, "crowd", 24, 0.4, 3, 60, False)
    assert most_at_once(events) == {"GPU-0": 3, "GPU-1": 3}
    assert len([event for event in events if event["what"] == "leave"]) == 24


def test_slots_spread_over_the_cards_first(node):
    node.write_gpus(2)
    with lease_gpu(terms=Terms(0, jobs_per_gpu=2)) as gpu:
        (other,) = run_jobs(node, "once", os.getuid(), 2)
        assert {gpu.uuid, other["uuid"]} == {"GPU-0", "GPU-1"}


@pytest.mark.parametrize(
    ("held", "wanted", "taken"), [(1, 1, False), (1, 2, False), (2, 1, False), (2, 2, True), (4, 2, True)]
)
def test_who_wants_a_card_alone_shares_with_nobody(node, held, wanted, taken):
    node.write_gpus(1)
    with lease_gpu(terms=Terms(0, jobs_per_gpu=held)):
        (event,) = run_jobs(node, "once", os.getuid(), wanted)
    assert event["what"] == ("take" if taken else "refused")


def test_stranger_cannot_hide_behind_jobs_that_come_together(world):
    # Each of them would take the stranger's process for the other's, if they did not decide one by one.
    world.write(describe("GPU-0", procs=1))
    events = run_jobs(world, "crowd", 12, 0.1, 4, 3, False)
    assert {event["what"] for event in events} == {"wait", "refused"}


def test_exclusive_mode_has_one_slot(node):
    node.write(describe("GPU-0", mode=EXCLUSIVE))
    with lease_gpu(terms=Terms(0, jobs_per_gpu=2)):
        (event,) = run_jobs(node, "once", os.getuid(), 2)
    assert event["what"] == "refused"


CARD = Gpu(index=0, uuid="GPU-a", total_bytes=80 * GIB, free_bytes=80 * GIB, used_bytes=0, process_count=0)


@pytest.mark.parametrize(
    ("state", "jobs_per_gpu", "siblings", "reason"),
    [
        ({}, 1, 0, None),
        ({"used_bytes": GIB}, 1, 0, None),
        ({"used_bytes": GIB + 1}, 1, 0, "1.00 GiB in use (at most 1.00 expected)"),
        ({"process_count": 1}, 1, 0, "compute processes: 1 (at most 0 expected)"),
        ({"problem": "lost"}, 1, 0, "lost"),
        ({"process_count": None, "used_bytes": None}, 1, 0, "may be in use"),
        ({"process_count": None}, 1, 0, None),
        ({"used_bytes": None, "total_bytes": None}, 1, 0, None),
        # A sibling accounts for one process and its share of the memory, here a quarter.
        ({"process_count": 1, "used_bytes": 20 * GIB}, 4, 1, None),
        ({"process_count": 1, "used_bytes": 30 * GIB}, 4, 1, "30.00 GiB in use (at most 21.00 expected)"),
        ({"process_count": 2, "used_bytes": 20 * GIB}, 4, 1, "compute processes: 2 (at most 1 expected)"),
        ({"process_count": 3, "used_bytes": 60 * GIB}, 4, 3, None),
        (
            {"process_count": 0, "used_bytes": 20 * GIB},
            4,
            1,
            None,
        ),  # in a container, where processes are hidden
        ({"process_count": 1}, 4, 0, "compute processes: 1"),
        ({}, 4, 4, "leased by jobs that share it: 4"),
        ({}, 1, 2, "leased by jobs that share it: 2"),
        ({"compute_mode": "exclusive"}, 4, 1, "leased by jobs that share it: 1"),
    ],
)
def test_what_is_free(state, jobs_per_gpu, siblings, reason):
    said = why_busy(replace(CARD, **state), Terms(jobs_per_gpu=jobs_per_gpu), siblings)
    assert said is None if reason is None else reason in said


def test_ranking():
    def card(uuid, free_gib=80.0, **fields):
        return Gpu(uuid=uuid, free_bytes=int(free_gib * GIB), **{"index": 0, **fields})

    ranked = [
        card("GPU-b", 79.9, index=1),
        card("GPU-c", 79.1, index=2),
        card("GPU-g", utilization_percent=1, free_gib=79.5),
        card("GPU-d", 40, index=0),
        card("MIG-a", 10, index=0),
        card("MIG-b", 10, index=0),
        Gpu(uuid="GPU-h", index=0),
        card("GPU-e", index=0, process_count=1),
        card("GPU-f", index=0),
    ]
    siblings = dict.fromkeys((gpu.uuid for gpu in ranked), 0) | {"GPU-f": 1}
    assert rank_gpus(ranked[::-1], siblings) == ranked
