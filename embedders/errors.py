"""The errors that Tarquet raises on purpose: one root and a kind for each thing a user can mend.

Every message is one line with three parts: where and what (with `!r`), what was expected, what to do.
`cli.py` is the only place that turns them into an exit code.
"""


class TarquetError(Exception):
    """Root of all the errors below; anything else that escapes is a defect of this project."""


class ConfigError(TarquetError):
    """A key or value of `config.yaml`, or an option of the command line, cannot be used."""


class EmbedderError(TarquetError):
    """The embedder class cannot be found or built, or breaks the contract of `ImageEmbedder`."""


class ShardError(TarquetError):
    """A shard is missing or damaged, or too many of its samples failed."""


class OutputError(TarquetError):
    """A result cannot be written."""


class GpuError(TarquetError):
    """No GPU can be leased, or the one that was leased is lost."""


class NoDriverError(GpuError):
    """This machine has no NVIDIA driver: the only case in which `device: auto` means the CPU."""


class GpuLostError(GpuError):
    """The leased GPU failed at work (XID, ECC, fallen off the bus): a retry is to take another one."""
