"""Real servers of shards on this machine: a web server that can misbehave, and an S3 server that can be killed."""

import os
import re
import socket
import ssl
import subprocess
import sys
import threading
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import unquote

import boto3
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from moto.server import ThreadedMotoServer
from support.tools import wait_until  # noqa: F401 (tests of servers take it from here)

from embedders.reading.credentials import open_store


class Web:
    """A web server of the files in a folder.

    Attributes:
        address: Its address, without a slash at the end.
        requests: Method, path and first byte of each request.
        cuts: After how many bytes to break the next answers.
        has_ranges: Whether it sends parts of files.
        has_tags: Whether it names entity tags and times.
        login: What must be in the header `Authorization`.
        changes: Called after each break.
    """

    def __init__(self, folder: Path, certificate: tuple[Path, Path] | None = None):
        self.folder = folder
        self.requests: list[tuple[str, str, int]] = []
        self.cuts: list[int] = []
        self.has_ranges = self.has_tags = True
        self.login: str | None = None
        self.changes = lambda: None
        web = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_words):
                pass

            def do_HEAD(self):
                web.answer(self)

            def do_GET(self):
                web.answer(self)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.server.handle_error = lambda *_error: None  # a client that went away
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*certificate)
            self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        self.address = f"http{'s' if certificate else ''}://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=[0.02], daemon=True).start()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        path = self.folder / unquote(request.path.partition("?")[0]).lstrip("/")
        said = re.fullmatch(r"bytes=(\d+)-", request.headers.get("Range", ""))
        start = int(said[1]) if said and self.has_ranges else 0
        self.requests.append((request.command, request.path, start))
        if self.login and request.headers.get("Authorization") != self.login:
            return self._send(request, 401)
        if not path.is_file():
            return self._send(request, 404)
        content, status = path.read_bytes(), path.stat()
        headers = {}
        if self.has_tags:
            headers["ETag"] = f'"{status.st_mtime_ns:x}-{status.st_size:x}"'
            headers["Last-Modified"] = formatdate(status.st_mtime, usegmt=True)
        if said and self.has_ranges:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        return self._send(request, 206 if said and self.has_ranges else 200, content[start:], headers)

    def _send(self, request, code, content=b"", headers=None) -> None:
        request.send_response(code)
        for name, value in {**(headers or {}), "Content-Length": len(content)}.items():
            request.send_header(name, value)
        request.end_headers()
        if request.command == "GET":
            cut = self.cuts.pop(0) if self.cuts else None
            request.wfile.write(content[:cut])
            if cut is not None:
                request.close_connection = True
                self.changes()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@contextmanager
def start_web(folder, **options):
    web = Web(Path(folder), **options)
    try:
        yield web
    finally:
        web.close()


def make_certificates(folder: Path) -> tuple[Path, Path]:
    """Make an authority and a certificate by it for this machine: a file with both, and the key of the second."""
    now = datetime.now(UTC)
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(2)]
    names = [x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]) for name in ("authority", "server")]
    texts = []
    for number, is_authority in enumerate((True, False)):
        local = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
        certificate = (
            x509.CertificateBuilder(names[0], names[number], keys[number].public_key(), x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
            .add_extension(local, critical=False)
            .sign(keys[0], hashes.SHA256())
        )
        texts.insert(0, certificate.public_bytes(serialization.Encoding.PEM))
    paths = folder / "certificates.pem", folder / "key.pem"
    paths[0].write_bytes(b"".join(texts))
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    paths[1].write_bytes(keys[1].private_bytes(*form))
    return paths


def set_s3(environment, host, port) -> None:
    """Name an S3 server in the environment, as a user does for any program."""
    environment.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    environment.setenv("AWS_ACCESS_KEY_ID", "somebody")
    environment.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    environment.setenv("AWS_EC2_METADATA_DISABLED", "true")
    environment.setenv("AWS_CONFIG_FILE", os.devnull)
    open_store.cache_clear()


@contextmanager
def start_bucket(environment):
    """A bucket named `photos` on an S3 server in this process."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        set_s3(environment, *server.get_host_and_port())
        bucket = boto3.resource("s3", region_name="us-east-1").Bucket("photos")
        bucket.create()
        bucket.objects.all().delete()  # moto has one memory for all servers of a process
        yield bucket
    finally:
        server.stop()
        open_store.cache_clear()


SERVER = """
import sys, boto3
from pathlib import Path
from moto.server import ThreadedMotoServer

folder, port = sys.argv[1:]
# Filled through another port: nobody meets a server without its files.
filling, server = (ThreadedMotoServer(ip_address="127.0.0.1", port=n, verbose=False) for n in (0, int(port)))
filling.start()
address = "http://{}:{}".format(*filling.get_host_and_port())
bucket = boto3.resource("s3", region_name="us-east-1", endpoint_url=address).Bucket("photos")
bucket.create()
for path in sorted(Path(folder).glob("*.tar")):
    bucket.upload_file(str(path), path.name)
server.start()
print("up", flush=True)
sys.stdin.read()
"""


class MortalS3:
    """An S3 server in a process of its own, with the tars of a folder in the bucket `photos`; it can be killed.

    Started again it has the same files, entity tags and port.
    """

    def __init__(self, folder: Path):
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.port = listener.getsockname()[1]
        self._command = [sys.executable, "-c", SERVER, str(folder), str(self.port)]
        self.start()

    def start(self) -> None:
        keys = {"AWS_ACCESS_KEY_ID": "somebody", "AWS_SECRET_ACCESS_KEY": "secret"}
        self.process = subprocess.Popen(
            self._command, env=os.environ | keys, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        assert self.process.stdout.readline() == "up\n"

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
