"""Measures the cost of reading: CPU microseconds to read a sample of three members (jpg, json, txt) into memory.

    python benchmarks/read_samples.py [ROUNDS] [SAMPLES]

The same samples are in tars written by img2dataset (with webdataset's TarWriter, so with PAX fields), by GNU tar,
and by Python's tarfile without PAX fields. Tarquet, webdataset's reader and tarfile read them in turn; the results
are medians.
"""

import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from io import BytesIO
from pathlib import Path

import webdataset

from embedders.reading.samples import read_samples


def make_samples(count: int) -> list[dict]:
    """Return samples of 2 kB, like small images."""
    text = b'{"caption": "a text", "url": "https://example.org/1.jpg", "width": 32, "height": 32}'
    return [{"__key__": f"{n:09}", "jpg": bytes(1500), "json": text, "txt": b"a text"} for n in range(count)]


def write_shards(folder: Path, samples: list[dict]) -> dict[str, str]:
    """Write one tar with each program."""
    paths = {name: f"{folder}/{name}.tar" for name in ("webdataset", "gnu", "ustar")}
    with webdataset.TarWriter(paths["webdataset"], encoder=False) as writer:
        for sample in samples:
            writer.write(sample)
    files = folder / "files"
    files.mkdir()
    with tarfile.open(paths["ustar"], "w", format=tarfile.USTAR_FORMAT) as tar:
        for sample in samples:
            for suffix in ("jpg", "json", "txt"):
                header = tarfile.TarInfo(f"{sample['__key__']}.{suffix}")
                header.size = len(sample[suffix])
                tar.addfile(header, BytesIO(sample[suffix]))
                (files / header.name).write_bytes(sample[suffix])
    subprocess.run(["tar", "--sort=name", "-C", files, "-cf", paths["gnu"], "."], check=True)
    return paths


def read_by_tarfile(path: str) -> None:
    """Read each member with tarfile."""
    with tarfile.open(path) as tar:
        for member in tar:
            if member.isreg():
                tar.extractfile(member).read()


READERS = {
    "ours": lambda path: sum(1 for _ in read_samples(path)),
    "webdataset": lambda path: sum(1 for _ in webdataset.tariterators.tarfile_samples([{"url": path}])),
    "tarfile": read_by_tarfile,
}


def main(rounds: int = 7, count: int = 5000) -> None:
    """Print a line for each kind of tar."""
    with tempfile.TemporaryDirectory() as folder:
        paths = write_shards(Path(folder), make_samples(count))
        times = {(kind, reader): [] for kind in paths for reader in READERS}
        for _ in range(rounds):
            for kind, reader in times:
                start = time.process_time()  # all is in one thread, and CPU time hardly depends on other load
                READERS[reader](paths[kind])
                times[kind, reader].append((time.process_time() - start) / count * 1e6)
        for kind in paths:
            medians = {reader: statistics.median(times[kind, reader]) for reader in READERS}
            print(f"{kind:11}" + ", ".join(f"{reader} {median:.0f} us" for reader, median in medians.items()))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
