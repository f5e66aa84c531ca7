"""Fetches one file from a server, goes on after a broken connection, and checks what came.

Parts of two versions of a file are never joined: each answer of a server has the version that its content is of.
"""

import hashlib
import logging
import re
import threading
from pathlib import Path
from time import perf_counter

from embedders.errors import OutputError, ShardError
from embedders.reading import stores
from embedders.reading.remote import Version, split_address

log = logging.getLogger(__name__)

# Tries in a row without progress, and the wait before the second one, which doubles up to the longest: 90 s in all.
TRIES = 8
FIRST_WAIT_S, LONGEST_WAIT_S = 1.0, 30.0
_MD5 = re.compile("[0-9a-f]{32}")
# Buckets whose entity tags look like an MD5 but are not that of the content, because they encrypt their files.
_without_md5: set[str] = set()


class Stopped(Exception):
    """The process that fetches ends."""


class Download:
    """The fetching of one file.

    Args:
        address: The file.
        path: Where to write it.
        stop: Set by another thread to end early.
    """

    def __init__(self, address: str, path: Path, stop: threading.Event):
        self._address = address
        self._path = path
        self._stop = stop
        self._version: Version | None = None
        self._done = self._furthest = 0
        self._md5 = hashlib.md5(usedforsecurity=False)

    def run(self) -> Version:
        """Fetch the file, and return its version.

        The entity tag of S3 is in most cases the MD5 of the content. If it looks like an MD5 but differs, the file is
        fetched twice, and the two downloads are compared.

        Raises:
            ShardError: It is not there, changes meanwhile, or the server does not answer.
            OutputError: It cannot be stored.
            Stopped: `stop` is set.
        """
        start = perf_counter()
        version = self._fetch()
        log.info("%s: fetched %.1f MB in %.1f s", self._address, self._done / 1e6, perf_counter() - start)
        scheme, bucket, _ = split_address(self._address)
        first = self._md5.hexdigest()
        is_md5 = scheme == "s3" and bucket not in _without_md5 and _MD5.fullmatch(version.etag or "")
        if not is_md5 or first == version.etag:
            return version
        log.warning("%s: its MD5 is not its entity tag; it is fetched again to compare", self._address)
        self._version = None
        version, second = self._fetch(), self._md5.hexdigest()
        if second == first:
            _without_md5.add(bucket)
        elif second != version.etag:
            raise ShardError(f"{self._address!r}: two downloads of it differ; expected the same bytes; run again")
        return version

    def _fetch(self) -> Version:
        """Fetch the file in as many tries as it takes, if each makes progress."""
        failures = 0
        while True:
            furthest = self._furthest
            try:
                return self._read()
            except FileNotFoundError as error:
                raise ShardError(f"{self._address!r}: it is not there; check the address") from error
            except ConnectionError as error:
                # A server that sends files only as a whole makes no progress by sending the first part again.
                failures = 1 if self._furthest > furthest else failures + 1
                if failures == TRIES:
                    raise ShardError(
                        f"{self._address!r}: cannot be fetched, after {TRIES} tries: {error}; expected a server that "
                        "answers; run again"
                    ) from error
                wait_s = min(FIRST_WAIT_S * 2 ** (failures - 1), LONGEST_WAIT_S)
                log.warning("%s: %s; next try in %.0f s", self._address, error, wait_s)
                if self._stop.wait(wait_s):
                    raise Stopped from error

    def _read(self) -> Version:
        """Read on from where the last try ended, or from the start."""
        if self._version is None or not self._version.is_exact:
            self._done = 0
        try:
            version, chunks = stores.open_stream(self._address, self._done)
        except stores.RangeError:
            self._done = 0
            version, chunks = stores.open_stream(self._address, 0)
        if not self._done:
            self._version, self._md5 = version, hashlib.md5(usedforsecurity=False)
        elif self._version and not version.is_same(self._version):
            raise ShardError(f"{self._address!r}: changed while it was fetched; expected a finished .tar; run again")
        try:
            self._path.parent.mkdir(exist_ok=True)
            with self._path.open("r+b" if self._done else "wb") as file:
                file.seek(self._done)
                for chunk in chunks:
                    if self._stop.is_set():
                        raise Stopped
                    file.write(chunk)
                    self._md5.update(chunk)
                    self._done += len(chunk)
                    self._furthest = max(self._done, self._furthest)
        except ConnectionError:
            if self._done != version.bytes:
                raise
        except OSError as error:
            raise OutputError(
                f"{str(self._path.parents[1])!r}: {self._address!r} cannot be stored there ({error.strerror}); "
                "expected room for two shards of each job on this machine; set TMPDIR to another folder"
            ) from error
        if self._done != version.bytes:
            came, self._done = self._done, 0
            raise ConnectionError(f"{came} of {version.bytes} bytes came")
        return version
