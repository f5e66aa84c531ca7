import numpy as np
import pytest

from embedders.output.summary import Summary
from embedders.report.findings import check_vectors, judge_run, judge_vectors


def make_vectors(rows=200, dimension=8):
    vectors = np.random.default_rng(0).normal(size=(rows, dimension)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def judge(vectors, near_copies=0):
    return {finding.text: finding.level for finding in judge_vectors(check_vectors(vectors), near_copies)}


def find_level(findings, words):
    (level,) = [level for text, level in findings.items() if words in text]
    return level


def test_vectors_of_a_model_that_works_are_good():
    findings = judge(make_vectors())
    assert set(findings.values()) == {"good"}
    assert find_level(findings, "have norm 1: a dot product is their cosine") == "good"


@pytest.mark.parametrize(
    ("spoil", "words", "level"),
    [
        (lambda vectors: vectors * np.linspace(1, 3, 200)[:, None], "norms of the vectors range from 1 to 3", "look"),
        (lambda vectors: vectors * 5, "have norm 5: but not 1", "good"),
        (
            lambda vectors: np.where(np.arange(8) == 3, 0, vectors),
            "1 of the 8 dimensions have the same value",
            "look",
        ),
        (lambda vectors: np.ones((200, 8)) + vectors / 9, "very similar", "look"),
        (lambda vectors: np.where(np.arange(200)[:, None] < 3, 0, vectors), "3 of 200 vectors are zero", "wrong"),
        (
            lambda vectors: np.where(np.arange(200)[:, None] < 4, np.inf, vectors),
            "4 of 200 vectors are zero",
            "wrong",
        ),
    ],
)
def test_each_thing_that_is_wrong_is_said(spoil, words, level):
    assert find_level(judge(spoil(make_vectors())), words) == level


def test_near_copies_are_said():
    assert find_level(judge(make_vectors(), near_copies=12), "12 of 200 images have a near copy") == "look"


def test_no_vectors_and_one_are_no_error():
    assert judge(np.empty((0, 4), np.float32)) == {}
    assert set(judge(make_vectors(1)).values()) == {"good"}


def test_a_run_is_judged_by_its_failures_and_by_what_is_not_finished():
    good = judge_run(Summary(shards=1, samples=9, embedded=9), 0)
    assert [(one.level, one.text) for one in good] == [("good", "All 9 samples were embedded.")]
    failed = Summary(samples=200, embedded=190, failed=10, failures={"undecodable": 8, "bad_name": 2})
    unfinished, look = judge_run(failed, 3)
    assert (unfinished.level, look.level) == ("wrong", "look")
    assert "10 of 200 samples failed (5.00%); the most frequent reason is undecodable, 8 times" in look.text


def test_images_that_were_embedded_although_a_decoder_said_something_are_shown():
    (_, look) = judge_run(Summary(shards=1, samples=9, embedded=9, remarks={"patched": 2}), 0)
    assert (look.level, look.text) == (
        "look",
        "Images embedded nevertheless: 2 patched; the logs of the shards name them.",
    )
