"""Choice and lease of a GPU: what counts as free, and in which order devices are tried.

Owns the decision. `nvml.py` reads the devices, `locks.py` locks them, `visibility.py` reads and sets
CUDA_VISIBLE_DEVICES. Snakemake counts GPUs but does not say which one a job gets, so jobs that start together all
see the same card idle. NVML therefore only proposes a card. A job gets it if it can lock it and then still finds it
free.
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
_PAUSE_S = (0.2, 0.6)  # drawn at random each time, so that jobs that started together do not stay in step
_NOTICE_S = 60.0


def count_slots(gpu: Gpu, terms: Terms) -> int:
    """Return how many jobs fit on a device: one if its compute mode allows only one process."""
    return 1 if gpu.compute_mode == "exclusive" else terms.jobs_per_gpu


def why_busy(gpu: Gpu, terms: Terms, siblings: int = 0) -> str | None:
    """Return why a device is not free for one more job; `None` if it is free.

    PIDs are not compared, because in a container NVML reports those of the host, or none. On a shared card, a
    sibling's process therefore looks like anyone else's. Each sibling is expected to have one CUDA process and
    its share of the memory. Anything beyond that belongs to a process outside Tarquet, or leaves too little for
    this job. One case goes unnoticed: a foreign process that starts before a sibling begins to compute is taken
    for that sibling.

    Args:
        gpu: The device as it is now.
        terms: What counts as free.
        siblings: Number of jobs that hold a slot of the device.
    """
    slots = count_slots(gpu, terms)
    if gpu.problem:
        return gpu.problem
    if siblings >= slots:
        return f"leased by jobs that share it: {siblings}"
    if gpu.process_count is None and gpu.used_bytes is None:
        return "the driver reports neither its processes nor its memory, so it may be in use"
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
        siblings: Number of jobs that hold a slot of each, by UUID.
    """
    return sorted(
        gpus,
        key=lambda gpu: (
            siblings[gpu.uuid],  # spread over the cards before sharing one
            gpu.process_count or 0,  # another process slows the job down, even where the terms allow it
            -((gpu.free_bytes or 0) // GIB),  # then the most free memory, in whole GiB: idle cards differ by some MB
            gpu.utilization_percent or 0,  # then the least used
            gpu.index,  # then an order that is the same in all jobs, so that logs are easy to follow
            gpu.uuid,
        ),
    )


@contextmanager
def lease_gpu(shard: str = "", terms: Terms = Terms()) -> Iterator[Gpu]:  # noqa: B008 (it is frozen)
    """Lease a GPU while the block runs, and hide all others from CUDA.

    Enter the block before anything starts CUDA in this process. Afterwards the environment is as it was before.

    Args:
        shard: What the job works on, for the list of leases.
        terms: What counts as free, and how long to wait.

    Yields:
        The device as it was when the lease began.

    Raises:
        NoDriverError: This machine has no driver.
        GpuError: No device became free in time, no device can be used at all, or this process cannot be pinned.
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
            # While the other cards are busy, a card that failed is the only free one: every new job would get it and
            # fail. If all cards have failed, the job itself may be the cause, so they are tried again.
            suspects = [gpu for gpu in usable if locks.is_suspect(folder, gpu.uuid)]
            if suspects != usable:
                reasons |= {gpu.label: "it failed during a job a few minutes ago" for gpu in suspects}
                usable = [gpu for gpu in usable if gpu not in suspects]
            siblings = {gpu.uuid: len(locks.find_leased_slots(folder, gpu.uuid)) for gpu in usable}
            for gpu in rank_gpus(usable, siblings):
                try:
                    return _claim(gpu, folder, shard, terms, siblings[gpu.uuid])
                except NotFree as reason:
                    reasons[gpu.label] = str(reason)
            now_s = time.monotonic()
            # Waiting helps while a device is busy, but not if no device is visible or all have a problem.
            if not usable or now_s - start_s >= terms.gpu_wait_timeout_s:
                raise _no_gpu(reasons, now_s - start_s)
            if now_s >= notice_s:
                log.warning("waiting for a GPU since %.0f s: %s", now_s - start_s, _join(reasons))
                notice_s += _NOTICE_S
            time.sleep(min(random.uniform(*_PAUSE_S), start_s + terms.gpu_wait_timeout_s - now_s))
            gpus = nvml.read_gpus()


def _claim(gpu: Gpu, folder: Path, shard: str, terms: Terms, siblings: int) -> tuple[Gpu, ExitStack]:
    """Lock a device and check it again, since another process may have started after the snapshot.

    Only the job that holds the card's lock decides about the card. A job with a card of its own keeps that lock. A
    job that shares the card keeps the lock of a slot instead. So jobs that share a card decide one at a time:
    otherwise, each of two could take a foreign process for the other job's.
    """
    if reason := why_busy(gpu, terms, siblings):
        raise NotFree(reason)
    with ExitStack() as held:
        lock = held.enter_context(locks.locked(locks.card_path(folder, gpu.uuid)))
        if len(locks.find_leased_slots(folder, gpu.uuid)) > siblings:
            raise NotFree("another job took a slot just now")
        now = next((other for other in nvml.read_gpus() if other.uuid == gpu.uuid), None)
        if now is None:
            raise NotFree("it is no longer there")
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
        return GpuError("the driver lists no GPU: expected at least one; see what nvidia-smi says")
    return GpuError(
        f"no GPU to lease after {waited_s:.0f} s: {_join(reasons)}; "
        "expected one that is visible, idle and not leased: free one, make more visible, wait longer, or use the "
        "device 'cpu'"
    )


def _join(reasons: Mapping[str, str]) -> str:
    return "; ".join(f"{label}: {reason}" for label, reason in reasons.items())
