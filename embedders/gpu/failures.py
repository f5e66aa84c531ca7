"""What an exception from a model means: the GPU is lost or out of memory, or the embedder has a bug."""

import os
import re

import torch

from embedders.errors import EmbedderError, GpuError, GpuLostError, TarquetError, describe_error

# Since 2.8, torch raises its own class for errors that the device reports.
_ACCELERATOR_ERRORS = (torch.AcceleratorError,) if hasattr(torch, "AcceleratorError") else ()
# Not every error that says "cuda": "found at least two devices, cuda:0 and cpu" is a bug in the embedder.
_GPU_WORDS = re.compile(
    r"CUDA (unknown )?(error|failure)|CUDA (driver|runtime|initialization)|No CUDA GPUs|\bcuda[A-Z]\w+\(\)"
    r"|CU(DNN|BLAS)_STATUS_|NVIDIA driver|uncorrectable|\bECC\b"
)
# The device reports these, but they are bugs in the embedder: every GPU would report them.
_DEFECT_WORDS = re.compile(r"device-side assert|_STATUS_(NOT_SUPPORTED|BAD_PARAM|INVALID_VALUE)")
# Memory that torch does not manage: of the CUDA driver, cuBLAS, cuDNN, DALI
_MEMORY_WORDS = re.compile(r"out of memory|ALLOC_FAILED|MemoryAllocation")


def is_out_of_memory(error: Exception, device: str) -> bool:
    """Return whether the device is out of memory, as reported by torch or by another library."""
    is_torchs = isinstance(error, torch.cuda.OutOfMemoryError)
    return is_torchs or (device == "cuda" and bool(_MEMORY_WORDS.search(str(error))))


def explain_failure(error: Exception, where: str, device: str) -> TarquetError:
    """Return a GPU error or an error of the embedder; only after a GPU error can a retry on another GPU help."""
    return explain_gpu_failure(error, where, device) or EmbedderError(
        f"{where}: the model raised {describe_error(error)}"
    )


def explain_gpu_failure(error: Exception, where: str, device: str) -> GpuError | None:
    """Return the GPU error that an exception means; `None` if the GPU did not cause it."""
    reason = describe_error(error)
    if is_out_of_memory(error, device):
        return GpuError(
            f"{where}: out of memory on the device: {reason}; expected enough; use a smaller model or a larger GPU"
        )
    is_gpus = isinstance(error, _ACCELERATOR_ERRORS) or _GPU_WORDS.search(str(error))
    if device == "cuda" and is_gpus and not _DEFECT_WORDS.search(str(error)):
        uuid = os.environ.get("CUDA_VISIBLE_DEVICES", "not pinned")
        return GpuLostError(f"{where}: GPU {uuid} failed: {reason}; expected it to work; run again on another GPU")
    return None
