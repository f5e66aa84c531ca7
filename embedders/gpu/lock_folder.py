"""The folder that holds the lock files of GPU leases: where it is, and whether it is fit to share.

Owns the folder, not the files in it (`leases.py`). It is one for all users of a node and for the containers
on it, hence /tmp, which Apptainer mounts and Docker can (`-v /tmp:/tmp`), and not $TMPDIR, which clusters
set to a folder of each job's own. It is sticky, like /tmp: nobody but root and its owner can delete another
user's file. A site that trusts no user with owning it makes it at boot (tmpfiles.d: `d /tmp/tarquet-leases
1777 root root -`); a site whose /tmp is private to each job names another folder in TARQUET_LEASE_DIR.
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

# Where `flock` is known to be decided by this node's own kernel. A network filesystem may forget the lock
# outside the node, ask a server that hangs, or grant it to everybody; one that is not listed is not
# trusted.
_LOCAL_FILESYSTEMS = {"bcachefs", "btrfs", "ext2", "ext3", "ext4", "f2fs", "overlay", "tmpfs", "xfs", "zfs"}


def find_folder() -> Path:
    """Return the path of the lock folder, which need not exist.

    Raises:
        GpuError: The variable holds a relative path.
    """
    folder = Path(os.environ.get(FOLDER_VARIABLE) or DEFAULT_FOLDER)
    if not folder.is_absolute():
        raise _refusal(folder, "is relative, so that every job would have its own")
    return folder


def open_folder() -> Path:
    """Return the lock folder, made if it is missing and found fit to share.

    Raises:
        GpuError: It cannot be made, is no folder, lets others delete locks or lies on a network filesystem.
    """
    folder = find_folder()
    try:
        folder.mkdir()
        folder.chmod(0o1777)  # the umask cuts the mode of mkdir; a job that comes in between tries again
    except FileExistsError:
        pass
    except OSError as error:
        raise _refusal(folder, f"cannot be made ({error.strerror})") from error
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode):
        raise _refusal(folder, "is not a folder (nor may it be a link to one)")
    if status.st_mode & stat.S_IWOTH and not status.st_mode & stat.S_ISVTX:
        raise _refusal(folder, f"lets everybody delete locks ({stat.filemode(status.st_mode)}: chmod 1777)")
    filesystem = find_filesystem(folder.resolve(), MOUNTINFO.read_text())
    if filesystem not in _LOCAL_FILESYSTEMS:
        raise _refusal(folder, f"is on {filesystem!r}, which is not known to be local to this node")
    if filesystem == "overlay":
        log.warning("leases in %s do not reach beyond this container: mount the host's /tmp into it", folder)
    return folder


def find_filesystem(folder: Path, mountinfo: str) -> str:
    """Return the type of the filesystem that holds a folder, or "unknown".

    Args:
        folder: An absolute path without links.
        mountinfo: The text of /proc/self/mountinfo (see proc_pid_mountinfo(5)).
    """
    deepest, filesystem = "", "unknown"
    for line in mountinfo.splitlines():
        mount, _, source = line.partition(" - ")
        path = re.sub(r"\\(\d{3})", lambda code: chr(int(code[1], 8)), mount.split()[4])
        # Of two mounts at one path the later one hides the earlier.
        if folder.is_relative_to(path) and len(path) >= len(deepest):
            deepest, filesystem = path, source.split()[0]
    return filesystem


def _refusal(folder: Path, why: str) -> GpuError:
    return GpuError(
        f"the folder of GPU leases '{folder}' {why}: expected one on a local disk that all jobs of this node "
        f"see; fix it, or name another in {FOLDER_VARIABLE}"
    )
