"""Placeholder until the lease lands."""

from embedders.errors import GpuError


def lease_gpu(shard: str):
    """Refuse."""
    raise GpuError(f"{shard}: GPUs cannot be leased yet; set device: cpu")
