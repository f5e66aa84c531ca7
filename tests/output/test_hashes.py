"""Hashes of files: a large one is read once, until its size or time is another."""

import os

import pytest

from embedders.output import hashes
from embedders.output.hashes import SMALL_BYTES, Hashes, hash_file


@pytest.fixture
def large(tmp_path):
    path = tmp_path / "data/w.pt"
    path.parent.mkdir()
    path.write_bytes(os.urandom(SMALL_BYTES + 1))
    return path


def find(folder, path):
    """The hash, and whether the file was remembered."""
    memory = Hashes(folder / "record/hashes.json")
    is_known = memory.knows(path)
    found = memory.find(path)
    memory.save()
    return found, is_known


def test_a_large_file_is_read_once_and_again_after_a_touch(tmp_path, large, monkeypatch):
    (tmp_path / "results").mkdir()
    assert find(tmp_path / "results", large) == (hash_file(large), False)
    with monkeypatch.context() as context:
        context.setattr(hashes, "hash_file", None)
        assert find(tmp_path / "results", large)[1]
    os.utime(large, (1, 1))
    assert find(tmp_path / "results", large) == (hash_file(large), False)


@pytest.mark.parametrize("stored", ["", '{"a": ', "[1]", "\xff"])
def test_without_what_was_stored_a_file_is_read_again(tmp_path, large, stored):
    (tmp_path / "results/record").mkdir(parents=True)
    (tmp_path / "results/record/hashes.json").write_text(stored, encoding="latin-1")
    assert find(tmp_path / "results", large) == (hash_file(large), False)
    assert find(tmp_path / "results", large) == (hash_file(large), True)


def test_a_small_file_is_always_read(tmp_path, large):
    memory = Hashes(tmp_path / "record/hashes.json")
    large.write_bytes(b"one")
    os.utime(large, (1, 1))
    first = memory.find(large)
    large.write_bytes(b"two")
    os.utime(large, (1, 1))
    assert memory.find(large) != first


def test_nothing_is_kept_for_a_folder_that_is_not_there(tmp_path, large):
    find(tmp_path / "results", large)
    assert not (tmp_path / "results").exists()
