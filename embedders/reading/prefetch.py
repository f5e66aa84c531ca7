"""Threads with bounded queues, so that reading, decoding and the model run at the same time.

Threads are enough, because the decoders and torch release the GIL, and nothing has to be pickled. Both functions keep
the order of their input, hold a bounded number of items, and raise a worker's exception in the consumer.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

# Passing an item to a thread takes as long as decoding a thumbnail, and holds the GIL, so a task has several items.
# It has more than the minimum only if what is read ahead is still enough for two tasks per thread.
MIN_ITEMS_PER_TASK, MAX_ITEMS_PER_TASK = 8, 32
_END = object()


def prefetch(streams: Iterable[Iterable[Item]], depth: int) -> Generator[Iterator[Item], None, None]:
    """Read several streams one after the other on a separate thread, at most `depth` items ahead of the consumer.

    The thread goes on to the next stream while the consumer still works on the items of the previous one.

    Args:
        streams: The streams; a stream that the consumer leaves early is closed.
        depth: The number of items that may wait for the consumer, of all the streams together.

    Yields:
        For each stream, an iterator over its items. An error in a stream is raised in the consumer, at its place in
        that stream. The rest of a stream that the consumer leaves early is not read.
    """
    thread = ThreadPoolExecutor(1, thread_name_prefix="prefetch")  # one worker, so that the calls stay in order
    # Starts the thread before it has something to read: `shutdown` does not wait for a thread whose start a signal
    # has interrupted, and a stream that is being read cannot be closed.
    thread.submit(int).result()
    todo = deque(map(iter, streams))
    pending: deque[Future] = deque()
    is_over = False  # the consumer has seen the end of its stream

    def draw() -> Any:  # an item, or _END
        item: Any = _END
        try:
            item = next(todo[0], _END) if todo else _END
        finally:
            if item is _END and todo:
                todo.popleft()
        return item

    def fill() -> None:
        pending.extend(thread.submit(draw) for _ in range(depth - len(pending)))

    def take() -> Iterator[Item]:
        nonlocal is_over
        while True:
            fill()
            is_over = True  # also where the stream raises
            item = pending.popleft().result()
            if item is _END:
                return
            is_over = False
            fill()
            yield item
            del item  # otherwise it stays in memory while this waits for the next one

    def leave() -> None:
        begun = deque(future for future in pending if not future.cancel())
        pending.clear()
        while begun:
            future = begun.popleft()
            if future.exception() is not None or future.result() is _END:
                pending.extend(begun)  # of the next stream
                return
        thread.submit(lambda: _close(todo.popleft())).result()

    try:
        for _ in range(len(todo)):
            is_over = False
            yield take()
            if not is_over:
                leave()
    finally:
        thread.shutdown(cancel_futures=True)
        for stream in todo:
            _close(stream)


def _close(stream: Iterator) -> None:
    # An unfinished generator holds open files and threads: close it here, not during garbage collection.
    close = getattr(stream, "close", None)
    if close is not None:
        close()


def map_ordered(
    function: Callable[[list[Item]], list[Result]],
    items: Iterable[Item],
    threads: int,
    ahead: int,
    weigh: Callable[[Item], int] = lambda item: 0,
    max_weight: int = 0,
    task_weight: int = 0,
    initializer: Callable[[], None] | None = None,
) -> Iterator[Result]:
    """Apply `function` to `items` on `threads` threads, each of which first calls `initializer`.

    At most about `ahead` results wait for the consumer, and their items together weigh at most `max_weight`.
    `function` takes a list and returns one result for each item: a thread gets several light items at a time, until
    they weigh `task_weight`.
    """
    pool = ThreadPoolExecutor(threads, thread_name_prefix="decode", initializer=initializer)
    pending: deque[tuple[Future[list[Result]], int, int]] = deque()
    most = min(MAX_ITEMS_PER_TASK, max(MIN_ITEMS_PER_TASK, ahead // (2 * threads)))
    try:
        number = total = 0
        for task, weight in group_items(items, weigh, task_weight, most):
            pending.append((pool.submit(function, task), len(task), weight))
            number, total = number + len(task), total + weight
            while number > ahead or total > max_weight:
                future, length, weight = pending.popleft()
                number, total = number - length, total - weight
                yield from future.result()
        while pending:
            yield from pending.popleft()[0].result()
    finally:
        pool.shutdown(cancel_futures=True)


def group_items(
    items: Iterable[Item], weigh: Callable[[Item], int], full: int, most: int
) -> Iterator[tuple[list[Item], int]]:
    """Yield lists of items that weigh at least `full` or have `most` items, each with its weight."""
    task, total = [], 0
    for item in items:
        task.append(item)
        total += weigh(item)
        if total >= full or len(task) == most:
            yield task, total
            task, total = [], 0
    if task:
        yield task, total
