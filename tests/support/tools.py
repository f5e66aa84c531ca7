"""What several tests need: tiny real tars, tiny real images, and a way to run the command line."""

import io
import json
import os
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[2]
MEAN_COLOR = f"{ROOT}/examples/mean_color.py:MeanColor"


def encode(image: Image.Image, form: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def make_image(
    seed: int = 0, size: tuple[int, int] = (40, 30), form: str = "JPEG", mode: str = "RGB", **options
) -> bytes:
    """Encode a smooth random picture: low frequencies, as in a photograph, so that resizing is a fair test."""
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 256, (5, 5, 3), dtype=np.uint8))
    return encode(coarse.resize(size, Image.Resampling.BICUBIC).convert(mode), form, **options)


def make_tar(path, members, mode: str = "w", **options) -> str:
    """Write a tar of (name, content) pairs; a content that is a dict becomes JSON."""
    with tarfile.open(path, mode, **options) as archive:
        for name, content in members.items() if isinstance(members, dict) else members:
            content = json.dumps(content).encode() if isinstance(content, dict) else content
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return str(path)


def make_shard(path, count: int, **fields) -> str:
    """Write a shard of `count` pictures, each with a `.json` of its number."""
    members = {}
    for number in range(count):
        members[f"{number:05d}.jpg"] = make_image(number)
        members[f"{number:05d}.json"] = {"id": f"img-{number}", "number": number, **fields}
    return make_tar(path, members)


def run_cli(*arguments, **options) -> subprocess.CompletedProcess:
    """Run `python -m embedders` as a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "embedders", *map(str, arguments)],
        **{"cwd": ROOT, "capture_output": True, "text": True, "timeout": 600, "env": clean_environment()} | options,
    )


def run_python(*arguments, **options) -> subprocess.CompletedProcess:
    """Run Python as a process of its own."""
    options = {"capture_output": True, "text": True, "timeout": 600} | options
    return subprocess.run([sys.executable, *map(str, arguments)], **options)


def start_python(code: str, *arguments, **options) -> subprocess.Popen:
    """Start a Python process on `code`, with the project and these tools on its path."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        **{"cwd": ROOT, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | options,
        env=clean_environment(),
    )


def wait_until(condition, process: subprocess.Popen | None = None, timeout_s: float = 300) -> None:
    """Wait for a condition while a process runs; a busy machine may take minutes for a matter of seconds."""
    end_s = time.monotonic() + timeout_s
    while not condition():
        assert process is None or process.poll() is None or condition(), "the process has ended"
        assert time.monotonic() < end_s, f"not so after {timeout_s} s"
        time.sleep(0.02)


def clean_environment() -> dict[str, str]:
    paths = [str(ROOT), str(ROOT / "tests"), str(ROOT / "examples")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}


def leftovers(folder) -> list[str]:
    """Names of all the files below a folder, hidden ones included."""
    return sorted(str(path.relative_to(folder)) for path in Path(folder).rglob("*") if path.is_file())
