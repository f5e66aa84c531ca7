import logging
import os
import stat
from pathlib import Path

import pytest

from embedders.errors import GpuError
from embedders.gpu import lock_folder
from embedders.gpu.lock_folder import find_filesystem, find_folder, open_folder

MOUNTS = r"""
22 1 259:1 / / rw,relatime shared:1 - ext4 /dev/root rw
25 22 0:21 / /tmp rw,nosuid,nodev shared:3 - tmpfs tmpfs rw
26 22 0:44 /home /home rw - nfs4 server:/home rw,vers=4.2
27 26 0:45 / /home/ann/my\040disk rw - xfs /dev/sdb rw
28 22 0:46 / /scratch rw shared:7 master:2 - autofs systemd-1 rw
29 28 0:47 / /scratch rw - lustre 10.0.0.1@o2ib:/fs rw,flock
""".strip()


@pytest.mark.parametrize(
    ("folder", "filesystem"),
    [
        ("/var/locks", "ext4"),
        ("/tmp", "tmpfs"),
        ("/tmp/tarquet-leases", "tmpfs"),
        ("/tmpfoo/leases", "ext4"),
        ("/home/ann/leases", "nfs4"),
        ("/home/ann/my disk/leases", "xfs"),
        ("/scratch/leases", "lustre"),
    ],
)
def test_filesystem_of_a_folder(folder, filesystem):
    assert find_filesystem(Path(folder), MOUNTS) == filesystem


def test_unknown_filesystem(tmp_path):
    assert find_filesystem(tmp_path, "") == "unknown"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    folder = tmp_path / "leases"
    monkeypatch.setenv("TARQUET_LEASE_DIR", str(folder))
    return folder


@pytest.fixture
def mounted(folder, tmp_path, monkeypatch):
    """Make the system's table of mounts say that the folder is on some filesystem."""

    def mount(filesystem):
        table = tmp_path / "mountinfo"
        table.write_text(f"22 1 8:1 / / rw - ext4 /dev/a rw\n23 22 0:9 / {tmp_path} rw - {filesystem} there rw\n")
        monkeypatch.setattr(lock_folder, "MOUNTINFO", table)

    return mount


def test_folder_is_made_sticky_and_open_to_all(folder):
    before = os.umask(0o077)
    try:
        assert open_folder() == folder
    finally:
        os.umask(before)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o1777


def test_folder_that_exists_is_left_as_it_is(folder):
    folder.mkdir(mode=0o700)
    assert open_folder() == folder
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_default_is_the_same_for_all_jobs(monkeypatch):
    monkeypatch.delenv("TARQUET_LEASE_DIR", raising=False)
    monkeypatch.setenv("TMPDIR", "/somewhere/of/this/job")
    assert find_folder() == Path("/tmp/tarquet-leases")


@pytest.mark.parametrize(
    "filesystem", ["nfs", "nfs4", "cifs", "lustre", "gpfs", "ceph", "9p", "fuse.sshfs", "fuse.x"]
)
def test_network_filesystem_is_refused(mounted, folder, filesystem):
    mounted(filesystem)
    with pytest.raises(GpuError, match=f"{folder}.*is on '{filesystem}'.*local disk.*TARQUET_LEASE_DIR"):
        open_folder()


def test_folder_inside_a_container_is_remarked(mounted, folder, caplog):
    mounted("overlay")
    with caplog.at_level(logging.WARNING):
        assert open_folder() == folder
    assert "do not reach beyond this container" in caplog.text


def test_folder_without_sticky_bit_is_refused(folder):
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(GpuError, match=r"lets everybody delete locks.*chmod 1777"):
        open_folder()


def test_link_is_refused(folder, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(GpuError, match="is not a folder"):
        open_folder()


def test_file_is_refused(folder):
    folder.touch()
    with pytest.raises(GpuError, match="is not a folder"):
        open_folder()


def test_missing_parent_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("TARQUET_LEASE_DIR", str(tmp_path / "no" / "leases"))
    with pytest.raises(GpuError, match="cannot be created"):
        open_folder()


def test_relative_path_is_refused(monkeypatch):
    monkeypatch.setenv("TARQUET_LEASE_DIR", "leases")
    with pytest.raises(GpuError, match="is a relative path"):
        open_folder()
