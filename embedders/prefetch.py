"""Bounded, ordered overlap on threads: what lets reading, decoding and the model run at the same time.

Threads, not processes: the decoders and torch release the interpreter's lock, and nothing has to be pickled.
Both functions keep the order of their input, hold a bounded number of items, and raise in the consumer
what was raised in a worker.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

_END = object()


def prefetch(items: Iterable[Item], depth: int) -> Iterator[Item]:
    """Run `items` in a thread of its own, at most `depth` items ahead of the consumer."""
    iterator = iter(items)
    thread = ThreadPoolExecutor(1, thread_name_prefix="prefetch")
    try:
        # One worker, so the calls of next() never overlap and stay in order.
        pending = deque(thread.submit(next, iterator, _END) for _ in range(depth))
        while (item := pending.popleft().result()) is not _END:
            pending.append(thread.submit(next, iterator, _END))
            yield item
    finally:
        thread.shutdown(cancel_futures=True)
        # A generator left half-way holds open files and threads: close it here, not when it is collected.
        close = getattr(iterator, "close", None)
        if close is not None:
            close()


def map_ordered(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    threads: int,
    ahead: int,
    weigh: Callable[[Item], int] = lambda item: 0,
    max_weight: int = 0,
    initializer: Callable[[], None] | None = None,
) -> Iterator[Result]:
    """Apply `function` to `items` on `threads` threads, each of which begins with `initializer`.

    At most `ahead` results wait for the consumer, and no more than come from items of `max_weight` together.
    """
    pool = ThreadPoolExecutor(threads, thread_name_prefix="decode", initializer=initializer)
    try:
        pending, total = deque(), 0
        for item in items:
            weight = weigh(item)
            pending.append((pool.submit(function, item), weight))
            del item  # else it lives on while the consumer works
            total += weight
            while len(pending) > ahead or total > max_weight:
                future, weight = pending.popleft()
                total -= weight
                yield future.result()
        while pending:
            yield pending.popleft()[0].result()
    finally:
        pool.shutdown(cancel_futures=True)
