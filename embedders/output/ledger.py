"""What became of every sample of one shard: embedded, or failed with a reason. Owns the sum, not the reading.

`in = embedded + failed` is kept by name, not by count alone: the reader opens an account for each sample of the
tar, the job or the loader settles it, and what is still open at the end is a loss and is named.
"""

import logging
import threading
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass

from embedders.errors import ShardError, make_one_line
from embedders.output.timings import Timings

log = logging.getLogger(__name__)

# A shard whose every sample fails must not fill the disk with its log; the ledger's file holds them all.
LOGGED_FAILURES = 100
# Of all that is noted here: a few hundred thousand failed samples, or millions that a loader has yet to yield.
MAX_HELD_BYTES = 256 << 20
_ACCOUNT_BYTES, _FAILED_BYTES = 100, 500


@dataclass(frozen=True, slots=True)
class FailedSample:
    """A sample that was not embedded.

    Attributes:
        key: Its WebDataset key, or the member's name where there is no key.
        kind: A short word to count by, such as `undecodable`.
        message: What was wrong, for a person, in one line.
        member: Name of the tar member concerned, if one is.
        offset: Position of that member's header in the (uncompressed) tar, in bytes.
    """

    key: str
    kind: str
    message: str
    member: str | None = None
    offset: int | None = None

    def __post_init__(self):
        object.__setattr__(self, "message", make_one_line(self.message))


class Ledger:
    """The account of one shard, and the rules by which its samples are counted in.

    Args:
        shard: Path of the shard, for messages.
        accept_damage: Whether a damaged tar is read on, with each damaged place as a failed sample.
        only: Keys of the samples that count; `None` counts all.

    Attributes:
        seen: Number of samples found in the tar.
        embedded: Number of samples embedded so far.
        failed: The samples that were not embedded, in the order in which they failed.
        is_counted: Whether the accounts of all the samples are open before the loader starts.
        offset: How far the default loader has come in the uncompressed tar, in bytes.
        timings: Where the time went.
        remarks: Number of samples of which something was said although they were embedded, by kind of remark.
    """

    def __init__(self, shard: str, accept_damage: bool = False, only: Collection[str] | None = None):
        self.shard = shard
        self.accept_damage = accept_damage
        self.only = only
        self.seen = 0
        self.embedded = 0
        self.failed: list[FailedSample] = []
        self.is_counted = False
        self.offset = 0
        self.timings = Timings()
        self.remarks: Counter[str] = Counter()
        self._open: dict[str, int] = {}
        self._held_bytes = 0
        # The loader's thread opens accounts while the job's thread settles them.
        self._lock = threading.Lock()

    def open(self, key: str) -> None:
        """Note that the tar holds this sample."""
        with self._lock:
            self.seen += 1
            self._open[key] = self._open.get(key, 0) + 1
        self._hold(_ACCOUNT_BYTES + len(key))

    def settle(self, key: str) -> bool:
        """Note that this sample was embedded; false if the tar holds no such sample that is still open."""
        self.embedded += 1
        return self._close(key)

    def fail(self, failed: FailedSample) -> None:
        """Note that this sample will not be embedded, and say so in the log."""
        self._close(failed.key)
        self.failed.append(failed)
        self._hold(_FAILED_BYTES + len(failed.key) + len(failed.message) + len(failed.member or ""))
        if len(self.failed) <= LOGGED_FAILURES:
            place = f" [{failed.member!r} at byte {failed.offset}]" if failed.member else ""
            log.warning("failed: %s: %r: %s: %s%s", self.shard, failed.key, failed.kind, failed.message, place)
        elif len(self.failed) == LOGGED_FAILURES + 1:
            log.warning(
                "%s: more than %d samples failed; the others are not logged singly", self.shard, LOGGED_FAILURES
            )

    def remark(self, key: str, remarks: Collection[tuple[str, str]]) -> None:
        """Note what was said of a sample that is embedded all the same.

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
        """Keys of the samples that are in the tar but neither embedded nor failed; one that is there twice, twice."""
        return [key for key, count in self._open.items() for _ in range(count)]

    def count_kinds(self) -> dict[str, int]:
        """Number of failed samples by kind, most frequent first."""
        return dict(Counter(failed.kind for failed in self.failed).most_common())

    def check(self, max_failed_fraction: float) -> None:
        """Close the account.

        Raises:
            ShardError: More than `max_failed_fraction` of the samples failed, or the sum does not come out.
        """
        if self.seen != self.embedded + len(self.failed):
            raise ShardError(
                f"{self.shard}: {self.seen} samples in the tar, but {self.embedded} embedded and "
                f"{len(self.failed)} failed; expected the sum to come out; please report this as a defect"
            )
        if len(self.failed) > max_failed_fraction * self.seen:
            first = self.failed[0]
            kinds = ", ".join(f"{count} {kind}" for kind, count in self.count_kinds().items())
            raise ShardError(
                f"{self.shard}: {len(self.failed)} of {self.seen} samples failed ({kinds}; the first: "
                f"{first.key!r}: {first.message}); expected at most {max_failed_fraction:.0%} "
                "(max_failed_fraction); see the log, then mend the shard or raise the limit"
            )

    def _close(self, key: str) -> bool:
        with self._lock:
            count = self._open.pop(key, 0)
            if count > 1:
                self._open[key] = count - 1
        if count:
            self._hold(-_ACCOUNT_BYTES - len(key))
        return count > 0

    def _hold(self, size: int) -> None:
        with self._lock:
            self._held_bytes += size
        if self._held_bytes > MAX_HELD_BYTES:
            raise ShardError(
                f"{self.shard}: the names of {len(self.failed)} failed and {len(self._open)} waiting samples take "
                f"more than {MAX_HELD_BYTES >> 20} MB; expected fewer; see the log, mend or split the shard"
            )
