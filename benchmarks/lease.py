"""What a GPU lease costs a job: milliseconds from the start of NVML to the pinned device.

    python benchmarks/lease.py

Each of 30 measurements is a new process, as each job is one; the time to start Python and to import is not
counted. On the fake driver of the tests (8 idle cards) it is the cost of this project's own code and locks.
Where the machine has a driver of its own, that is measured too, and its start-up with it.
"""

import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "tests")]

from support.fake_nvml.world import World, compile_driver  # noqa: E402

from embedders.gpu.nvml import has_driver  # noqa: E402

MEASUREMENTS = 30
LEASE = """
import time
from embedders.gpu.lease import lease_gpu
from embedders.gpu.terms import Terms
start_s = time.perf_counter()
with lease_gpu("benchmark", Terms(0)):
    print((time.perf_counter() - start_s) * 1000)
"""


def measure(what: str, env: dict[str, str] | None) -> None:
    """Print the median and the range of some leases."""
    command = [sys.executable, "-c", LEASE]
    took_ms = sorted(
        float(subprocess.run(command, env=env, cwd=REPOSITORY, check=True, capture_output=True).stdout)
        for _ in range(MEASUREMENTS)
    )
    median_ms = statistics.median(took_ms)
    print(f"{what}: {median_ms:.1f} ms (median of {MEASUREMENTS}; {took_ms[0]:.1f} to {took_ms[-1]:.1f})")


def main() -> None:
    """Measure on the fake driver, and on the real one where there is one."""
    with tempfile.TemporaryDirectory() as folder:
        world = World(compile_driver(Path(folder) / "driver"), Path(folder))
        world.write_gpus(8)
        measure("fake driver, 8 cards", world.env)
    if has_driver():
        measure("this machine's driver", None)


if __name__ == "__main__":
    main()
