"""The progress of a run: a line from time to time, counted from the outputs of its shards. Schedules nothing.

It runs in Snakemake's main process: on the one machine, or on the login node of a cluster.
"""

from collections.abc import Callable, Collection
from contextlib import suppress
from threading import Thread
from time import monotonic, sleep

from embedders.errors import ShardError
from embedders.output.timings import describe_duration
from embedders.planning.file_times import stat_files

# Each look lists the output folders; with more shards or slower storage, it is done less often.
LOOK_INTERVAL_S = 10
INTERVALS_PER_LOOK = 100


class RunProgress:
    """Counts the finished shards of a run and their images.

    Args:
        folder: The output folder.
        shards: Number of shards.
        unfinished: Names of those that this run embeds, some of them perhaps again.

    Attributes:
        shards: Number of shards.
        finished: Number of finished shards, including those of an earlier run.
        images: Number of images embedded since the start of this run.
        failed: Number of samples that failed since the start of this run.
    """

    def __init__(self, folder: str, shards: int, unfinished: Collection[str]):
        self.shards = shards
        self.finished = self._before = shards - len(unfinished)
        self.images = self.failed = 0
        self._start = self._last = monotonic()
        self._unfinished = {f"{folder}/embeddings/{shard}.parquet" for shard in unfinished}
        # Outputs that are out of date stay in place until their job replaces them.
        self._outdated = stat_files(self._unfinished)

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
        there = stat_files(self._unfinished)
        finished = [path for path, status in there.items() if self._outdated.get(path) != status]
        self._unfinished.difference_update(finished)
        return finished


def follow_run(folder: str, shards: int, unfinished: Collection[str], say: Callable[[str], None]) -> None:
    """Follow a run in a daemon thread, which ends with the process."""
    Thread(target=RunProgress(folder, shards, unfinished).follow, args=(say,), daemon=True).start()
