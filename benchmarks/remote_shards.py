"""Measures shards with an address: planning many, and a run of 200 whose S3 server is killed and started again.

    python benchmarks/remote_shards.py plan [SHARDS]
    python benchmarks/remote_shards.py run [SHARDS] [SHARDS_PER_JOB]

Both servers are on this machine: a web server of Python, which knows HEAD requests, and moto's S3. `plan` times
`snakemake -n` over addresses and over as many files. `run` embeds shards of 8 small images with the mean colour of
`examples/`, kills the S3 server when a third of them is finished, starts it again 10 seconds later, and checks the
rows of every shard. Both are slower servers than real ones; the images cost nothing.
"""

import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing import Process
from pathlib import Path
from socket import create_server

import boto3
import numpy as np
import pyarrow.parquet as pq
from moto.server import ThreadedMotoServer
from PIL import Image

REPOSITORY = Path(__file__).resolve().parent.parent
IMAGES = 8
KEYS = {"AWS_ACCESS_KEY_ID": "somebody", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_EC2_METADATA_DISABLED": "true"}


class Quiet(SimpleHTTPRequestHandler):
    """Serves files without a log."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_words: object) -> None:
        """Log nothing."""


class Server(ThreadingHTTPServer):
    """A web server for many connections at once."""

    request_queue_size = 128


def serve_web(folder: str, port: int) -> None:
    """Serve a folder until the process is ended."""
    Server(("127.0.0.1", port), partial(Quiet, directory=folder)).serve_forever()


def serve_s3(folder: str, port: int, ready: str) -> None:
    """Serve the tars of a folder as the bucket `photos` until the process is ended."""
    os.environ.update(KEYS)
    sys.stdout = sys.stderr = open(os.devnull, "w")
    # Filled through another port: nobody meets a server without its files.
    filling = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    filling.start()
    address = "http://{}:{}".format(*filling.get_host_and_port())
    bucket = boto3.resource("s3", region_name="us-east-1", endpoint_url=address).Bucket("photos")
    bucket.create()
    for path in sorted(Path(folder).glob("*.tar")):
        bucket.put_object(Key=path.name, Body=path.read_bytes())
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
    server.start()
    Path(ready).touch()
    time.sleep(1e9)


def find_port() -> int:
    """Return a port that nobody listens on."""
    with create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def start_s3(folder: Path, port: int) -> Process:
    """Start the S3 server, and wait until it has its files."""
    ready = folder / "ready"
    ready.unlink(missing_ok=True)
    server = Process(target=serve_s3, args=(str(folder), port, str(ready)), daemon=True)
    server.start()
    while not ready.exists():
        time.sleep(0.05)
    return server


def write_tar(path: Path, seed: int) -> None:
    """Write a shard of small JPEGs."""
    random = np.random.default_rng(seed)
    with tarfile.open(path, "w") as tar:
        for number in range(IMAGES):
            image = io.BytesIO()
            Image.fromarray(random.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(image, "JPEG")
            member = tarfile.TarInfo(f"{number:04}.jpg")
            member.size = image.tell()
            tar.addfile(member, io.BytesIO(image.getvalue()))


def start_run(folder: Path, shards: object, port: int, *options: str, **config: object) -> subprocess.Popen:
    """Start Snakemake in a folder."""
    settings = {
        "shards": shards,
        "embedder": {"class": f"{REPOSITORY}/examples/mean_color.py:MeanColor"},
        **{"device": "cpu", "gpu": 0, "threads": 1, "report": False},
    }
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").write_text(json.dumps(settings | config))
    command = [sys.executable, "-m", "snakemake", "--snakefile", REPOSITORY / "Snakefile", "--cores", "2"]
    environment = os.environ | KEYS | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"}
    with (folder / "printed.txt").open("w") as printed:
        return subprocess.Popen([*command, *options], cwd=folder, env=environment, stdout=printed, stderr=printed)


def plan(shards: int = 10_000) -> None:
    """Print the seconds of a dry run by the kind of address."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name, "data")
        folder.mkdir()
        for number in range(shards):
            (folder / f"{number:07}.tar").write_bytes(b"x" * 1000)
        port, web_port = find_port(), find_port()
        web = Process(target=serve_web, args=(str(folder), web_port), daemon=True)
        web.start()
        s3 = start_s3(folder, port)
        braces = f"{{0000000..{shards - 1:07}}}.tar"
        patterns = {
            "files": f"{folder}/{braces}",
            "s3, braces": f"s3://photos/{braces}",
            "s3, *": "s3://photos/*.tar",
            "http": f"http://127.0.0.1:{web_port}/{braces}",
        }
        for kind, pattern in patterns.items():
            start = time.perf_counter()
            project = Path(name, "project")
            if start_run(project, pattern, port, "-n", "--quiet", "all", shards_per_job=16).wait():
                sys.exit((project / "printed.txt").read_text())
            print(f"{kind:12} {shards} shards: {time.perf_counter() - start:6.1f} s", flush=True)
        for server in (web, s3):
            server.kill()


def run(shards: int = 200, shards_per_job: int = 16) -> None:
    """Embed shards from a server that is killed and started again, and check all rows."""
    with tempfile.TemporaryDirectory() as name:
        folder, project = Path(name, "data"), Path(name, "project")
        folder.mkdir()
        for number in range(shards):
            write_tar(folder / f"{number:05}.tar", number)
        port = find_port()
        server = start_s3(folder, port)
        start = time.perf_counter()
        snakemake = start_run(project, "s3://photos/*.tar", port, shards_per_job=shards_per_job)
        outputs = project / "results/embeddings"
        while len(list(outputs.glob("*.parquet"))) < shards // 3:
            if snakemake.poll() is not None:
                sys.exit((project / "printed.txt").read_text())
            time.sleep(0.05)
        server.kill()
        server.join()
        print(f"killed the server after {len(list(outputs.glob('*.parquet')))} shards", flush=True)
        time.sleep(10)
        server = start_s3(folder, port)
        code = snakemake.wait()
        seconds = time.perf_counter() - start
        server.kill()
        logs = [path.read_text() for path in (project / "results/logs/embed").glob("*.log")]
        tries = sum(log.count("next try in") for log in logs)
        rows = {path.stem: pq.read_metadata(path).num_rows for path in outputs.glob("*.parquet")}
        complete = sum(count == IMAGES for count in rows.values())
        left = list(Path(tempfile.gettempdir(), f"tarquet-{os.getuid()}").rglob("*.tar"))
        print(
            f"exit code {code}, {complete} of {shards} shards with all {IMAGES} rows, {len(logs)} jobs, {tries} "
            f"tries more, {len(left)} copies left, {seconds:.0f} s"
        )
        if code or complete < shards:
            sys.exit((project / "printed.txt").read_text())


if __name__ == "__main__":
    {"plan": plan, "run": run}[sys.argv[1]](*map(int, sys.argv[2:]))
