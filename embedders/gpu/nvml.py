"""What the NVIDIA driver reports about the GPUs of this node, as frozen snapshots.

Owns every call of NVML (by nvidia-ml-py) and hides how drivers differ. `lease.py` decides which device may be used.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pynvml

from embedders.errors import GpuError, NoDriverError

# Exists while the driver is loaded. A container sees it even if the driver's libraries were not mounted.
KERNEL_MODULE = Path("/proc/driver/nvidia/version")
_NO_DRIVER = {pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, pynvml.NVML_ERROR_DRIVER_NOT_LOADED}

# The device works, but this one query is not answered: an older driver lacks the function or the version of its
# struct, a MIG instance has no utilisation, a container may not list processes.
_NOT_ANSWERED = {
    pynvml.NVML_ERROR_NOT_SUPPORTED,
    pynvml.NVML_ERROR_FUNCTION_NOT_FOUND,
    pynvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH,
    pynvml.NVML_ERROR_NO_PERMISSION,
}

_COMPUTE_MODES = {
    pynvml.NVML_COMPUTEMODE_DEFAULT: "default",
    pynvml.NVML_COMPUTEMODE_EXCLUSIVE_THREAD: "exclusive",  # the driver treats it as exclusive-process
    pynvml.NVML_COMPUTEMODE_EXCLUSIVE_PROCESS: "exclusive",
    pynvml.NVML_COMPUTEMODE_PROHIBITED: "prohibited",
}


@dataclass(frozen=True)
class Gpu:
    """One device at one moment: a whole card, or one MIG instance of a card.

    A field that the driver does not report is None.

    Attributes:
        index: Place in PCI bus order among the cards that this process may open. This is the number that nvidia-smi
            prints, and that CUDA uses under `CUDA_DEVICE_ORDER=PCI_BUS_ID`. None for a card that this process may
            not open. A MIG instance has the index of its card.
        uuid: `GPU-...`, or `MIG-...` for an instance; empty if the driver reports none.
        name: The product's name.
        total_bytes: Size of the memory.
        free_bytes: Free memory.
        used_bytes: Memory in use, without what the driver reserves for itself, unless the driver is too old to
            report that separately.
        utilization_percent: Share of the last sampling period in which a kernel ran.
        process_count: Number of compute processes. In a container it may be 0 although processes run outside.
        compute_mode: "default", "exclusive" (one process at a time) or "prohibited".
        mig_parent_uuid: UUID of the card of this instance.
        mig_name: The instance's other name, `MIG-<UUID of the card>/<GPU instance>/<compute instance>`.
        problem: Why no job can run on the device, whether or not it is in use.
    """

    index: int | None = None
    uuid: str = ""
    name: str | None = None
    total_bytes: int | None = None
    free_bytes: int | None = None
    used_bytes: int | None = None
    utilization_percent: int | None = None
    process_count: int | None = None
    compute_mode: str | None = None
    mig_parent_uuid: str | None = None
    mig_name: str | None = None
    problem: str | None = None

    @property
    def label(self) -> str:
        """The device in an error or a log: `GPU 3 GPU-8932f937-...`."""
        return f"GPU {'?' if self.index is None else self.index} {self.uuid or 'of unknown UUID'}"


@contextmanager
def connect() -> Iterator[None]:
    """Keep NVML initialised while the block runs; blocks may be nested, since NVML counts them.

    Without persistence mode, the driver shuts cards down when no process uses NVML, and starting them again takes a
    second or more. Use one connection for several snapshots.

    Raises:
        NoDriverError: This machine has no driver.
        GpuError: The driver does not work.
    """
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        if error.value in _NO_DRIVER:
            raise NoDriverError(
                f"NVML does not start ({error}): expected an NVIDIA driver on this machine; "
                "use the device 'cpu', or in a container pass the GPUs through (--nv, --gpus all)"
            ) from error
        raise GpuError(
            f"NVML does not start ({error}): expected a working NVIDIA driver; see what nvidia-smi says "
            "(after an update of the driver: reboot)"
        ) from error
    try:
        yield
    finally:
        pynvml.nvmlShutdown()


def has_driver() -> bool:
    """Return whether this machine has an NVIDIA driver, even if it is broken or a container cannot use it."""
    try:
        with connect():
            return True
    except NoDriverError:
        return KERNEL_MODULE.exists()
    except GpuError:
        return True


def read_gpus() -> list[Gpu]:
    """Return a snapshot of every device: each card in PCI bus order, followed by its MIG instances.

    A device that cannot be queried is in the list too, with its `problem`.

    Raises:
        NoDriverError: This machine has no driver.
        GpuError: The driver does not work.
    """
    gpus: list[Gpu] = []
    index = 0
    with connect():
        try:
            count = pynvml.nvmlDeviceGetCount()
        except pynvml.NVMLError as error:
            raise GpuError(f"NVML cannot count the GPUs ({error}); see what nvidia-smi says") from error
        for place in range(count):
            card, *instances = _read_card(place, index)
            gpus += [card, *instances]
            index += card.index is not None
    return gpus


@contextmanager
def open_gpu(uuid: str) -> Iterator[Callable[[], Gpu]]:
    """Yield a function that reads the memory and the utilisation of a device, and nothing else of it.

    Raises:
        GpuError: The driver does not work or does not know the device; the function raises it too.
    """
    with connect():
        handle = _call(pynvml.nvmlDeviceGetHandleByUUID, uuid)
        yield lambda: Gpu(uuid=uuid, **_call(_read_load, handle))


def _call(question: Callable, *args: Any) -> Any:
    try:
        return question(*args)
    except pynvml.NVMLError as error:
        raise GpuError(f"NVML does not answer ({error}); see what nvidia-smi says") from error


def _read_card(place: int, index: int) -> list[Gpu]:
    try:
        handle = pynvml.nvmlDeviceGetHandleByIndex(place)
    except pynvml.NVMLError as error:
        # SLURM's device cgroup hides a card from CUDA too, and CUDA then does not count it.
        is_hidden = error.value == pynvml.NVML_ERROR_NO_PERMISSION
        return [Gpu(index=None if is_hidden else index, problem=f"NVML cannot open it ({error})")]
    card = _read_device(handle, index=index)
    if card.problem:
        return [card]
    try:
        mig_mode = _ask(pynvml.nvmlDeviceGetMigMode, handle)  # [now, after the next reset]
        if not mig_mode or mig_mode[0] != pynvml.NVML_DEVICE_MIG_ENABLE:
            return [card]
        instances = list(_read_instances(handle, card))
    except pynvml.NVMLError as error:
        return [replace(card, problem=f"NVML cannot query its MIG instances ({error})")]
    return [replace(card, problem=f"in MIG mode: its instances ({len(instances)}) are leased"), *instances]


def _read_instances(card_handle: Any, card: Gpu) -> Iterator[Gpu]:
    for place in range(pynvml.nvmlDeviceGetMaxMigDeviceCount(card_handle)):
        try:
            handle = pynvml.nvmlDeviceGetMigDeviceHandleByIndex(card_handle, place)
        except pynvml.NVMLError as error:
            if error.value == pynvml.NVML_ERROR_NOT_FOUND:
                continue  # an empty place: the numbers of instances may have gaps
            raise
        gpu_instance = _ask(pynvml.nvmlDeviceGetGpuInstanceId, handle)
        compute_instance = _ask(pynvml.nvmlDeviceGetComputeInstanceId, handle)
        yield _read_device(
            handle,
            index=card.index,
            compute_mode=card.compute_mode,  # an instance does not report its own
            mig_parent_uuid=card.uuid,
            mig_name=f"MIG-{card.uuid}/{gpu_instance}/{compute_instance}",
        )


def _read_device(handle: Any, **known: Any) -> Gpu:
    """Query a device field by field; if the device itself fails, keep the fields that were read before."""
    fields = dict(known)
    try:
        fields["uuid"] = _text(_ask(pynvml.nvmlDeviceGetUUID, handle)) or ""
        fields["name"] = _text(_ask(pynvml.nvmlDeviceGetName, handle))
        fields |= _read_load(handle)
        # By its versioned name: the plain one raises an error of another class if the driver lacks the function.
        processes = _ask(pynvml.nvmlDeviceGetComputeRunningProcesses_v3, handle)
        if processes is not None:
            fields["process_count"] = len(processes)
        if "compute_mode" not in fields:
            fields["compute_mode"] = _COMPUTE_MODES.get(_ask(pynvml.nvmlDeviceGetComputeMode, handle))
    except pynvml.NVMLError as error:
        fields["problem"] = f"NVML cannot query it ({error})"
    gpu = Gpu(**fields)
    if gpu.problem is None and not gpu.uuid:
        return replace(gpu, problem="it reports no UUID to pin it by")
    if gpu.problem is None and gpu.compute_mode == "prohibited":
        return replace(gpu, problem="compute mode 'prohibited' (nvidia-smi --compute-mode=0 allows compute)")
    return gpu


def _read_load(handle: Any) -> dict[str, int]:
    fields: dict[str, int] = {}
    # In the second version, `used` does not include what the driver reserves for itself, 600 MB on a large card.
    memory = _ask(pynvml.nvmlDeviceGetMemoryInfo, handle, pynvml.nvmlMemory_v2)
    memory = memory or _ask(pynvml.nvmlDeviceGetMemoryInfo, handle)
    if memory:
        fields |= {"total_bytes": memory.total, "free_bytes": memory.free, "used_bytes": memory.used}
    if utilization := _ask(pynvml.nvmlDeviceGetUtilizationRates, handle):
        fields["utilization_percent"] = utilization.gpu
    return fields


def _ask(question: Callable, *args: Any) -> Any:
    try:
        return question(*args)
    except pynvml.NVMLError as error:
        if error.value in _NOT_ANSWERED:
            return None
        raise


def _text(answer: str | bytes | None) -> str | None:
    """Return an answer as text; some releases of nvidia-ml-py return bytes."""
    return answer.decode() if isinstance(answer, bytes) else answer
