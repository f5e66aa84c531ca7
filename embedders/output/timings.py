"""Time that a shard takes, by activity, measured in the threads of its job to find the bottleneck.

- The job's thread: `waiting_for_images`, `model` (including transfers to and from the device), `scoring` (if the
  embedder has classifiers), `writing` and `hashing` (only the part that does not overlap with other work). Their sum
  is the time of the shard. `waiting_for_gpu` and `starting` (imports, loading the model) come before the first shard.
- The loader's thread: `fetching` (the wait for the copy of a shard with an address), `loading`, which includes
  `reading` (of the tar), and `waiting_for_model`.
- All the decoding threads together: `decoding`.
"""

import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from time import perf_counter
from typing import Any, TypeVar

Item = TypeVar("Item")

_END = object()
_PHRASES = {
    "waiting_for_gpu": "waiting for a GPU",
    "starting": "starting",
    "waiting_for_images": "waiting for images",
    "model": "in the model",
    "scoring": "scoring",
    "writing": "writing",
    "hashing": "hashing",
    "fetching": "waiting for the shard's copy",
    "loading": "loading",
    "reading": "reading",
    "decoding": "decoding on all threads",
    "waiting_for_model": "waiting for the model",
}
# The job's thread does one of these at a time.
_OF_THE_SHARD = ("waiting_for_images", "model", "scoring", "writing", "hashing")
_OF_THE_JOB = ("waiting_for_gpu", "starting", *_OF_THE_SHARD)
_LIMITS = {
    "waiting_for_gpu": "waiting for a GPU is the limit: more GPUs, or more jobs on each (jobs_per_gpu), would help",
    "starting": "starting is the limit: more shards in a job (shards_per_job), or larger shards, would help",
    "model": "the model is the limit: a faster device, or a faster mode of the model, would help",
    "scoring": "scoring is the limit: smaller classifiers, or scores of their own after the run, would help",
    "writing": "writing is the limit: faster storage for the results would help",
    "hashing": "hashing the shards is the limit: faster storage, or a faster processor, would help",
}


class Timings:
    """The times of one shard.

    Attributes:
        seconds: Seconds spent on each activity.
    """

    def __init__(self):
        self.seconds: dict[str, float] = {}
        # Many threads decode at once.
        self._lock = threading.Lock()

    def add(self, spent_on: str, seconds: float) -> None:
        """Add seconds to an activity."""
        with self._lock:
            self.seconds[spent_on] = self.seconds.get(spent_on, 0.0) + seconds

    @contextmanager
    def time(self, spent_on: str) -> Iterator[None]:
        """Add the time of the block to an activity."""
        start = perf_counter()
        try:
            yield
        finally:
            self.add(spent_on, perf_counter() - start)

    def time_items(self, items: Iterable[Item], spent_on: str) -> Iterator[Item]:
        """Yield the items, and add the time that it takes to get them to an activity."""
        iterator = iter(items)
        while True:
            start = perf_counter()
            try:
                item: Any = next(iterator, _END)
            finally:
                self.add(spent_on, perf_counter() - start)
            if item is _END:
                return
            yield item
            del item  # otherwise it stays in memory while the next one is made

    def round(self) -> dict[str, float]:
        """Return the times, rounded to milliseconds, in a fixed order."""
        return {name: round(self.seconds[name], 3) for name in _PHRASES if name in self.seconds}


def split_seconds(seconds: Mapping[str, float]) -> dict[str, float]:
    """Return the times of the job's thread, each by its phrase; their sum is the time that the job took."""
    return {_PHRASES[name]: seconds[name] for name in _OF_THE_JOB if name in seconds}


def sum_seconds(seconds: Mapping[str, float]) -> float:
    """Return the time of a shard, without the time before the first shard of its job."""
    return sum(seconds.get(name, 0.0) for name in _OF_THE_SHARD)


def describe_seconds(seconds: Mapping[str, float]) -> str:
    """Return times as a phrase."""
    return ", ".join(f"{seconds[name]:.1f} s {phrase}" for name, phrase in _PHRASES.items() if name in seconds)


def describe_duration(seconds: float) -> str:
    """Return a time with a unit that is easy to read."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def find_bottleneck(seconds: Mapping[str, float]) -> str:
    """Return a phrase that names what the job's thread spent most time on, and what would help."""
    largest = max(_OF_THE_JOB, key=lambda name: seconds.get(name, 0.0))
    if largest != "waiting_for_images":
        return _LIMITS[largest]
    if seconds.get("fetching", 0.0) > seconds.get("loading", 0.0):
        return "fetching is the limit: a faster network, or more jobs at a time, would help"
    if "reading" not in seconds:
        return "load_dataset_shard is the limit: the device waits for it"
    if seconds["reading"] > seconds.get("loading", 0.0) / 2:
        return "reading is the limit: faster storage would help"
    return "decoding is the limit: more threads, on more cores, would help"
