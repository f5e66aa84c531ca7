"""A real Apptainer for as long as a test wants it, and small images that the definitions of the real ones build.

Where no Apptainer is installed, that of Debian's unstable release is put beside this machine's older libc, in a
folder that goes when the tests end. What makes an image small is its base, in which pip installs Tarquet alone; the
jobs get torch and the rest from this machine by a bind, as a user adds packages of their own.
"""

import ctypes
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from support.cluster.slurm import install
from support.tools import ROOT

PACKAGES = {"patchelf": "patchelf", "mmdebstrap": "mmdebstrap", "squashfs-tools": "mksquashfs"}
LIBRARIES = "usr/lib/x86_64-linux-gnu"
UNSTABLE = ("apptainer", "libc6", "libseccomp2", "libsqlite3-0")
SITE_PACKAGES = sysconfig.get_path("purelib")
BASE_PACKAGES = "ca-certificates,python3,python3-venv"
OF_ONES_OWN = "webcolors==25.10.0"  # stands for what a user adds; not among this machine's packages
# The folder of the image from which pip takes what Tarquet is built with, and what a user adds.
WHEELS = "wheels"
FAST = ("--mksquashfs-args", "-comp zstd -Xcompression-level 1")


def find_missing() -> str | None:
    """Say what this machine lacks to run Apptainer, or nothing."""
    release = platform.freedesktop_os_release()
    if os.getuid() != 0 or (release["ID"], release.get("VERSION_ID")) != ("debian", "12"):
        return "an Apptainer and an image of its own need root on Debian 12"
    if sys.version_info[:2] != (3, 11):
        return "the image borrows this machine's packages, and so needs Debian 12's Python 3.11"
    if platform.machine() != "x86_64":
        return "the Apptainer of its own is for x86-64"
    return None


