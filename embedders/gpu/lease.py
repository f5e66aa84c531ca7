"""Which GPU a job gets: what counts as free, the order of choice, and the lease.

Owns the decision. `nvml.py` knows the devices, `locks.py` the locks, `visibility.py` the bounds and the
pin. Snakemake counts GPUs but names none, so jobs that start together all see the same card idle. Here NVML
only proposes: the card is the job's that gets its lock and then still finds it free.
"""

import logging
import os
import random
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from embedders.errors import GpuError, GpuLostError
from embedders.gpu import locks, nvml
from embedders.gpu.lock_folder import open_folder
from embedders.gpu.locks import NotFree
from embedders.gpu.nvml import Gpu
from embedders.gpu.terms import Terms
from embedders.gpu.visibility import check_unpinned, pinned, select_visible, warn_of_order

log = logging.getLogger(__name__)

GIB, MIB = 1 << 30, 1 << 20
_PAUSE_S = (0.2, 0.6)  # drawn anew each time, or jobs that started together would stay in step
_NOTICE_S = 60.0


def count_slots(gpu: Gpu, terms: Terms) -> int:
    """Return how many jobs fit on a device: one where its compute mode lets in one process only."""
    return 1 if gpu.compute_mode == "exclusive" else terms.jobs_per_gpu


def why_busy(gpu: Gpu, terms: Terms, siblings: int = 0) -> str | None:
    """Say why a device is not free for one more job; None if it is.

    PIDs are not compared: in a container NVML reports the host's, or none. So on a shared card nothing
    tells a sibling's process from a stranger's, only what the siblings can account for: one CUDA process
    each, and a share of the memory. Anything beyond is a stranger's, or leaves this job short of its own
    share. What this cannot see: a stranger who comes while a sibling has not begun to compute passes for
    the sibling.

    Args:
        gpu: The device as it is now.
        terms: What counts as free.
        siblings: How many jobs hold a slot of the device.
    """
    slots = count_slots(gpu, terms)
    if gpu.problem:
        return gpu.problem
    if siblings >= slots:
        return f"leased by jobs that share it: {siblings}"
    if gpu.process_count is None and gpu.used_bytes is None:
        return "the driver tells neither its processes nor its memory, so nobody knows whether it is free"
    most = terms.gpu_max_processes + siblings
    if gpu.process_count is not None and gpu.process_count > most:
        return f"compute processes: {gpu.process_count} (at most {most} expected)"
    if gpu.used_bytes is not None:
        most_bytes = terms.gpu_max_used_mb * MIB + (gpu.total_bytes or 0) * siblings // slots
        if gpu.used_bytes > most_bytes:
            return f"{gpu.used_bytes / GIB:.2f} GiB in use (at most {most_bytes / GIB:.2f} expected)"
    return None


