"""Which GPUs CUDA lets this process see: the bounds that it inherits and the pin that it sets.

Owns CUDA_VISIBLE_DEVICES and CUDA_DEVICE_ORDER. What an index means there is settled once, here: the place
in PCI bus order among the cards that this process may open. nvidia-smi prints it so, CUDA's guide says so,
and SLURM writes it so, both with device cgroups (numbered from 0 within the job) and without (the node's
numbers). CUDA itself counts like that only under CUDA_DEVICE_ORDER=PCI_BUS_ID; its default begins with the
fastest card. Hence the pin sets this too, and names a UUID, which means the same device in every order and
every container.
"""

import ctypes
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

from embedders.errors import GpuError
from embedders.gpu.nvml import Gpu

log = logging.getLogger(__name__)

_CUDA_ERROR_NOT_INITIALIZED = 3


def select_visible(gpus: list[Gpu], visible: str | None) -> list[Gpu]:
    """Return the devices that a value of CUDA_VISIBLE_DEVICES admits, by CUDA's rules.

    The list ends at the first entry that names no device (`-1` is the customary one), and one that names a
    device twice admits none. A card in MIG mode stands for its instances.

    Args:
        gpus: A snapshot.
        visible: The variable's value. None (it is not set) admits every device, "" admits none.
    """
    if visible is None:
        return gpus
    admitted: list[Gpu] = []
    for entry in visible.split(","):
        named = _find_named(gpus, entry.strip())
        if not named:
            break
        if any(gpu in admitted for gpu in named):
            return []
        admitted += named
    return admitted


def warn_of_order(gpus: list[Gpu]) -> None:
    """Say how an index is read where CUDA itself would have read it in another way."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    names = {gpu.name for gpu in gpus if gpu.mig_parent_uuid is None}
    if visible[:1].isdecimal() and len(names) > 1 and os.environ.get("CUDA_DEVICE_ORDER") != "PCI_BUS_ID":
        log.warning(
            "CUDA_VISIBLE_DEVICES=%r is read in the order of nvidia-smi, though CUDA's default would number "
            "these different cards by speed: name UUIDs, or set CUDA_DEVICE_ORDER=PCI_BUS_ID",
            visible,
        )


def is_cuda_running() -> bool:
    """Whether CUDA's driver was started in this process.

    The driver itself is asked, because torch is a bad witness: `torch.cuda.is_available()` starts it and
    `torch.cuda.is_initialized()` is still False.
    """
    try:
        driver = ctypes.CDLL("libcuda.so.1", mode=os.RTLD_NOW | os.RTLD_NOLOAD)
    except OSError:
        return False  # nobody in this process has even loaded it
    return driver.cuDeviceGetCount(ctypes.byref(ctypes.c_int())) != _CUDA_ERROR_NOT_INITIALIZED


def check_unpinned() -> None:
    """Make sure that a pin would still take effect: CUDA reads the variable when it starts, and never again.

    Raises:
        GpuError: CUDA runs in this process.
    """
    if is_cuda_running():
        raise GpuError(
            "CUDA already runs in this process, which can be pinned to a GPU no more: expected the lease to "
            "come first; call nothing of torch.cuda before it, or start a new process for the job"
        )


@contextmanager
def pinned(uuid: str) -> Iterator[None]:
    """Let CUDA see one device only, in this process and those that it starts; undone at the end."""
    pin = {"CUDA_VISIBLE_DEVICES": uuid, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    inherited = {name: os.environ.get(name) for name in pin}
    os.environ.update(pin)
    try:
        yield
    finally:
        for name, value in inherited.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _find_named(gpus: list[Gpu], entry: str) -> list[Gpu]:
    if entry.isdecimal():
        return [gpu for gpu in gpus if gpu.index == int(entry)]
    if not entry.startswith(("GPU-", "MIG-")):
        return []
    # The start of a UUID will do, as long as only one device's starts like that.
    uuids = [gpu.uuid for gpu in gpus if gpu.uuid and (gpu.uuid.startswith(entry) or gpu.mig_name == entry)]
    return [gpu for gpu in gpus if len(uuids) == 1 and uuids[0] in (gpu.uuid, gpu.mig_parent_uuid)]
