"""A job whose disk is full, whose folder is read-only, or whose shard goes away: one line, nothing half-written."""

import os
import subprocess
from pathlib import Path

import pytest
import torch
from mean_color import MeanColor
from support.tools import MEAN_COLOR, leftovers, make_image, make_shard, make_tar, run_cli

from embedders import embed_shard
from embedders.errors import OutputError, ShardError


@pytest.fixture
def disk(tmp_path):
    """A file system of its own, of 64 KB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "none", folder]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a tmpfs cannot be mounted here")
    yield folder
    subprocess.run(["umount", folder], check=True)


class Wide(MeanColor):
    """Its vectors fill a small disk."""

    batch_size = 1

    def load_embedding_model(self, device):
        return lambda batch: torch.ones(len(batch), 20_000)


def assert_fails(error, words, shard, output, **options):
    with pytest.raises(error, match=words) as caught:
        embed_shard(Wide(), shard, output, device="cpu", **options)
    assert "\n" not in str(caught.value)


def test_a_full_disk_is_one_line_and_no_debris(tmp_path, disk):
    (disk / "other").write_bytes(b"x" * (64 << 10))
    output = disk / "s.parquet"
    job = run_cli("embed", make_shard(tmp_path / "s.tar", 2), output, "--embedder", MEAN_COLOR, "--device", "cpu")
    assert job.returncode == 1
    errors = [line for line in job.stderr.splitlines() if " INFO " not in line]
    assert errors == [
        f"error: {output}: cannot be written (No space left on device); expected a writable folder with free space; "
        "no partial file was left"
    ]
    assert leftovers(disk) == ["other"]


def test_a_disk_that_fills_half_way_is_one_line_and_no_debris(tmp_path, disk):
    assert_fails(OutputError, r"s\.parquet.*No space left", make_shard(tmp_path / "s.tar", 5), disk / "s.parquet")
    assert leftovers(disk) == []


def test_a_disk_that_is_full_at_the_ledger_leaves_no_vectors_without_one(tmp_path, disk):
    shard = make_tar(tmp_path / "s.tar", {f"{os.urandom(60).hex()}.jpg": b"" for _ in range(1500)})
    options = {"ledger_path": disk / "l.parquet", "max_failed_fraction": 1}
    assert_fails(OutputError, r"l\.parquet.*No space left", shard, tmp_path / "out" / "s.parquet", **options)
    assert leftovers(disk) == leftovers(tmp_path / "out") == []


def test_a_read_only_file_system_is_one_line(tmp_path, disk):
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    shard = make_shard(tmp_path / "s.tar", 2)
    assert_fails(OutputError, r"s\.parquet.*Read-only", shard, disk / "s.parquet")
    assert_fails(OutputError, r"l\.parquet.*Read-only", shard, tmp_path / "s.parquet", ledger_path=disk / "l.parquet")
    assert leftovers(tmp_path) == ["s.tar"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_one_line(tmp_path):
    (tmp_path / "closed").mkdir(mode=0o500)
    assert_fails(OutputError, "denied", make_shard(tmp_path / "s.tar", 2), tmp_path / "closed" / "s.parquet")


# A shard that goes away or changes.


def vanish(shard):
    shard.unlink()


def truncate(shard):
    os.truncate(shard, 100_000)


def overwrite(shard):
    with shard.open("r+b") as file:
        file.seek(1_000_000)
        file.write(b"\xff" * 1_000_000)


def replace(shard):
    make_shard(shard.with_name("new.tar"), 3)
    shard.with_name("new.tar").replace(shard)


@pytest.mark.parametrize("change", [vanish, truncate, overwrite, replace])
def test_a_shard_that_changes_while_it_is_read_is_one_line(tmp_path, change):
    image = make_image(1, (900, 900), "PNG")
    shard = Path(make_tar(tmp_path / "s.tar", {f"{n}.png": image for n in range(8)}))
    changes = [change]

    class Meanwhile(MeanColor):
        batch_size = 1

        def load_embedding_model(self, device):
            def forward(batch):
                if changes:
                    changes.pop()(shard)
                return batch.mean(dim=(2, 3))

            return forward

    with pytest.raises(
        ShardError, match=rf"s\.tar'?: .*({'changed or vanished' if change in (vanish, replace) else ''})"
    ):
        embed_shard(Meanwhile(), shard, tmp_path / "out" / "s.parquet", device="cpu", max_failed_fraction=1)
    assert leftovers(tmp_path / "out") == []


def test_a_shard_that_vanished_before_is_one_line(tmp_path):
    assert_fails(ShardError, "no such shard", tmp_path / "none.tar", tmp_path / "out" / "s.parquet")
    assert not (tmp_path / "out").exists()
