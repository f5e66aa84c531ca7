"""The folder with the lock files of GPU leases: where it is, and whether it is safe to share.

Owns the folder, not the files in it (`locks.py`). All users of a node and the containers on it share this folder.
It is therefore in /tmp, which Apptainer mounts and Docker can mount (`-v /tmp:/tmp`), and not in $TMPDIR, which
clusters set to a separate folder for each job. It is sticky, like /tmp: only root and the folder's owner can delete
another user's file. A site that does not want a user to own it can create it at boot (tmpfiles.d: `d
/tmp/tarquet-leases 1777 root root -`). A site whose /tmp is private to each job sets TARQUET_LEASE_DIR to another
folder.
"""

import logging
import os
import re
import stat
from pathlib import Path

from embedders.errors import GpuError

log = logging.getLogger(__name__)

FOLDER_VARIABLE = "TARQUET_LEASE_DIR"
DEFAULT_FOLDER = "/tmp/tarquet-leases"
MOUNTINFO = Path("/proc/self/mountinfo")

# Filesystems on which this node's own kernel decides about `flock`. A network filesystem may not see locks of other
# nodes, may wait for a server that hangs, or may grant a lock to everybody. Filesystems not listed are refused.
_LOCAL_FILESYSTEMS = {"bcachefs", "btrfs", "ext2", "ext3", "ext4", "f2fs", "overlay", "tmpfs", "xfs", "zfs"}


def find_folder() -> Path:
    """Return the path of the lock folder, which does not have to exist.

    Raises:
        GpuError: TARQUET_LEASE_DIR holds a relative path.
    """
    folder = Path(os.environ.get(FOLDER_VARIABLE) or DEFAULT_FOLDER)
    if not folder.is_absolute():
        raise _refusal(folder, "is a relative path, which differs between jobs")
    return folder


def open_folder() -> Path:
    """Create the lock folder if it is missing, check that it is safe to share, and return it.

    Raises:
        GpuError: It cannot be created, is not a folder, lets others delete locks or is on a network filesystem.
    """
    folder = find_folder()
    try:
        folder.mkdir()
        folder.chmod(0o1777)  # the umask limits mkdir's mode; a job that checks before this line fails and is retried
    except FileExistsError:
        pass
    except OSError as error:
        raise _refusal(folder, f"cannot be created ({error.strerror})") from error
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode):
        raise _refusal(folder, "is not a folder (a link to a folder is not accepted)")
    if status.st_mode & stat.S_IWOTH and not status.st_mode & stat.S_ISVTX:
        raise _refusal(folder, f"lets everybody delete locks ({stat.filemode(status.st_mode)}: chmod 1777)")
    filesystem = find_filesystem(folder.resolve(), MOUNTINFO.read_text())
    if filesystem not in _LOCAL_FILESYSTEMS:
        raise _refusal(folder, f"is on {filesystem!r}, which is not known to be local to this node")
    if filesystem == "overlay":
        log.warning("leases in %s do not reach beyond this container: mount the host's /tmp into it", folder)
    return folder


def find_filesystem(folder: Path, mountinfo: str) -> str:
    """Return the type of the filesystem of a folder, or "unknown".

    Args:
        folder: An absolute path without links.
        mountinfo: The text of /proc/self/mountinfo (see proc_pid_mountinfo(5)).
    """
    deepest, filesystem = "", "unknown"
    for line in mountinfo.splitlines():
        mount, _, source = line.partition(" - ")
        path = re.sub(r"\\(\d{3})", lambda code: chr(int(code[1], 8)), mount.split()[4])
        # If two mounts have the same path, the later one hides the earlier one.
        if folder.is_relative_to(path) and len(path) >= len(deepest):
            deepest, filesystem = path, source.split()[0]
    return filesystem


def _refusal(folder: Path, why: str) -> GpuError:
    return GpuError(
        f"the folder of GPU leases '{folder}' {why}: expected a folder on a local disk that all jobs of this node "
        f"see; fix it, or set {FOLDER_VARIABLE} to another"
    )
