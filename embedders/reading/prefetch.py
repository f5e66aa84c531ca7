"""Bounded, ordered overlap on threads: what lets reading, decoding and the model run at the same time.

Threads, not processes: the decoders and torch release the interpreter's lock, and nothing has to be pickled.
Both functions keep the order of their input, hold a bounded number of items, and raise in the consumer
what was raised in a worker.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

# To hand an item to a thread costs as much as to decode a thumbnail, and only one thread at a time can do either.
ITEMS_PER_TASK = 8
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
    task_weight: int = 0,
    initializer: Callable[[], None] | None = None,
) -> Iterator[Result]:
    """Apply `function` to `items` on `threads` threads, each of which begins with `initializer`.

    At most about `ahead` results wait for the consumer, and no more than come from items of `max_weight` together.
    Light items go to a thread several at a time, until they weigh `task_weight`.
    """
    pool = ThreadPoolExecutor(threads, thread_name_prefix="decode", initializer=initializer)
    pending: deque[tuple[Future[list[Result]], int, int]] = deque()
    try:
        number = total = 0
        for task, weight in group_items(items, weigh, task_weight):
            pending.append((pool.submit(_apply, function, task), len(task), weight))
            number, total = number + len(task), total + weight
            while number > ahead or total > max_weight:
                future, length, weight = pending.popleft()
                number, total = number - length, total - weight
                yield from future.result()
        while pending:
            yield from pending.popleft()[0].result()
    finally:
        pool.shutdown(cancel_futures=True)


def group_items(items: Iterable[Item], weigh: Callable[[Item], int], full: int) -> Iterator[tuple[list[Item], int]]:
    """Put items together until they weigh `full` or are `ITEMS_PER_TASK`, and give them with their weight."""
    task, total = [], 0
    for item in items:
        task.append(item)
        total += weigh(item)
        if total >= full or len(task) == ITEMS_PER_TASK:
            yield task, total
            task, total = [], 0
    if task:
        yield task, total


def _apply(function: Callable[[Item], Result], task: list[Item]) -> list[Result]:
    return [function(item) for item in task]
