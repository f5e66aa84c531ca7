"""The GPUs that CUDA shows to this process: those that the environment allows, and the one it is pinned to.

Owns CUDA_VISIBLE_DEVICES and CUDA_DEVICE_ORDER. Only this module decides what an index means there: the place in PCI
bus order among the cards that this process may open. nvidia-smi prints this number, CUDA's guide describes it, and
SLURM sets it, both with device cgroups (numbered from 0 within the job) and without (the node's numbers). CUDA itself
uses this order only under CUDA_DEVICE_ORDER=PCI_BUS_ID; by default it begins with the fastest card. The pin therefore
sets this variable too, and names a UUID, which means the same device in every order and in every container.
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
    """Return the devices that a value of CUDA_VISIBLE_DEVICES makes visible, by CUDA's rules.

    The list ends at the first entry that names no device (usually `-1`). A list that names a device twice makes none
    visible. A card in MIG mode stands for its instances.

    Args:
        gpus: A snapshot.
        visible: The variable's value. With None (it is not set) every device is visible, with "" none.
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
    """Log a warning if CUDA by default would read the indices in CUDA_VISIBLE_DEVICES in another order."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    names = {gpu.name for gpu in gpus if gpu.mig_parent_uuid is None}
    if visible[:1].isdecimal() and len(names) > 1 and os.environ.get("CUDA_DEVICE_ORDER") != "PCI_BUS_ID":
        log.warning(
            "CUDA_VISIBLE_DEVICES=%r is read in the order of nvidia-smi, though CUDA's default would number "
            "these different cards by speed: name UUIDs, or set CUDA_DEVICE_ORDER=PCI_BUS_ID",
            visible,
        )


def is_cuda_running() -> bool:
    """Return whether CUDA's driver was initialised in this process.

    The driver itself is asked, because torch does not know: `torch.cuda.is_available()` initialises the driver, and
    `torch.cuda.is_initialized()` is still False.
    """
    try:
        driver = ctypes.CDLL("libcuda.so.1", mode=os.RTLD_NOW | os.RTLD_NOLOAD)
    except OSError:
        return False  # nothing in this process has loaded it
    return driver.cuDeviceGetCount(ctypes.byref(ctypes.c_int())) != _CUDA_ERROR_NOT_INITIALIZED


def check_unpinned() -> None:
    """Raise if it is too late to pin this process: CUDA reads the variable only when it starts.

    Raises:
        GpuError: CUDA already runs in this process.
    """
    if is_cuda_running():
        raise GpuError(
            "CUDA already runs in this process, which can no longer be pinned to a GPU: expected the lease to "
            "come first; call nothing of torch.cuda before it, or start a new process for the job"
        )


@contextmanager
def pinned(uuid: str) -> Iterator[None]:
    """Show only one device to CUDA while the block runs, in this process and in those that it starts."""
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
    # The beginning of a UUID is enough if only one device has a UUID that begins so.
    uuids = [gpu.uuid for gpu in gpus if gpu.uuid and (gpu.uuid.startswith(entry) or gpu.mig_name == entry)]
    return [gpu for gpu in gpus if len(uuids) == 1 and uuids[0] in (gpu.uuid, gpu.mig_parent_uuid)]
