"""The record of an output folder: many add to it, one joins what they added, and nothing is lost on the way."""

import pytest

from embedders.errors import OutputError
from embedders.output.record import Addition, Origin, Record, digest

RECIPE, OTHER = {"class": "a:A"}, {"class": "a:B"}


def test_what_processes_add_is_read_at_once_and_is_the_same_when_joined(tmp_path):
    first, second = Addition(tmp_path, RECIPE), Addition(tmp_path, OTHER)
    first.add(tmp_path / "embeddings/a.parquet", bytes=1, mtime_ns=2, sha256="x")
    second.add(tmp_path / "embeddings/deep/b.c.parquet")
    first.add(tmp_path / "embeddings/d.parquet")
    expected = {
        "embeddings/a": Origin(digest(RECIPE), 1, 2, "x"),
        "embeddings/d": Origin(digest(RECIPE)),
        "embeddings/deep/b.c": Origin(digest(OTHER)),
    }
    assert Record(tmp_path).origins == expected
    Record(tmp_path).join()
    assert not list((tmp_path / "record/new").iterdir())
    assert Record(tmp_path).origins == expected
    assert Record(tmp_path).recipes == {digest(RECIPE): RECIPE, digest(OTHER): OTHER}


def test_the_last_word_on_an_output_counts(tmp_path):
    Addition(tmp_path, RECIPE).add(tmp_path / "embeddings/a.parquet")
    Record(tmp_path).join()
    for recipe in (RECIPE, OTHER):
        Addition(tmp_path, recipe).add(tmp_path / "embeddings/a.parquet")
    assert Record(tmp_path).origins["embeddings/a"].recipe == digest(OTHER)
    Record(tmp_path).join()
    assert Record(tmp_path).recipes == {digest(OTHER): OTHER}


def test_a_record_that_cannot_be_read_is_an_error_and_not_an_empty_one(tmp_path):
    Addition(tmp_path, RECIPE).add(tmp_path / "embeddings/a.parquet")
    Record(tmp_path).join()
    (tmp_path / "record/outputs.json").write_text("{")
    with pytest.raises(OutputError, match=r"outputs\.json' cannot be read"):
        Record(tmp_path)
