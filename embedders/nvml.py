"""Placeholder until the lease lands: no driver is ever seen."""


def has_driver() -> bool:
    """Say whether there is an NVIDIA driver."""
    return False
