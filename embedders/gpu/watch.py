"""How busy a leased GPU is, which a thread of the job samples once a second.

NVML's utilisation is the share of a short period, at most a second, in which any kernel of any process ran. It does
not say how much of the GPU a kernel used. A driver that fails or hangs makes the values unknown and stops no job.
"""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import monotonic

from embedders.gpu.nvml import Gpu, open_gpu

log = logging.getLogger(__name__)

INTERVAL_S = 1.0
# A sample counts until the next one comes, but not for longer than this. A long import can delay the thread.
MAX_AGE_S = 30.0


@dataclass(frozen=True)
class GpuSpan:
    """A part of the time for which a job has leased a GPU.

    Attributes:
        seconds: Its length; for a job that may share the GPU, times its share.
        busy_seconds: The part of these in which a kernel ran; `None` if it is unknown.
        peak_bytes: Most memory of the GPU in use by all processes in a sample; `None` if it is unknown.
    """

    seconds: float = 0.0
    busy_seconds: float | None = None
    peak_bytes: int | None = None


class GpuWatch:
    """Samples the GPU of a job while it is leased; without a lease, its spans are empty."""

    def __init__(self):
        # Never held while the driver is asked: it may hang, and the job must go on.
        self._lock = threading.Lock()
        self._share = 0.0
        self._start_s = self._counted_s = self._sampled_s = 0.0
        self._last = Gpu()
        self._busy_s: float | None = 0.0
        self._peak_bytes: int | None = None

    @contextmanager
    def follow(self, gpu: Gpu, jobs: int) -> Iterator[None]:
        """Sample a GPU while the block runs, as one of so many jobs that may share it."""
        self._share = 1 / jobs
        self._start_s = self._counted_s = self._sampled_s = monotonic()
        end = threading.Event()
        # A daemon, and not waited for long: neither a signal nor the release of the GPU waits for a hung driver.
        thread = threading.Thread(target=self._sample, args=(gpu, end), name="gpu-watch", daemon=True)
        thread.start()
        try:
            yield
        finally:
            end.set()
            thread.join(INTERVAL_S)

    def take(self) -> GpuSpan:
        """Return the span since the last call, or since the lease began."""
        with self._lock:
            if not self._share:
                return GpuSpan()
            self._count(self._last.utilization_percent)
            seconds = self._share * (self._counted_s - self._start_s)
            busy_s = None if self._busy_s is None else self._share * self._busy_s
            span = GpuSpan(seconds, busy_s, self._peak_bytes)
            self._start_s, self._busy_s, self._peak_bytes = self._counted_s, 0.0, self._last.used_bytes
            return span

    def _sample(self, gpu: Gpu, end: threading.Event) -> None:
        try:
            with open_gpu(gpu.uuid) as read:
                self._note(now := read())
                if now.utilization_percent is None:
                    why = "it is a MIG instance" if gpu.mig_parent_uuid else "the driver does not report it"
                    log.warning("%s: its utilisation is unknown: %s", gpu.label, why)
                while not end.wait(INTERVAL_S):
                    self._note(read())
        except Exception as error:  # whatever a driver does: the job is worth more than its measurement
            log.warning("%s: its utilisation is unknown from now on: %s", gpu.label, error)
            self._note(Gpu())

    def _note(self, now: Gpu) -> None:
        with self._lock:
            self._count(now.utilization_percent)
            self._sampled_s = self._counted_s
            self._last = now
            if now.used_bytes is not None:
                self._peak_bytes = max(now.used_bytes, self._peak_bytes or 0)

    def _count(self, utilization_percent: int | None) -> None:
        """Count the time since the last call at this utilisation."""
        now_s = monotonic()
        if utilization_percent is None or now_s - self._sampled_s > MAX_AGE_S:
            self._busy_s = None
        elif self._busy_s is not None:
            self._busy_s += utilization_percent / 100 * (now_s - self._counted_s)
        self._counted_s = now_s
