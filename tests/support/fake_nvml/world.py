"""A node with the GPUs that a test wishes for: `nvml.c` compiled, and the file that tells it of them."""

import os
import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).parent
REPOSITORY = SOURCE.parents[2]


def compile_driver(folder: Path, *flags: str) -> Path:
    """Make `libnvidia-ml.so.1` and `libcuda.so.1` in a folder."""
    folder.mkdir()
    for source, library in (("nvml.c", "libnvidia-ml.so.1"), ("cuda.c", "libcuda.so.1")):
        command = ["gcc", "-shared", "-fPIC", "-Wall", "-Werror", *flags]
        subprocess.run([*command, SOURCE / source, "-o", folder / library], check=True)
    return folder


class World:
    """What the fake driver reports, and the environment that leads a process to it.

    Attributes:
        driver: The folder of its libraries.
        folder: Readable by every user; holds the world's file and the folder of leases.
        env: For `subprocess`.
    """

    def __init__(self, driver: Path, folder: Path):
        self.repository = REPOSITORY
        self.driver = driver
        self.folder = folder
        self.file = folder / "world.txt"
        self.leases = folder / "leases"
        self.env = {name: value for name, value in os.environ.items() if not name.startswith("CUDA_")}
        self.env |= {
            "LD_LIBRARY_PATH": str(driver),
            "FAKE_NVML": str(self.file),
            "TARQUET_LEASE_DIR": str(self.leases),
            "PYTHONPATH": os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")]),
        }

    def write(self, *lines: str) -> None:
        """Change the world, at once: who reads meanwhile sees the old one or the new one."""
        new = self.file.with_suffix(".new")
        new.write_text("".join(f"{line}\n" for line in lines))
        new.replace(self.file)

    def write_gpus(self, count: int) -> None:
        """Make a world of idle cards `GPU-0`, `GPU-1`, ..."""
        self.write(*(describe(f"GPU-{number}") for number in range(count)))

    def run(self, *command: str, timeout_s: float = 300, **env: str) -> str:
        """Run Python in this world and return what it printed."""
        return self.start(*command, **env).communicate(timeout=timeout_s)[0]

    def start(self, *command: str, cwd: Path | None = None, **env: str) -> subprocess.Popen:
        """Start Python in this world."""
        return subprocess.Popen(
            [sys.executable, *map(str, command)],
            cwd=cwd,
            env=self.env | env,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )


def describe(uuid: str, kind: str = "gpu", **changes: object) -> str:
    """Return a line of the world: an idle device of 80 GB, but for the changes; None drops a field."""
    fields = {
        "uuid": uuid,
        "name": "Fake",
        "total": 80000,
        "used": 4,
        "procs": 0,
        "util": 0,
        "mode": 0,
        "mig": 0,
    }
    fields |= changes
    return " ".join([kind, *(f"{name}={value}" for name, value in fields.items() if value is not None)])
