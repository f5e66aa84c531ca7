"""Fixtures that several test files share."""

import ctypes
import os
import shutil
import signal
import tempfile
from pathlib import Path

# As many threads as cores in each of as many workers would mostly wait for each other.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pynvml
import pytest
from support.fake_nvml.world import World, compile_driver

# What is ignored here, as nohup and a CI do with SIGHUP and `pytest &` with SIGINT, would be ignored in the processes
# that tests start.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items):
    """Mark the folders of real runs as slow, and begin with what is slow: no worker is left with it at the end."""
    for item in items:
        if item.path.parent.name in ("workflow", "cluster") or "browser" in item.fixturenames:
            item.add_marker(pytest.mark.slow)
    slow_files = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: (item.path.parent.name != "workflow", item.path not in slow_files))


@pytest.fixture(scope="session")
def drivers():
    """A folder, readable by every user, with a fake driver of today (`new`) and one of long ago (`old`)."""
    if not shutil.which("gcc"):
        pytest.skip("needs gcc to compile the fake NVIDIA driver")
    folder = Path(tempfile.mkdtemp(prefix="fake-driver-"))
    folder.chmod(0o755)
    compile_driver(folder / "new")
    compile_driver(folder / "old", "-DOLD")
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def world(drivers):
    """A node with a driver and no GPU yet, in a folder of its own: pytest's are closed to other users."""
    folder = Path(tempfile.mkdtemp(prefix="fake-node-"))
    folder.chmod(0o1777)
    world = World(drivers / "new", folder)
    world.write()
    yield world
    shutil.rmtree(folder)


@pytest.fixture
def node(world, monkeypatch):
    """The same for code in the test's own process, which can be told no more where to find libraries."""
    monkeypatch.setattr(pynvml, "nvmlLib", ctypes.CDLL(world.driver / "libnvidia-ml.so.1"))
    monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
    for name in ("FAKE_NVML", "TARQUET_LEASE_DIR"):
        monkeypatch.setenv(name, world.env[name])
    for name in os.environ:
        if name.startswith("CUDA_"):
            monkeypatch.delenv(name)
    return world


@pytest.fixture
def scratch(tmp_path, monkeypatch):
    """The folder for temporary files, in this process and in those that it starts."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return folder
