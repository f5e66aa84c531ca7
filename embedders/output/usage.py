"""What shards used of processors, memory and GPUs: the record in the footer of each ledger, and its totals.

Only this module writes, reads and describes that JSON. A ledger from before has no such record: the usage of its
shard counts as unknown, not as zero.
"""

from dataclasses import asdict, dataclass, fields
from typing import Any, Self

from embedders.output.timings import describe_duration

SECONDS_PER_HOUR = 3600


@dataclass(frozen=True)
class Usage:
    """What a job used from the end of its previous shard, or from its start, to the end of this one.

    Attributes:
        cpu_seconds: CPU time of the job's process, and of its children that ended.
        peak_memory_bytes: Peak of the process's memory (RSS) since the start of the job.
        gpu_seconds: Time for which the job leased its GPU, times its share if several jobs may share the GPU; 0 on a
            CPU.
        gpu_busy_seconds: The part of these in which a kernel of any process ran; `None` if it is unknown.
        gpu_peak_memory_bytes: Most memory of the GPU in use by all processes; `None` if it is unknown.
    """

    cpu_seconds: float
    peak_memory_bytes: int
    gpu_seconds: float = 0.0
    gpu_busy_seconds: float | None = None
    gpu_peak_memory_bytes: int | None = None

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> Self:
        """Build an instance from the dict of `as_json`; keys that this version does not know are ignored."""
        return cls(**{item.name: stored[item.name] for item in fields(cls) if item.name in stored})

    def as_json(self) -> dict[str, Any]:
        """Return the record as a dict for JSON."""
        return asdict(self)

    def describe(self) -> str:
        """Return the record of one shard as a phrase."""
        busy = ""
        if self.gpu_seconds:
            share = "unknown" if self.gpu_busy_seconds is None else f"{self.gpu_busy_seconds / self.gpu_seconds:.0%}"
            busy = f", GPU utilisation {share}"
        return f"{self.cpu_seconds:.1f} s of CPU time, {describe_bytes(self.peak_memory_bytes)} of memory{busy}"


@dataclass
class UsageTotals:
    """What the shards of a run used, whichever run of Snakemake embedded them.

    Attributes:
        shards: Number of shards whose usage is known; the sums are theirs.
        unknown_shards: Number of shards whose ledger has no record of it.
        cpu_seconds: Sum over the shards.
        peak_memory_bytes: Largest peak of a job.
        gpu_seconds: Sum over the shards.
        gpu_images: Images embedded in `gpu_seconds`.
        gpu_measured_seconds: The part of `gpu_seconds` for which it is known how busy the GPU was.
        gpu_busy_seconds: The part of `gpu_measured_seconds` in which a kernel ran.
        gpu_unmeasured_shards: Number of shards that leased a GPU, and for which it is unknown how busy it was.
        gpu_peak_memory_bytes: Most memory of a GPU in use; `None` if it is unknown.
    """

    shards: int = 0
    unknown_shards: int = 0
    cpu_seconds: float = 0.0
    peak_memory_bytes: int = 0
    gpu_seconds: float = 0.0
    gpu_images: int = 0
    gpu_measured_seconds: float = 0.0
    gpu_busy_seconds: float = 0.0
    gpu_unmeasured_shards: int = 0
    gpu_peak_memory_bytes: int | None = None

    def add(self, usage: Usage | None, images: int) -> None:
        """Add a shard with its number of embedded images."""
        if usage is None:
            self.unknown_shards += 1
            return
        self.shards += 1
        self.cpu_seconds = round(self.cpu_seconds + usage.cpu_seconds, 3)
        self.peak_memory_bytes = max(self.peak_memory_bytes, usage.peak_memory_bytes)
        if usage.gpu_peak_memory_bytes is not None:
            self.gpu_peak_memory_bytes = max(self.gpu_peak_memory_bytes or 0, usage.gpu_peak_memory_bytes)
        if not usage.gpu_seconds:
            return
        self.gpu_images += images
        self.gpu_seconds = round(self.gpu_seconds + usage.gpu_seconds, 3)
        if usage.gpu_busy_seconds is None:
            self.gpu_unmeasured_shards += 1
        else:
            self.gpu_measured_seconds = round(self.gpu_measured_seconds + usage.gpu_seconds, 3)
            self.gpu_busy_seconds = round(self.gpu_busy_seconds + usage.gpu_busy_seconds, 3)

    @property
    def gpu_hours(self) -> float:
        """Hours for which GPUs were leased."""
        return self.gpu_seconds / SECONDS_PER_HOUR

    @property
    def images_per_gpu_hour(self) -> float | None:
        """Images embedded per hour of a leased GPU; `None` if none was leased."""
        return self.gpu_images / self.gpu_hours if self.gpu_seconds else None

    @property
    def gpu_idle_share(self) -> float | None:
        """Share of the measured time in which no kernel ran; `None` if none was measured."""
        return 1 - self.gpu_busy_seconds / self.gpu_measured_seconds if self.gpu_measured_seconds else None

    def as_json(self) -> dict[str, Any]:
        """Return the sums, and what follows from them, as a dict for JSON."""
        names = ("gpu_hours", "images_per_gpu_hour", "gpu_idle_share")
        derived = {name: getattr(self, name) for name in names}
        return asdict(self) | {name: None if value is None else round(value, 4) for name, value in derived.items()}

    def describe_gpus(self) -> str:
        """Return a phrase on the GPUs that were leased, if any were."""
        phrase = (
            f"{describe_hours(self.gpu_hours)} GPU-hours leased, {self.images_per_gpu_hour:,.0f} images per GPU-hour"
        )
        if self.gpu_idle_share is None:
            return f"{phrase}; how busy the GPUs were is unknown"
        unknown = f" (unknown for {self.gpu_unmeasured_shards} shards)" if self.gpu_unmeasured_shards else ""
        return f"{phrase}; the GPUs were idle for {self.gpu_idle_share:.0%} of the time{unknown}"

    def describe(self) -> str:
        """Return the totals as a phrase."""
        parts = [self.describe_gpus()] if self.gpu_seconds else []
        if self.shards:
            time, memory = describe_duration(self.cpu_seconds), describe_bytes(self.peak_memory_bytes)
            parts.append(f"{time} of CPU time, at most {memory} of memory in a job")
        if self.unknown_shards:
            of = self.shards + self.unknown_shards
            parts.append(f"unknown for {self.unknown_shards} of {of} shards, whose ledgers do not have it")
        return "; ".join(parts)


def describe_hours(hours: float) -> str:
    """Return a number of hours with three digits or more, since a short run takes a small part of one."""
    return f"{hours:,.0f}" if hours >= 100 else f"{hours:.3g}"


def describe_bytes(size: int) -> str:
    """Return a size of memory with a unit that is easy to read."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"
