"""Why a shard has no result: what is found in the logs of real jobs, and of one that could say nothing."""

import re

import pytest
from support.tools import MEAN_COLOR, make_shard, make_tar, run_cli

from embedders.errors import ShardError
from embedders.job.failures import find_error, report_error, report_failure

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


@pytest.mark.slow
def test_the_error_of_a_job_is_found(tmp_path):
    shard = tmp_path / "a.tar"
    make_tar(shard, {"a.jpg": b"no image"})
    assert re.match(r"1 of 1 samples failed", find_error(run_job(tmp_path, shard), str(shard)))


@pytest.mark.slow
def test_of_a_job_of_several_each_shard_has_its_own_error(tmp_path):
    good, bad, cut = (tmp_path / f"{name}.tar" for name in ("good", "bad", "cut"))
    make_shard(good, 2)
    make_tar(bad, {"a.jpg": b"no image"})
    make_shard(cut, 2)
    cut.write_bytes(cut.read_bytes()[:-9000])
    log = run_job(tmp_path, good, bad, cut)
    assert find_error(log, str(bad)).startswith("1 of 1 samples failed")
    assert find_error(log, str(cut)).startswith("damaged at byte 0")
    assert find_error(log, str(good)).startswith("its job succeeded, but Snakemake rejected its output")


@pytest.mark.slow
def test_of_a_traceback_the_last_line_is_told(tmp_path):
    (tmp_path / "broken.py").write_text(BROKEN)
    make_shard(tmp_path / "a.tar", 2)
    log = run_job(tmp_path, tmp_path / "a.tar", embedder=f"{tmp_path}/broken.py:Broken")
    assert "a defect" in find_error(log, f"{tmp_path}/a.tar")


def test_of_a_job_that_was_killed_or_did_not_start_the_end_of_the_log_is_told(tmp_path):
    log = tmp_path / "log"
    log.write_text("")
    assert find_error(log, "a.tar").endswith("killed (out of memory or time, for example) or did not start")
    log.write_text("2026-11-24 23:05:20 INFO loaded MeanColor on cpu in 0.0 s\n")
    assert find_error(log, "a.tar").endswith("or did not start; its log ends with: " + log.read_text().strip())
    log.write_text("python: No module named embedders\n")
    assert find_error(log, "a.tar").endswith("its log ends with: python: No module named embedders")


def test_a_shard_that_failed_before_its_job_was_killed_keeps_its_own_error(tmp_path, capfd):
    report_failure("b c.tar", ShardError("'b c.tar': damaged at byte 0:\nbroken"))
    (tmp_path / "log").write_text(
        f"2026-11-24 23:05:20 INFO loaded\n{capfd.readouterr().err}2026-11-24 23:05:21 INFO x"
    )
    assert find_error(tmp_path / "log", "b c.tar") == "damaged at byte 0: broken"
    assert "left no error" in find_error(tmp_path / "log", "a.tar")


def test_a_shard_whose_error_was_reported_is_told_from_the_sum_at_the_end(tmp_path, capfd):
    report_failure("a.tar", ShardError("a.tar: 3 of 3 samples failed"))
    report_error("1 of 2 shards failed")
    (tmp_path / "log").write_text(capfd.readouterr().err)
    assert find_error(tmp_path / "log", "a.tar") == "3 of 3 samples failed"
    assert find_error(tmp_path / "log", "other.tar") == "1 of 2 shards failed"
