"""The device of a job: a leased GPU or the CPU. A job never falls back to the CPU because no GPU is free.

Owns the choice; `lease.py` owns the lease.
"""

import ctypes
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress

from embedders.gpu.lease import count_slots, lease_gpu
from embedders.gpu.nvml import has_driver
from embedders.gpu.terms import Terms
from embedders.gpu.watch import GpuWatch

log = logging.getLogger(__name__)

# From glibc's malloc.h
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


@contextmanager
def pin_device(work: str, device: str, terms: Terms, watch: GpuWatch | None = None) -> Iterator[str]:
    """Choose a device, and lease it while the block runs.

    Args:
        work: What the job works on, for the list of leases.
        device: `"auto"` (a GPU where there is a driver, otherwise the CPU), `"gpu"` or `"cpu"`.
        terms: What counts as a free GPU, and how long to wait for one.
        watch: Follows the GPU while it is leased.

    Yields:
        `"cuda"`, with `CUDA_VISIBLE_DEVICES` set to the one GPU that is leased; or `"cpu"`.

    Raises:
        GpuError: A GPU was asked for, or `auto` found a driver, and none can be leased.
    """
    if device == "cpu" or (device == "auto" and not has_driver()):
        log.info("computing on the CPU (%s)", "as asked" if device == "cpu" else "no NVIDIA driver here")
        # Otherwise a library that looks for a GPU itself would use one that is not leased.
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        keep_freed_memory()
        yield "cpu"
        return
    with lease_gpu(work, terms) as gpu, watch.follow(gpu, count_slots(gpu, terms)) if watch else nullcontext():
        yield "cuda"


def keep_freed_memory() -> None:
    """Make glibc keep the memory that a layer frees for the next layer, instead of returning it to the kernel.

    Without this, a network on the CPU spends half of its time in page faults: for 96 images, EfficientNet-Lite0 takes
    5.4 CPU seconds without it and 2.7 with it (benchmarks/README.md).
    """
    with suppress(OSError, AttributeError):  # not glibc
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
        libc.mallopt(_M_MMAP_THRESHOLD, 2**30)
