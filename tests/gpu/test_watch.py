import os
import threading
import time

import pytest
from support.fake_nvml.world import describe
from support.tools import wait_until

from embedders.gpu import watch
from embedders.gpu.nvml import Gpu
from embedders.gpu.watch import GpuSpan, GpuWatch

MIB = 1 << 20
LOST = 15
CARD, INSTANCE = Gpu(0, "GPU-a"), Gpu(0, "MIG-a", mig_parent_uuid="GPU-a")


@pytest.fixture(autouse=True)
def often(monkeypatch):
    monkeypatch.setattr(watch, "INTERVAL_S", 0.01)


def wait_for_sample(watched):
    """Wait until a sample that was begun after now is counted."""
    for _ in range(2):
        before = watched._sampled_s
        wait_until(lambda before=before: watched._sampled_s != before)


def test_without_a_lease_there_is_nothing(node):
    assert GpuWatch().take() == GpuSpan(0.0, None, None)


def test_the_utilisation_is_counted_by_its_time(node):
    node.write(describe("GPU-a", util=25, used=7))
    watched = GpuWatch()
    start_s = time.monotonic()
    with watched.follow(CARD, jobs=1):
        wait_for_sample(watched)
        first = watched.take()
        assert 0 < first.seconds <= time.monotonic() - start_s
        assert first.busy_seconds == pytest.approx(0.25 * first.seconds)
        node.write(describe("GPU-a", util=100, used=9))
        wait_for_sample(watched)
        watched.take()
        time.sleep(0.05)
        start_s = time.monotonic()
        second = watched.take()
        assert second.busy_seconds == pytest.approx(second.seconds) and second.seconds >= 0.05
        assert (first.peak_bytes, second.peak_bytes) == (7 * MIB, 9 * MIB)
        third = watched.take()
        assert third.seconds <= time.monotonic() - start_s, "a span begins at the end of the last one"


def test_a_job_that_may_share_its_gpu_leases_its_share(node):
    node.write(describe("GPU-a", util=50))
    watched = GpuWatch()
    start_s = time.monotonic()
    with watched.follow(CARD, jobs=4):
        time.sleep(0.2)
        wait_for_sample(watched)
        span = watched.take()
    assert 0.2 / 4 <= span.seconds <= (time.monotonic() - start_s) / 4
    assert span.busy_seconds == pytest.approx(span.seconds / 2)


def test_a_mig_instance_has_a_memory_but_no_utilisation_and_the_log_says_so_once(node, caplog):
    node.write(describe("GPU-a", mig=1), describe("MIG-a", "mig", used=30, util=None, mig=None))
    watched = GpuWatch()
    with watched.follow(INSTANCE, jobs=1):
        for _ in range(3):
            wait_for_sample(watched)
            span = watched.take()
            assert span.seconds > 0 and (span.busy_seconds, span.peak_bytes) == (None, 30 * MIB)
    assert [record.message for record in caplog.records] == [
        "GPU 0 MIG-a: its utilisation is unknown: it is a MIG instance"
    ]


def test_a_driver_without_the_call(world, drivers):
    world.write(describe("GPU-a", util=25))
    code = """
from embedders.gpu.nvml import Gpu
from embedders.gpu.watch import GpuWatch
from support.tools import wait_until
watched = GpuWatch()
with watched.follow(Gpu(0, "GPU-a"), jobs=1):
    wait_until(lambda: watched._peak_bytes)
    span = watched.take()
print(span.seconds > 0, span.busy_seconds, span.peak_bytes)
"""
    paths = os.pathsep.join([str(world.repository), str(world.repository / "tests")])
    said = world.run("-c", code, LD_LIBRARY_PATH=str(drivers / "old"), PYTHONPATH=paths).splitlines()
    assert said == [
        "GPU 0 GPU-a: its utilisation is unknown: the driver does not report it",
        f"True None {604 * MIB}",
    ]


@pytest.mark.parametrize("call", ["nvmlDeviceGetUtilizationRates", "nvmlDeviceGetMemoryInfo_v2"])
def test_a_driver_that_fails_meanwhile_is_noted_once_and_stops_nothing(node, caplog, call):
    node.write(describe("GPU-a", util=25))
    watched = GpuWatch()
    with watched.follow(CARD, jobs=1):
        wait_for_sample(watched)
        assert watched.take().busy_seconds is not None
        node.write(describe("GPU-a", util=25), f"fail {call} * {LOST}")
        wait_until(lambda: caplog.records)
        for _ in range(2):
            time.sleep(0.05)
            span = watched.take()
            assert span.busy_seconds is None and span.seconds > 0
    (record,) = caplog.records
    assert "GPU 0 GPU-a: its utilisation is unknown from now on: NVML does not answer (GPU is lost)" in record.message


def test_a_driver_that_does_not_start_again_stops_nothing(node, caplog):
    node.write("fail nvmlInitWithFlags * 18")
    watched = GpuWatch()
    with watched.follow(CARD, jobs=1):
        wait_until(lambda: caplog.records)
        assert watched.take().busy_seconds is None
    assert "version mismatch" in caplog.text


def test_a_driver_that_hangs_holds_nobody_up_and_its_last_answer_does_not_count_for_ever(node, monkeypatch):
    node.write(describe("GPU-a", util=25))
    watched = GpuWatch()
    with watched.follow(CARD, jobs=1):
        wait_for_sample(watched)
        node.write(describe("GPU-a", util=25, slow=10))
        assert watched.take().busy_seconds is not None
        wait_until(lambda: time.monotonic() - watched._sampled_s > 0.5)
        monkeypatch.setattr(watch, "MAX_AGE_S", 0.4)
        start_s = time.monotonic()
        for _ in range(2):
            assert watched.take().busy_seconds is None
    assert time.monotonic() - start_s < 8, "it waited for the driver"
    for thread in threading.enumerate():
        if thread.name == "gpu-watch":
            thread.join(60)  # it asks this test's driver
