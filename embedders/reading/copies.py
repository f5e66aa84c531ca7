"""The local copies of shards with an address: fetched in order by a thread, at most two at a time.

One copy is read while the next is fetched. Shards without an address are read where they are.
"""

import logging
import threading
from collections.abc import Iterable
from concurrent.futures import Future
from contextlib import ExitStack
from pathlib import Path
from typing import Self

from embedders.errors import TarquetError
from embedders.reading.fetch import Download, Stopped
from embedders.reading.remote import Version, is_remote, require_address, split_address
from embedders.reading.scratch import open_scratch

log = logging.getLogger(__name__)

MAX_COPIES = 2
# Seconds to wait for the thread at the end; it may be waiting for a server.
_PATIENCE_S = 2


class Copies:
    """The local copies of shards. A context: at its end no copy is left.

    Args:
        paths: The shards in the order in which they are read; those without an address are not copied.

    Raises:
        ConfigError: An address cannot be used.
    """

    def __init__(self, paths: Iterable[str]):
        self._futures: dict[str, Future[tuple[Path, Version]]] = {path: Future() for path in paths if is_remote(path)}
        for address in self._futures:
            require_address(address)
        self._room = threading.Semaphore(MAX_COPIES)
        self._stop = threading.Event()
        self._stack = ExitStack()
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        if self._futures:
            folder = self._stack.enter_context(open_scratch())
            log.info("fetching %d shards to %s", len(self._futures), folder)
            # A daemon: a server that does not answer must not keep the process from ending.
            self._thread = threading.Thread(target=self._fetch_all, args=[folder], name="fetch", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, _type: object, error: BaseException | None, _traceback: object) -> None:
        self.stop()
        if self._futures:
            self._thread.join(_PATIENCE_S)
        self._stack.close()
        if isinstance(error, TarquetError):
            self.name_shards(error)

    def stop(self) -> None:
        """Fetch no more; whoever waits for a copy waits no longer."""
        self._stop.set()
        self._room.release()
        for future in self._futures.values():
            self._settle(future, Stopped())

    def find(self, path: str) -> str:
        """Return where to read a shard; wait until its copy is there.

        Raises:
            ShardError: It cannot be fetched.
            OutputError: There is no room for its copy.
        """
        return str(self._futures[path].result()[0]) if path in self._futures else path

    def find_version(self, path: str) -> Version | None:
        """Return the version of the fetched shard; `None` if it has no address."""
        return self._futures[path].result()[1] if path in self._futures else None

    def remove(self, path: str) -> None:
        """Remove the copy of a shard, if it has an address, so that the next but one is fetched."""
        if path in self._futures:
            if not self._futures[path].exception():  # waits until it is fetched
                self._futures[path].result()[0].unlink(missing_ok=True)
            self._room.release()

    def name_shards(self, error: TarquetError) -> None:
        """Replace the paths of copies in the message of an error by the addresses of their shards."""
        error.args = (self.name_in(str(error)),)

    def name_in(self, text: str) -> str:
        """Return a text in which the paths of copies are replaced by the addresses of their shards."""
        for address, future in self._futures.items():
            if future.done() and not future.exception():
                text = text.replace(str(future.result()[0]), address)
        return text

    def _fetch_all(self, folder: Path) -> None:
        for number, (address, future) in enumerate(self._futures.items()):
            self._room.acquire()
            if self._stop.is_set():
                return
            # A loader may ask for the name of the file, so it stays.
            path = folder / str(number) / split_address(address)[2].rpartition("/")[2]
            try:
                self._settle(future, (path, Download(address, path, self._stop).run()))
            except BaseException as error:
                path.unlink(missing_ok=True)
                self._settle(future, error)

    def _settle(self, future: Future, outcome: tuple[Path, Version] | BaseException) -> None:
        with self._lock:
            if future.done():
                return
            if isinstance(outcome, BaseException):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)
