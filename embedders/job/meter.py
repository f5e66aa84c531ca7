"""`Meter`: what a job uses of its processor, its memory and its GPU, from one shard to the next."""

import resource
from pathlib import Path

from embedders.gpu.watch import GpuWatch
from embedders.output.usage import Usage


class Meter:
    """Measures what this process uses, beginning now.

    Args:
        watch: Samples the GPU that the job leases.
    """

    def __init__(self, watch: GpuWatch | None = None):
        self._watch = watch or GpuWatch()
        self._cpu_s = read_cpu_seconds()

    def take(self) -> Usage:
        """Return what was used since the last call, with the peak of the memory so far."""
        before_s, self._cpu_s = self._cpu_s, read_cpu_seconds()
        span = self._watch.take()
        busy_s = span.busy_seconds
        return Usage(
            cpu_seconds=round(self._cpu_s - before_s, 3),
            peak_memory_bytes=read_peak_memory(),
            gpu_seconds=round(span.seconds, 3),
            gpu_busy_seconds=None if busy_s is None else round(busy_s, 3),
            gpu_peak_memory_bytes=span.peak_bytes,
        )


def read_cpu_seconds() -> float:
    """Return the CPU time of this process and of its children that have ended, such as the workers of a loader."""
    times = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(time.ru_utime + time.ru_stime for time in times)


def read_peak_memory() -> int:
    """Return the most memory that this process has had so far, in bytes."""
    # Not getrusage's ru_maxrss, which includes the size of the process that this one was started from.
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) << 10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10  # a sandbox whose kernel lacks that line
