"""Why a shard has no result: what is found in the logs of real jobs, and of one that could say nothing."""

import re

import pytest
from support.tools import MEAN_COLOR, make_shard, make_tar, run_cli

from embedders.planning.failures import find_error

BROKEN = """
from mean_color import MeanColor

class Broken(MeanColor):
    def load_embedding_model(self, device):
        raise SystemError("a defect")
"""


def run_job(folder, *shards, embedder=MEAN_COLOR):
    """The log of a job, as the rule keeps it."""
    first, *others = [(str(shard), f"{folder}/{shard.stem}.parquet", f"{folder}/{shard.stem}.l") for shard in shards]
    also = [part for paths in others for part in ("--also", *paths)]
    job = run_cli("embed", *first[:2], *also, "--embedder", embedder, "--device", "cpu", "--threads", "1")
    (folder / "log").write_text(job.stderr)
    return folder / "log"


def test_the_error_of_a_job_is_found(tmp_path):
    shard = tmp_path / "a.tar"
    make_tar(shard, {"a.jpg": b"no image"})
    assert re.match(r"1 of 1 samples failed", find_error(run_job(tmp_path, shard), str(shard)))


def test_of_a_job_of_several_each_shard_has_its_own_error(tmp_path):
    good, bad, cut = (tmp_path / f"{name}.tar" for name in ("good", "bad", "cut"))
    make_shard(good, 2)
    make_tar(bad, {"a.jpg": b"no image"})
    make_shard(cut, 2)
    cut.write_bytes(cut.read_bytes()[:-9000])
    log = run_job(tmp_path, good, bad, cut)
    assert find_error(log, str(bad)).startswith("1 of 1 samples failed")
    assert find_error(log, str(cut)).startswith("damaged at byte 0")


def test_of_a_traceback_the_last_line_is_told(tmp_path):
    (tmp_path / "broken.py").write_text(BROKEN)
    make_shard(tmp_path / "a.tar", 2)
    log = run_job(tmp_path, tmp_path / "a.tar", embedder=f"{tmp_path}/broken.py:Broken")
    assert "a defect" in find_error(log, f"{tmp_path}/a.tar")


@pytest.mark.parametrize("text", ["", "2026-11-24 23:05:20 INFO loaded MeanColor on cpu in 0.0 s\n"])
def test_a_job_that_was_killed_could_say_nothing(tmp_path, text):
    (tmp_path / "log").write_text(text)
    assert "left no error" in find_error(tmp_path / "log", "a.tar")
