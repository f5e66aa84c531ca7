import logging

import pytest

from embedders.errors import EmbedderError, ShardError
from embedders.output.failed import FailedSample
from embedders.output.ledger import LOGGED_FAILURES, Ledger


def ledger_of(*keys):
    ledger = Ledger("s.tar")
    for key in keys:
        ledger.open(key)
    return ledger


def test_every_sample_is_settled_by_name():
    ledger = ledger_of("a", "b", "c")
    ledger.settle(["a"])
    ledger.fail(FailedSample("b", "undecodable", "bad"))
    assert ledger.unsettled() == ["c"]
    ledger.settle(["c"])
    assert (ledger.seen, ledger.embedded, len(ledger.failed)) == (3, 2, 1)
    assert ledger.unsettled() == []
    ledger.check(0.5)


def test_a_sample_cannot_be_settled_twice_or_without_being_there():
    ledger = ledger_of("a", "b")
    ledger.settle(["a"])
    for key in ("a", "never there"):
        with pytest.raises(EmbedderError, match=f"a sample '{key}' that is not in the tar, or yielded it twice"):
            ledger.settle(["b", key])
        with pytest.raises(EmbedderError, match=f"'{key}'"):
            ledger.fail(FailedSample(key, "bad_vector", "NaN"))
        ledger.open("b")


def test_a_key_that_is_there_twice_is_settled_twice():
    ledger = ledger_of("a", "a")
    ledger.settle(["a"])
    assert ledger.unsettled() == ["a"]
    ledger.settle(["a"])
    ledger.check(0)


def test_a_sum_that_does_not_come_out_is_an_error():
    ledger = ledger_of("a", "b")
    ledger.settle(["a"])
    with pytest.raises(ShardError, match="2 samples in the tar, but 1 embedded and 0 failed"):
        ledger.check(1)


def test_more_failures_than_allowed_fail_the_shard_with_counts_and_the_first():
    ledger = ledger_of(*"abcdefghij")
    for key in "cd":
        ledger.fail(FailedSample(key, "undecodable", f"{key} is broken"))
    ledger.settle(list("abefghij"))
    ledger.check(0.2)
    with pytest.raises(ShardError, match=r"2 of 10 samples failed \(2 undecodable\), such as 'c': c .*make the"):
        ledger.check(0.19)


def test_an_empty_shard_is_no_failure():
    Ledger("s.tar").check(0)


@pytest.mark.parametrize("kinds", [["rare", "common", "common", "also"], ["also", "common", "rare", "common"]])
def test_failures_are_counted_by_kind_most_frequent_first_whatever_failed_first(kinds):
    ledger = ledger_of(*"abcd")
    for key, kind in zip("abcd", kinds, strict=True):
        ledger.fail(FailedSample(key, kind, ""))
    assert list(ledger.count_kinds().items()) == [("common", 2), ("also", 1), ("rare", 1)]


def test_each_failure_is_logged_with_its_place_but_not_without_end(caplog):
    caplog.set_level(logging.WARNING)
    ledger = ledger_of(*map(str, range(1000)))
    for number in range(1000):
        ledger.fail(FailedSample(str(number), "undecodable", "bad", "0.jpg", 512))
    assert ": '0': undecodable: bad ['0.jpg' at byte 512]" in caplog.text
    assert len(caplog.records) == LOGGED_FAILURES + 1
    assert len(ledger.failed) == 1000
