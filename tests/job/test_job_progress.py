import logging
import os
import pty
import subprocess
import sys

import pytest
from support.tools import MEAN_COLOR, ROOT, clean_environment, make_shard

from embedders.job import progress
from embedders.job.progress import Progress, find_fraction
from embedders.job.shard_job import ShardJob
from embedders.output.ledger import Ledger
from embedders.reading.loader import ShardLoad


def make_load(embedded, offset=0):
    load = ShardLoad(Ledger("s.tar"), offset=offset)
    load.ledger.embedded = embedded
    return load


def test_a_job_is_as_far_as_its_shards_in_bytes(tmp_path):
    small, large = tmp_path / "small.tar", tmp_path / "large.tar"
    small.write_bytes(b"x" * 1000)
    large.write_bytes(b"x" * 3000)
    first, second = (ShardJob(str(path), "o", None) for path in (small, large))
    count = Progress([first, second])
    count(first, make_load(5, 500))
    assert (count.images, count.fraction) == (5, 0.125)
    count(first, make_load(8, 1000))
    count(second, make_load(0))
    assert (count.images, count.fraction) == (8, 0.25)
    count(second, make_load(30, 1500))
    assert (count.images, count.fraction) == (38, 0.625)


def test_of_shards_with_an_address_only_the_done_ones_count():
    jobs = [ShardJob(f"s3://photos/{number}.tar", "o", None) for number in range(4)]
    count = Progress(jobs)
    count(jobs[0], make_load(5, 500))
    assert count.fraction == 0
    count(jobs[1], make_load(5, 500))
    assert count.fraction == 0.25


def test_a_shard_whose_samples_were_counted_is_as_far_as_these():
    load = make_load(0)
    for key in "abcd":
        load.ledger.open(key)
    load.is_counted = True
    load.ledger.settle(["a"])
    assert find_fraction(load, "s.tar", 100) == 0.25


def test_how_far_a_compressed_shard_is_stays_unknown():
    assert find_fraction(make_load(5, 5000), "s.tar.gz", 1000) == 0.0


def test_a_log_gets_a_line_at_intervals(tmp_path, monkeypatch, caplog):
    shard = tmp_path / "s.tar"
    shard.write_bytes(b"x" * 1000)
    job = ShardJob(str(shard), "o", None)
    count = Progress([job])
    caplog.set_level(logging.INFO)
    count(job, make_load(5, 250))
    assert not caplog.messages
    monkeypatch.setattr(progress, "LINE_INTERVAL_S", 0)
    count(job, make_load(8, 500))
    assert "s.tar: 8 images, " in caplog.messages[0]
    assert "50% of the job, about 0 min to go" in caplog.messages[0]


def embed(tmp_path, **options):
    shard = make_shard(tmp_path / "s.tar", 5)
    command = [sys.executable, "-m", "embedders", "embed", shard, tmp_path / "s.parquet", "--embedder", MEAN_COLOR]
    return subprocess.Popen([*command, "--device", "cpu"], cwd=ROOT, env=clean_environment(), **options)


@pytest.mark.slow
def test_a_terminal_shows_a_bar(tmp_path):
    ours, theirs = pty.openpty()
    process = embed(tmp_path, stderr=theirs)
    os.close(theirs)
    shown = b""
    try:
        while chunk := os.read(ours, 4096):
            shown += chunk
    except OSError:  # the other end is closed
        pass
    os.close(ours)
    assert process.wait() == 0
    assert b"[####" in shown
    assert b"5 images, " in shown


@pytest.mark.slow
def test_a_file_gets_no_bar(tmp_path):
    process = embed(tmp_path, stderr=subprocess.PIPE, text=True)
    _, log = process.communicate()
    assert process.returncode == 0
    assert "[#" not in log
    assert "\r" not in log
