"""Shards with an address: fetched by Snakemake from a real S3 and a real web server, both on this machine."""

import json
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import boto3
import pyarrow.parquet as pq
import pytest
from moto.server import ThreadedMotoServer
from support.tools import MEAN_COLOR, make_shard, run_cli
from support.workflow import find_planned, run_snakemake, run_well

from embedders import embed_shard
from embedders.errors import ConfigError
from embedders.job.locate import build_embedder
from embedders.planning.shards import find_shards
from embedders.reading.remote import check_remote


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_words):
        pass


@pytest.fixture(scope="module")
def web(tmp_path_factory):
    """A web server: the folder that it shows, and its address."""
    folder = tmp_path_factory.mktemp("web")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield folder, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def bucket():
    """A bucket named `photos` on an S3 server, which the environment names as it does for any program."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        environment.setenv("AWS_ACCESS_KEY_ID", "somebody")
        environment.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        bucket = boto3.resource("s3", region_name="us-east-1").Bucket("photos")
        bucket.create()
        yield bucket
    server.stop()


def configure(project, shards, **config):
    settings = {"shards": shards, "embedder": {"class": MEAN_COLOR}, "device": "cpu", "gpu": 0, "threads": 1}
    (project / "config.yaml").write_text(json.dumps(settings | config))


def test_a_run_over_addresses_makes_what_files_make_and_leaves_no_copy(tmp_path, bucket, web):
    web_folder, web_address = web
    files = {f"{number:05}": make_shard(tmp_path / f"{number:05}.tar", 3 + number) for number in range(3)}
    for name in ("00000", "00001"):
        bucket.upload_file(files[name], f"2026/{name}.tar")
    make_shard(web_folder / "00002.tar", 5)
    project = tmp_path / "project"
    project.mkdir()
    configure(project, ["s3://photos/2026/{00000..00001}.tar", f"{web_address}/00002.tar"])
    run_well(project)

    addresses = json.loads((project / "results/run_shards.json").read_text())
    assert addresses == {
        "00000": "s3://photos/2026/00000.tar",
        "00001": "s3://photos/2026/00001.tar",
        "00002": f"{web_address}/00002.tar",
    }
    for name, path in files.items():
        embed_shard(build_embedder(MEAN_COLOR, {}), path, tmp_path / f"{name}.parquet", device="cpu")
        output = project / f"results/embeddings/{name}.parquet"
        assert pq.read_table(output).equals(pq.read_table(tmp_path / f"{name}.parquet"))
        assert json.loads(run_cli("inspect", output).stdout)["shard"]["path"] == addresses[name]
    assert not list(project.rglob("*.tar"))

    output = project / "results/embeddings/00000.parquet"
    unnamed = run_cli("verify", output, "--device", "cpu", cwd=project)
    assert "'s3://photos/2026/00000.tar' is not there; fetch it and name the copy with --shard" in unnamed.stdout
    named = run_cli("verify", output, "--shard", files["00000"], "--device", "cpu", cwd=project)
    assert named.returncode == 0, named.stdout + named.stderr

    assert "Nothing to be done" in run_well(project, "-n", "--local-storage-prefix", "elsewhere")
    bucket.upload_file(files["00002"], "2026/00001.tar")
    assert find_planned(project) == {"00001"}


@pytest.mark.parametrize(
    ("shards", "line"),
    [
        ("s3://photos/none/{0..1}.tar", "s3://photos/none/0.tar"),
        ("gs://photos/0.tar", "which is not installed: `pip install snakemake-storage-plugin-gcs`"),
    ],
)
def test_what_cannot_be_fetched_is_said_in_a_line(tmp_path, bucket, shards, line):
    configure(tmp_path, shards)
    done = run_snakemake(tmp_path, "-n")
    assert done.returncode != 0
    assert line in done.stdout
    assert "Traceback" not in done.stdout


def test_addresses_come_from_braces_and_lists_and_stand_beside_files(tmp_path):
    (tmp_path / "list.txt").write_text("s3://a/0.tar\nhttps://host/./b/0.tar.gz\n")
    make_shard(tmp_path / "1.tar", 1)
    assert find_shards([f"{tmp_path}/list.txt", f"{tmp_path}/1.tar", "s3://a/x/{2..3}.tar"]) == {
        "1": f"{tmp_path}/1.tar",
        "2": "s3://a/x/2.tar",
        "3": "s3://a/x/3.tar",
        "0": "s3://a/0.tar",
        "b/0": "https://host/b/0.tar.gz",
    }


@pytest.mark.parametrize("address", ["s3://photos/*.tar", "https://host/0.tar?key=secret", "s3://photos/0.zip"])
def test_an_address_must_name_one_tar(address):
    with pytest.raises(ConfigError, match=r"expected an address that ends in \.tar.* list the addresses in a \.txt"):
        find_shards(address)


def test_what_addresses_cannot_do_is_refused():
    check_remote(["data/0.tar"], "auto")
    for number in (1, "auto"):
        check_remote(["s3://photos/0.tar"], number)
    with pytest.raises(ConfigError, match=r"shards_per_job is 16; expected 1 or 'auto' for shards that must be"):
        check_remote(["data/0.tar", "s3://photos/0.tar"], 16)
    with pytest.raises(ConfigError, match=r"'ftp://host/0\.tar': expected an address that begins with s3, gs, http"):
        check_remote(["ftp://host/0.tar"], 1)


@pytest.mark.parametrize(
    "command",
    [
        ("embed", "s3://photos/0.tar", "0.parquet", "--embedder", MEAN_COLOR),
        ("check", MEAN_COLOR, "--shard", "s3://photos/{0..1}.tar"),
    ],
    ids=["embed", "check"],
)
def test_a_command_that_reads_files_says_that_an_address_is_none(tmp_path, command):
    done = run_cli(*command, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr == (
        "error: 's3://photos/0.tar': no such shard; expected a .tar file; fetch it first, or name it in config.yaml\n"
    )