def rank_gpus(gpus: list[Gpu], siblings: Mapping[str, int]) -> list[Gpu]:
    """Return devices in the order in which a job should try them.

    Args:
        gpus: Devices that have a UUID.
        siblings: How many jobs hold a slot of each, by UUID.
    """
    return sorted(
        gpus,
        key=lambda gpu: (
            siblings[gpu.uuid],  # spread over the cards before sharing one
            gpu.process_count or 0,  # a stranger slows the job down, even one whom the terms allow
            -((gpu.free_bytes or 0) // GIB),  # then the most room, in whole GiB: idle cards differ by some MB
            gpu.utilization_percent or 0,  # then the quietest
            gpu.index,  # then any order on which all jobs agree, so that a log can be followed
            gpu.uuid,
        ),
    )


@contextmanager
def lease_gpu(shard: str = "", terms: Terms = Terms()) -> Iterator[Gpu]:  # noqa: B008 (it is frozen)
    """Hold a GPU for the time of a job, and let CUDA see no other one.

    Enter it before anything starts CUDA in this process. At the end the environment is as it was before.

    Args:
        shard: What the job works on; it is shown to whoever looks at the leases.
        terms: What counts as free, and how long to wait.

    Yields:
        The device as it was when the lease began.

    Raises:
        NoDriverError: There is no driver on this machine.
        GpuError: No device became free in time, none ever can, or this process cannot be pinned.
    """
    if locks.is_holding():
        raise GpuError("this process holds a GPU already: expected one lease at a time; leave the first one")
    check_unpinned()
    folder = open_folder()
    with ExitStack() as lease:
        gpu, held = _wait_for_gpu(folder, shard, terms)
        lease.enter_context(held)
        lease.enter_context(pinned(gpu.uuid))
        log.info("leased %s (%s)", gpu.label, gpu.name)
        try:
            yield gpu
        except GpuLostError:
            locks.note_failure(folder, gpu.uuid)
            raise


def _wait_for_gpu(folder: Path, shard: str, terms: Terms) -> tuple[Gpu, ExitStack]:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    start_s = notice_s = time.monotonic()
    with nvml.connect():
        gpus = nvml.read_gpus()
        warn_of_order(gpus)
        while True:
            admitted = select_visible(gpus, visible)
            usable = [gpu for gpu in admitted if not gpu.problem]
            reasons = {gpu.label: f"not in CUDA_VISIBLE_DEVICES={visible!r}" for gpu in gpus}
            reasons |= {gpu.label: gpu.problem for gpu in admitted if gpu.problem}
            # Where all the others are busy, the card that failed is the only free one, and each job that comes would
            # fail on it in its turn. Where all have failed, the fault may be the job's own.
            suspects = [gpu for gpu in usable if locks.is_suspect(folder, gpu.uuid)]
            if suspects != usable:
                reasons |= {gpu.label: "it failed at work a few minutes ago" for gpu in suspects}
                usable = [gpu for gpu in usable if gpu not in suspects]
            siblings = {gpu.uuid: len(locks.find_leased_slots(folder, gpu.uuid)) for gpu in usable}
            for gpu in rank_gpus(usable, siblings):
                try:
                    return _claim(gpu, folder, shard, terms, siblings[gpu.uuid])
                except NotFree as reason:
                    reasons[gpu.label] = str(reason)
            now_s = time.monotonic()
            # Waiting helps while a device is busy, not where none is admitted or each has a problem.
            if not usable or now_s - start_s >= terms.gpu_wait_timeout_s:
                raise _no_gpu(reasons, now_s - start_s)
            if now_s >= notice_s:
                log.warning("waiting for a GPU since %.0f s: %s", now_s - start_s, _join(reasons))
                notice_s += _NOTICE_S
            time.sleep(min(random.uniform(*_PAUSE_S), start_s + terms.gpu_wait_timeout_s - now_s))
            gpus = nvml.read_gpus()


def _claim(gpu: Gpu, folder: Path, shard: str, terms: Terms, siblings: int) -> tuple[Gpu, ExitStack]:
    """Locks a device and looks at it again: since the snapshot a stranger may have come.

    Whoever holds the card's lock decides about the card. A job that has the card to itself keeps that lock;
    one that shares it keeps the lock of a slot. So those who share decide one by one: of two at a time,
    each would take a stranger's process for the other's.
    """
    if reason := why_busy(gpu, terms, siblings):
        raise NotFree(reason)
    with ExitStack() as held:
        lock = held.enter_context(locks.locked(locks.card_path(folder, gpu.uuid)))
        if len(locks.find_leased_slots(folder, gpu.uuid)) > siblings:
            raise NotFree("another job took a slot just now")
        now = next((other for other in nvml.read_gpus() if other.uuid == gpu.uuid), None)
        if now is None:
            raise NotFree("it is gone")
        if reason := why_busy(now, terms, siblings):
            raise NotFree(reason)
        if count_slots(gpu, terms) > 1:
            with held.pop_all():
                lock = _lock_slot(held, folder, gpu, terms.jobs_per_gpu)
        locks.write_holder(lock, shard)
        return now, held.pop_all()


def _lock_slot(held: ExitStack, folder: Path, gpu: Gpu, slots: int) -> int:
    for slot in range(slots):
        try:
            return held.enter_context(locks.locked(locks.slot_path(folder, gpu.uuid, slot)))
        except NotFree:
            continue
    raise NotFree(f"none of its {slots} slots can be locked")


def _no_gpu(reasons: Mapping[str, str], waited_s: float) -> GpuError:
    if not reasons:
        return GpuError("the driver lists no GPU: expected one at least; see what nvidia-smi says")
    return GpuError(
        f"no GPU to lease after {waited_s:.0f} s: {_join(reasons)}; "
        "expected one that is admitted, idle and not leased: free one, admit more, wait longer, or use the device "
        "'cpu'"
    )


def _join(reasons: Mapping[str, str]) -> str:
    return "; ".join(f"{label}: {reason}" for label, reason in reasons.items())