class Apptainer:
    """An Apptainer and its images; a context, at whose end nothing of it is left but Debian's packages.

    Attributes:
        folder: Holds all of it.
        path: The search path with `apptainer` on it.
    """

    def __init__(self):
        install(PACKAGES)
        self.folder = Path(tempfile.mkdtemp(prefix="tarquet-apptainer-"))
        self.folder.chmod(0o755)
        self.path = os.environ["PATH"]

    def __enter__(self) -> "Apptainer":
        try:
            if not shutil.which("apptainer"):
                install_unstable(self.folder / "installed")
                self.path = f"{self.folder}/installed/usr/bin{os.pathsep}{self.path}"
            self._make_base()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_error: object) -> None:
        shutil.rmtree(self.folder)

    @property
    def environment(self) -> dict[str, str]:
        """The variables that a user of the small images sets, whose jobs find their packages on this machine."""
        return {"PATH": self.path, "APPTAINER_BIND": SITE_PACKAGES, "APPTAINERENV_PYTHONPATH": SITE_PACKAGES}

    def build(self, image: str, definition: str | Path, base: str = "base") -> Path:
        """Build an image, without its %test, from an image of this folder or from the base."""
        bases = ("--build-arg", "bootstrap=localimage", "--build-arg", f"from={self.folder / base}")
        self._set_capabilities("full")
        done = subprocess.run(
            ["apptainer", "build", "--notest", *FAST, *bases, self.folder / image, definition],
            cwd=ROOT, env=os.environ | {"PATH": self.path, "APPTAINER_CACHEDIR": str(self.folder / "cache")},
            preexec_fn=regain_capabilities, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        self._set_capabilities("no")
        assert done.returncode == 0, done.stdout
        return self.folder / image

    def _set_capabilities(self, choice: str) -> None:
        """Choose what root has in a container: to run, less than this machine may lack; to build, all there is."""
        config = self.folder / "installed/usr/etc/apptainer/apptainer.conf"
        if config.exists():
            setting = "root default capabilities = "
            config.write_text(re.sub(f"(?m)^{setting}.*", setting + choice, config.read_text()))

    def _make_base(self) -> None:
        """Make what stands for `debian:bookworm-slim`: Debian's, and a folder that pip takes packages from."""
        base = self.folder / "base"
        options = ("--variant=apt", f"--include={BASE_PACKAGES}", "--dpkgopt=force-unsafe-io")
        subprocess.run(["mmdebstrap", "--quiet", *options, "bookworm", base], check=True)
        shutil.rmtree(base / "dev")  # nodes that a namespace may not copy
        (base / "dev").mkdir()
        settings = ("[global]", "no-deps = true", "no-index = true", f"find-links = /{WHEELS}")
        (base / "etc/pip.conf").write_text("\n".join(settings) + "\n")
        pins = (ROOT / "requirements.txt").read_text().split()
        wheels = [*(pin for pin in pins if pin.startswith("setuptools==")), OF_ONES_OWN]
        pip = (sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", base / WHEELS)
        subprocess.run([*pip, *wheels], check=True)


def install_unstable(prefix: Path) -> None:
    """Put Debian unstable's Apptainer into a folder, with the libc that it wants."""
    work = prefix.with_name("packages")
    for folder in ("lists/partial", "cache/archives/partial", "unpacked"):
        (work / folder).mkdir(parents=True)
    sites = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages", "Codename: bookworm"],
        check=True, capture_output=True, text=True,
    ).stdout.split()  # fmt: skip
    keys = "/usr/share/keyrings/debian-archive-keyring.gpg"
    (work / "sources").write_text(f"deb [signed-by={keys}] {sites[0]} sid main\n")
    (work / "status").touch()
    settings = {
        "Dir::Etc::SourceList": work / "sources", "Dir::Etc::SourceParts": "/dev/null",
        "Dir::State::Lists": work / "lists", "Dir::State::status": work / "status", "Dir::Cache": work / "cache",
        "APT::Sandbox::User": "root", "Acquire::Languages": "none",
    }  # fmt: skip
    apt = ["apt-get", "-qq", *(f"-o{name}={value}" for name, value in settings.items())]
    subprocess.run([*apt, "update"], check=True)
    subprocess.run([*apt, "download", *UNSTABLE], check=True, cwd=work)
    for package in work.glob("*.deb"):
        subprocess.run(["dpkg-deb", "-x", package, work / "unpacked"], check=True)

    (prefix / "usr/var/lib/apptainer/mnt/session").mkdir(parents=True)
    (prefix / "libc").mkdir()
    for source, target in (
        ("usr/bin/apptainer", "usr/bin/apptainer"),
        (f"{LIBRARIES}/apptainer", f"{LIBRARIES}/apptainer"),
        ("etc/apptainer", "usr/etc/apptainer"),
    ):
        (prefix / target).parent.mkdir(parents=True, exist_ok=True)
        (work / "unpacked" / source).rename(prefix / target)
    for pattern in ("ld-linux-x86-64.so.2", "lib[cm].so.6", "lib*resolv.so.2", "libseccomp.so.2", "libsqlite3.so.0"):
        for library in (work / "unpacked").rglob(pattern):
            shutil.copy(library, prefix / "libc")
    for name in ("var", "etc", "bin"):  # it takes the folder above its libraries for its prefix
        (prefix / "usr/lib" / name).symlink_to(f"../{name}")
    loader = (
        "--set-interpreter",
        prefix / "libc/ld-linux-x86-64.so.2",
        "--force-rpath",
        "--set-rpath",
        prefix / "libc",
    )
    for program in ("usr/bin/apptainer", f"{LIBRARIES}/apptainer/bin/starter"):
        subprocess.run(["patchelf", *loader, prefix / program], check=True)
    shutil.rmtree(work)


def regain_capabilities() -> None:
    """Put this process into a namespace where root has all capabilities, of which this machine's may lack some."""
    here, is_in_namespace = os.pipe()
    child = os.getpid()
    outside = os.fork()
    if outside == 0:
        os.read(here, 1)
        for name in ("uid_map", "gid_map"):
            Path(f"/proc/{child}/{name}").write_text("0 0 65536\n")
        os._exit(0)
    if ctypes.CDLL(None, use_errno=True).unshare(0x10000000 | 0x00020000):  # CLONE_NEWUSER, CLONE_NEWNS
        raise OSError(ctypes.get_errno(), "unshare")
    os.write(is_in_namespace, b"x")
    os.waitpid(outside, 0)
