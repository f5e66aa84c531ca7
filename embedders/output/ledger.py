"""The ledger of one shard: which samples were embedded, and which failed and why. Owns the sum, not the reading.

`in = embedded + failed` is checked by name, not only by count. The reader opens an account for each sample of the
tar, and the job or the loader settles it. A sample whose account is still open at the end was lost and is named.
"""

import logging
import threading
from collections import Counter
from collections.abc import Collection, Sequence

from embedders.errors import EmbedderError, ShardError, make_one_line
from embedders.output.failed import FailedSample, FailureKind

log = logging.getLogger(__name__)

# If every sample of a shard fails, the log must not fill the disk; the ledger's file holds all failed samples.
LOGGED_FAILURES = 100
# Memory for all notes: a few hundred thousand failed samples, or millions that a loader has yet to yield.
MAX_HELD_BYTES = 256 << 20
_ACCOUNT_BYTES, _FAILED_BYTES = 100, 500


class Ledger:
    """The ledger of one shard.

    Args:
        shard: Path of the shard, for messages.

    Attributes:
        seen: Number of samples found in the tar.
        embedded: Number of samples embedded so far.
        failed: The samples that were not embedded, in the order in which they failed.
        remarks: Number of embedded samples with a remark of a decoder, by kind of remark.
    """

    def __init__(self, shard: str):
        self.shard = shard
        self.seen = 0
        self.embedded = 0
        self.failed: list[FailedSample] = []
        self.remarks: Counter[str] = Counter()
        self._open: dict[str, int] = {}
        self._held_bytes = 0
        # The loader's thread opens accounts while the job's thread settles them.
        self._lock = threading.Lock()

    def open(self, key: str) -> None:
        """Note that the tar holds this sample.

        Raises:
            ShardError: The stored names take too much memory.
        """
        with self._lock:
            self.seen += 1
            self._open[key] = self._open.get(key, 0) + 1
            self._held_bytes += _ACCOUNT_BYTES + len(key)
        self._check_held()

    def settle(self, keys: Sequence[str]) -> None:
        """Note that these samples were embedded.

        Raises:
            EmbedderError: The tar holds no such sample, or it was settled before.
        """
        with self._lock:
            for key in keys:
                self._close(key)
            self.embedded += len(keys)

    def fail(self, failed: FailedSample) -> None:
        """Note and log that this sample will not be embedded.

        Raises:
            EmbedderError: As `settle`.
            ShardError: As `open`.
        """
        with self._lock:
            self._close(failed.key)
            self.failed.append(failed)
            self._held_bytes += _FAILED_BYTES + len(failed.key) + len(failed.message) + len(failed.member or "")
        if len(self.failed) <= LOGGED_FAILURES:
            place = f" [{failed.member!r} at byte {failed.offset}]" if failed.member else ""
            log.warning("failed: %s: %r: %s: %s%s", self.shard, failed.key, failed.kind, failed.message, place)
        elif len(self.failed) == LOGGED_FAILURES + 1:
            log.warning(
                "%s: more than %d samples failed; the others are not logged one by one", self.shard, LOGGED_FAILURES
            )
        self._check_held()

    def remark(self, key: str, remarks: Collection[tuple[str, str]]) -> None:
        """Note and log remarks on a sample that is embedded nevertheless.

        Args:
            key: Its WebDataset key.
            remarks: Kinds and texts.
        """
        with self._lock:
            logged = self.remarks.total()
            self.remarks.update({kind for kind, _ in remarks})
        if logged < LOGGED_FAILURES:
            for kind, text in remarks:
                log.warning("%s: %r: %s: %s", self.shard, key, kind, make_one_line(text))

    def unsettled(self) -> list[str]:
        """Return the keys of samples that are neither embedded nor failed; a key that is open twice, twice."""
        return [key for key, count in self._open.items() for _ in range(count)]

    def count_kinds(self) -> dict[str, int]:
        """Return the number of failed samples by kind, most frequent first, and equally frequent ones by name."""
        # Not in the order in which they failed, which depends on threads: this is in the footer of the vectors.
        counts = Counter(str(failed.kind) for failed in self.failed)
        return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))

    def check(self, max_failed_fraction: float) -> None:
        """Check that the sum is right, and that not too many samples failed.

        Raises:
            ShardError: More than `max_failed_fraction` of the samples failed, or the sum is wrong.
        """
        if self.seen != self.embedded + len(self.failed):
            raise ShardError(
                f"{self.shard}: {self.seen} samples in the tar, but {self.embedded} embedded and "
                f"{len(self.failed)} failed; expected the sum to match; please report this as a defect"
            )
        if len(self.failed) > max_failed_fraction * self.seen:
            counts = self.count_kinds()
            kinds = ", ".join(f"{count} {kind}" for kind, count in counts.items())
            first = next(failed for failed in self.failed if failed.kind == next(iter(counts)))
            fix = next(kind.fix for kind in FailureKind if kind == first.kind)
            raise ShardError(
                f"{self.shard}: {len(self.failed)} of {self.seen} samples failed ({kinds}), such as "
                f"{first.key!r}: {first.message}; expected at most {max_failed_fraction:.0%} "
                f"(max_failed_fraction); see the log; {fix}, or raise the limit"
            )

    def _close(self, key: str) -> None:
        count = self._open.pop(key, 0)
        if not count:
            raise EmbedderError(
                f"{self.shard}: load_dataset_shard yielded a sample {key!r} that is not in the tar, or yielded "
                "it twice; expected each sample of the tar once, identified by its __key__ or its id_col"
            )
        if count > 1:
            self._open[key] = count - 1
        self._held_bytes -= _ACCOUNT_BYTES + len(key)

    def _check_held(self) -> None:
        if self._held_bytes > MAX_HELD_BYTES:
            raise ShardError(
                f"{self.shard}: the names of {len(self.failed)} failed and {len(self._open)} waiting samples take "
                f"more than {MAX_HELD_BYTES >> 20} MB; expected fewer; see the log, then fix or split the shard"
            )
