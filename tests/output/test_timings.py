import re
import sys
import threading

import pytest

from embedders.output import timings as module
from embedders.output.timings import Timings, describe_seconds, find_bottleneck, split_seconds, sum_seconds


class Clock:
    """Goes on only when it is told to."""

    now_s = 0.0

    def __call__(self):
        return self.now_s

    def sleep(self, seconds):
        self.now_s += seconds


@pytest.fixture
def clock(monkeypatch):
    monkeypatch.setattr(module, "perf_counter", clock := Clock())
    return clock


def test_times_add_up_by_what_they_were_spent_on(clock):
    timings = Timings()
    for _ in range(2):
        with timings.time("model"):
            clock.sleep(0.25)
    with pytest.raises(RuntimeError), timings.time("writing"):
        clock.sleep(1)
        raise RuntimeError
    assert timings.round() == {"model": 0.5, "writing": 1.0}


def test_only_the_making_of_items_is_timed(clock):
    def make():
        for number in range(3):
            clock.sleep(0.25)
            yield number
        clock.sleep(0.25)  # until it is known that there are no more

    timings = Timings()
    for _ in timings.time_items(make(), "loading"):
        clock.sleep(10)
    assert timings.seconds == {"loading": 1.0}


def test_no_time_is_lost_when_many_threads_put_theirs_down():
    timings = Timings()

    def count():
        for _ in range(20_000):
            timings.add("decoding", 1.0)

    interval_s = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=count) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval_s)
    assert timings.seconds["decoding"] == 160_000


@pytest.mark.parametrize(
    ("seconds", "word"),
    [
        ({"model": 9, "waiting_for_images": 1, "loading": 5, "reading": 1}, "model"),
        ({"model": 1, "waiting_for_images": 9, "loading": 9, "reading": 8}, "reading"),
        ({"model": 1, "waiting_for_images": 9, "loading": 9, "reading": 1}, "decoding"),
        ({"model": 1, "waiting_for_images": 9, "fetching": 8, "loading": 2, "reading": 1}, "fetching"),
        ({"model": 1, "waiting_for_images": 9, "loading": 9}, "load_dataset_shard"),
        ({"model": 3, "waiting_for_images": 2.5, "writing": 16.5, "loading": 9, "reading": 1}, "writing"),
        ({"model": 3, "waiting_for_images": 2, "hashing": 4, "loading": 9, "reading": 1}, "hashing"),
        ({"model": 3, "waiting_for_images": 2, "scoring": 4, "loading": 9, "reading": 1}, "scoring"),
        ({"model": 3, "waiting_for_images": 2, "starting": 4, "loading": 9, "reading": 1}, "starting"),
        ({"model": 3, "starting": 4, "waiting_for_gpu": 5, "loading": 9, "reading": 1}, "waiting for a GPU"),
    ],
)
def test_what_the_job_spends_most_on_is_the_limit(seconds, word):
    assert re.match(rf"(the )?{word}( the shards)? is the limit", find_bottleneck(seconds))


def test_what_comes_before_the_first_shard_is_a_part_of_the_jobs_time_but_not_of_the_shards():
    seconds = {"waiting_for_gpu": 10, "starting": 5, "waiting_for_images": 1, "model": 2, "writing": 3, "loading": 9}
    assert sum(split_seconds(seconds).values()) == 21
    assert sum_seconds(seconds) == 6


def test_times_in_a_phrase():
    assert (
        describe_seconds({"model": 1.25, "waiting_for_images": 3}) == "3.0 s waiting for images, 1.2 s in the model"
    )
