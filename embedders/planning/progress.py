"""The progress of a run: a line from time to time, counted from the outputs of its shards. Schedules nothing.

It runs in Snakemake's main process: on the one machine, or on the login node of a cluster.
"""

import os
from collections import defaultdict
from collections.abc import Callable, Iterable
from contextlib import suppress
from threading import Thread
from time import monotonic, sleep

from embedders.errors import ShardError
from embedders.output.timings import describe_duration

# Each look lists the output folders; with more shards or slower storage, it is done less often.
LOOK_INTERVAL_S = 10
INTERVALS_PER_LOOK = 100


class RunProgress:
    """Counts the finished shards of a run and their images.

    Attributes:
        shards: Number of shards.
        finished: Number of finished shards, including those of an earlier run.
        images: Number of images embedded since the start of this run.
        failed: Number of samples that failed since the start of this run.
    """

    def __init__(self, folder: str, shards: Iterable[str], stale: Iterable[str] = ()):
        """Count what an earlier run has finished. The results of the `stale` shards are made again by this run."""
        self._folder = f"{folder}/embeddings"
        self._unfinished: dict[str, set[str]] = defaultdict(set)
        for shard in shards:
            subfolder, _, name = shard.rpartition("/")
            self._unfinished[subfolder].add(f"{name}.parquet")
        self.shards = sum(map(len, self._unfinished.values()))
        stale_paths = (os.path.join(self._folder, f"{shard}.parquet") for shard in stale)
        self._stale = {path: state for path in stale_paths if (state := _look_at(path))}
        self.images = self.failed = 0
        self._start = self._last = monotonic()
        self._before = len(self._take_finished())
        self.finished = self._before

    def look(self) -> bool:
        """Count the shards finished since the last look; return whether there are any."""
        paths = self._take_finished()
        if not paths:
            return False
        self.finished += len(paths)
        self._last = monotonic()
        with suppress(ImportError):  # Snakemake's environment may lack pyarrow; then only shards are counted
            from embedders.output.footers import describe_file

            for path in paths:
                with suppress(ShardError):  # Snakemake has deleted it, with the other outputs of a failed job
                    output = describe_file(path)
                    self.images += output.rows
                    self.failed += output.provenance.samples - output.rows
        return True

    def describe(self) -> str:
        """Return the progress as one line."""
        seconds = max(self._last - self._start, 1e-9)
        left_s = (self.shards - self.finished) * seconds / max(self.finished - self._before, 1)
        images = f", {self.images} images at {self.images / seconds:.0f} images/s, {self.failed} failed"
        left = f", about {describe_duration(left_s)} to go" if self.finished < self.shards else ""
        return f"progress: {self.finished} of {self.shards} shards{images if self.images else ''}{left}"

    def follow(self, say: Callable[[str], None]) -> None:
        """Look and report until all shards are finished."""
        interval_s: float = LOOK_INTERVAL_S
        while self.finished < self.shards:
            sleep(interval_s)
            start = monotonic()
            if self.look():
                say(self.describe())
            interval_s = max(LOOK_INTERVAL_S, INTERVALS_PER_LOOK * (monotonic() - start))

    def _take_finished(self) -> list[str]:
        paths = []
        for subfolder, names in self._unfinished.items():
            if not names:
                continue
            with suppress(FileNotFoundError):
                for name in sorted(names & set(os.listdir(os.path.join(self._folder, subfolder)))):
                    path = os.path.join(self._folder, subfolder, name)
                    if path not in self._stale or _look_at(path) not in (None, self._stale[path]):
                        names.remove(name)
                        paths.append(path)
        return paths


def _look_at(path: str) -> tuple[int, int] | None:
    """Return what differs between a file and one that replaces it, or `None` if there is no file."""
    try:
        state = os.lstat(path)
    except OSError:
        return None
    return state.st_ino, state.st_mtime_ns


def follow_run(folder: str, shards: Iterable[str], stale: Iterable[str], say: Callable[[str], None]) -> None:
    """Follow a run in a daemon thread, which ends with the process."""
    Thread(target=RunProgress(folder, shards, stale).follow, args=(say,), daemon=True).start()
