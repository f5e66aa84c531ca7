import random
import threading
import time
from contextlib import closing

import pytest
from support.servers import wait_until

from embedders.reading.prefetch import group_items, map_ordered, prefetch


def sleep_at_random(number):
    time.sleep(random.random() * 0.004)
    return number


def prefetch_one(items, depth):
    """The items of a single stream."""
    for stream in prefetch([items], depth):
        yield from stream


def draw_all(items, depth):
    return list(prefetch_one(items, depth))


def each(function):
    """What applies a function to each item of a list."""
    return lambda items: [function(item) for item in items]


@pytest.mark.parametrize("threads", [1, 2, 7])
def test_order_is_kept_however_long_each_item_takes(threads):
    assert list(map_ordered(each(sleep_at_random), range(200), threads, ahead=20)) == list(range(200))
    assert draw_all((sleep_at_random(n) for n in range(50)), depth=threads) == list(range(50))


def test_nothing_in_nothing_out():
    assert list(map_ordered(each(str), [], 2, 4)) == []
    assert draw_all([], 2) == []
    assert list(prefetch([], 2)) == []


def test_a_slow_consumer_is_never_far_behind():
    started = []

    def note(number):
        started.append(number)
        return number

    for number in map_ordered(each(note), range(100), threads=3, ahead=5):
        time.sleep(0.001)
        assert len(started) <= number + 1 + 5 + 1
    drawn = []
    for number in prefetch_one((drawn.append(n) or n for n in range(100)), depth=2):
        time.sleep(0.001)
        assert len(drawn) <= number + 1 + 2


def test_an_error_in_a_thread_is_raised_in_the_consumer_at_its_place():
    def divide(number):
        return 1 / (number - 3)

    results = map_ordered(each(divide), range(10), 2, 4)
    assert [next(results) for _ in range(3)] == [1 / -3, 1 / -2, -1]
    with pytest.raises(ZeroDivisionError):
        next(results)

    def break_off():
        yield 1
        raise KeyError("lost")

    items = prefetch_one(break_off(), 2)
    assert next(items) == 1
    with pytest.raises(KeyError, match="lost"):
        next(items)


def test_a_loop_left_half_way_closes_its_source_and_its_threads():
    closed = []

    def count():
        try:
            yield from range(1000)
        finally:
            closed.append(True)

    before = set(threading.enumerate())
    source = count()  # held here, so that it is not the garbage collector that closes it
    items = prefetch_one(source, 2)
    assert next(items) == 0
    items.close()
    assert closed == [True]
    items = prefetch_one(map_ordered(each(sleep_at_random), count(), 3, 8), 2)
    assert next(items) == 0
    items.close()
    assert closed == [True, True]
    assert set(threading.enumerate()) <= before


def note_draws(drawn, name, count, error=None):
    try:
        for number in range(count):
            drawn.append(f"{name}{number}")
            yield f"{name}{number}"
        if error:
            raise error
    finally:
        drawn.append(f"{name} closed")


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_each_stream_has_its_own_items_and_its_own_error(depth):
    drawn = []
    streams = [note_draws(drawn, "a", 3), note_draws(drawn, "b", 2, KeyError("lost")), note_draws(drawn, "c", 0)]
    seen = []
    for items in prefetch([*streams, note_draws(drawn, "d", 2)], depth):
        try:
            seen.append(list(items))
        except KeyError as error:
            seen.append(str(error))
    assert seen == [["a0", "a1", "a2"], "'lost'", [], ["d0", "d1"]]
    assert drawn == ["a0", "a1", "a2", "a closed", "b0", "b1", "b closed", "c closed", "d0", "d1", "d closed"]


def test_the_next_stream_is_drawn_while_the_last_items_of_one_are_at_work():
    drawn = []
    streams = prefetch([note_draws(drawn, "a", 2), note_draws(drawn, "b", 9)], 2)
    items = next(streams)
    assert [next(items), next(items)] == ["a0", "a1"]
    wait_until(lambda: "b0" in drawn)
    assert drawn == ["a0", "a1", "a closed", "b0"]  # two ahead: the end of a, and the first of b
    assert list(items) == []
    assert list(next(streams)) == [f"b{number}" for number in range(9)]
    streams.close()


@pytest.mark.parametrize("taken", [0, 1, 2, 3])
@pytest.mark.parametrize("error", [None, KeyError("lost")])
def test_of_a_stream_that_is_left_no_more_is_drawn_and_the_next_one_is_whole(taken, error):
    drawn, seen = [], []
    for items in prefetch([note_draws(drawn, "a", 3 if error else 1000, error), note_draws(drawn, "b", 3)], 2):
        if len(seen) == 0:
            time.sleep(0.005)
            seen.append([next(items) for _ in range(taken)])
        else:
            seen.append(list(items))
    assert seen == [["a0", "a1", "a2"][:taken], ["b0", "b1", "b2"]]
    assert len([name for name in drawn if name.startswith("a")]) <= taken + 2 + 1
    if taken:
        assert drawn.index("a closed") < drawn.index("b0")


def test_items_are_drawn_in_one_thread_that_is_not_the_consumers():
    threads = draw_all((threading.get_ident() for _ in range(20)), 2)
    assert len(set(threads)) == 1
    assert threads[0] != threading.get_ident()


def test_heavy_items_wait_for_the_consumer_before_their_number_does():
    at_work, most = [0], [0]

    def read(weights):
        for weight in weights:
            at_work[0] += weight
            most[0] = max(most[0], at_work[0])
            yield weight

    for result in map_ordered(
        each(lambda weight: weight), read([1] * 5 + [10] * 50), 2, 30, lambda weight: weight, 25
    ):
        at_work[0] -= result
    assert at_work[0] == 0
    assert most[0] <= 25 + 10  # the one that is one too many is read before it is weighed


@pytest.mark.parametrize(
    ("weights", "lengths"),
    [([1] * 20, [8, 8, 4]), ([30, 30, 1, 30, 1], [1, 1, 2, 1]), ([5] * 6, [4, 2]), ([0] * 9, [8, 1]), ([], [])],
)
def test_light_items_go_to_a_thread_together_and_heavy_ones_alone(weights, lengths):
    groups = list(group_items(iter(weights), lambda weight: weight, full=20, most=8))
    assert [len(items) for items, _ in groups] == lengths
    assert [weight for items, _ in groups for weight in items] == weights
    assert all(sum(items) == total for items, total in groups)
    assert list(map_ordered(each(str), weights, 2, 4, lambda weight: weight, 30, task_weight=20)) == list(
        map(str, weights)
    )


def test_a_signal_at_the_start_of_the_thread_is_raised_as_itself(monkeypatch):
    start, end = threading.Thread.start, threading.Event()

    def read():
        yield end.wait(60)

    def start_and_be_interrupted(thread):
        start(thread)
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "start", start_and_be_interrupted)
    with pytest.raises(KeyboardInterrupt), closing(prefetch([read()], 2)) as streams:
        try:
            next(next(streams))
        finally:
            threading.Timer(0.5, end.set).start()
