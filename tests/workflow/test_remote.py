"""Runs over shards with an address: jobs fetch their own, from a real S3 and a real web server of this machine."""

import json
import re
import subprocess

import pyarrow.parquet as pq
import pytest
from support.servers import MortalS3, set_s3, start_bucket, start_web
from support.tools import MEAN_COLOR, leftovers, make_image, make_shard, make_tar, run_cli, wait_until
from support.workflow import (
    EMBEDDER,
    find_planned,
    run_snakemake,
    run_well,
    snakemake_command,
    snakemake_environment,
)

from embedders import embed_shard
from embedders.errors import ConfigError
from embedders.job.locate import build_embedder
from embedders.planning.shards import find_shards


@pytest.fixture(scope="module")
def web(tmp_path_factory):
    with start_web(tmp_path_factory.mktemp("web")) as web:
        yield web


@pytest.fixture(scope="module")
def bucket():
    with pytest.MonkeyPatch.context() as environment, start_bucket(environment) as bucket:
        yield bucket


def configure(project, shards, **config):
    project.mkdir(exist_ok=True)
    settings = {"shards": shards, "embedder": {"class": MEAN_COLOR}, "device": "cpu", "gpu": 0, "threads": 1}
    (project / "config.yaml").write_text(json.dumps(settings | config))


def find_inodes(project):
    return {path.stem: path.stat().st_ino for path in sorted((project / "results/embeddings").glob("*.parquet"))}


def count_gets(web):
    return sum(method == "GET" for method, *_ in web.requests)


def test_a_run_over_addresses_makes_what_files_make_and_leaves_no_copy(tmp_path, bucket, web, scratch):
    files = {f"{number:05}": make_shard(tmp_path / f"{number:05}.tar", 3 + number) for number in range(4)}
    for name in ("00000", "00001"):
        bucket.upload_file(files[name], f"2026/{name}.tar")
    make_shard(web.folder / "00002.tar", 5)
    project = tmp_path / "project"
    # Two jobs of two, the second with a file beside an address.
    configure(project, ["s3://photos/2026/*.tar", f"{web.address}/00002.tar", str(files["00003"])], shards_per_job=2)
    run_well(project)

    addresses = json.loads((project / "results/run_shards.json").read_text())
    assert addresses == {
        "00000": "s3://photos/2026/00000.tar",
        "00001": "s3://photos/2026/00001.tar",
        "00002": f"{web.address}/00002.tar",
        "00003": files["00003"],
    }
    assert count_gets(web) == 2  # for the job, and for the pictures of the report
    for name, path in files.items():
        embed_shard(build_embedder(MEAN_COLOR, {}), path, tmp_path / f"{name}.parquet", device="cpu")
        output = project / f"results/embeddings/{name}.parquet"
        assert pq.read_table(output).equals(pq.read_table(tmp_path / f"{name}.parquet"))
        footer = json.loads(run_cli("inspect", output).stdout)["shard"]
        own = json.loads(run_cli("inspect", tmp_path / f"{name}.parquet").stdout)["shard"]
        assert footer == own | {"path": addresses[name]}
    report = (project / "results/report.html").read_text()
    assert report.count("data:image/webp") > 8 and "shards were moved" not in report
    assert leftovers(scratch) == []

    verified = run_cli("verify", "results", "--device", "cpu", cwd=project)
    assert verified.returncode == 0 and verified.stdout.count("sound: ") == 4, verified.stdout + verified.stderr

    # What runs again: what the server says is another file, from wherever the run is looked at.
    web.requests.clear()
    assert "Nothing to be done" in run_well(project, "-n")
    before = find_inodes(project)
    bucket.upload_file(files["00001"], "2026/00001.tar")  # the same content at a new time
    make_shard(web.folder / "00002.tar", 6)
    planned = run_well(project, "-n")
    assert "embeddings: 1 is made again: the shard on the server changed" in planned
    run_well(project)
    after = find_inodes(project)
    assert {name for name in after if after[name] != before[name]} == {"00002"}
    assert len(pq.read_table(project / "results/embeddings/00002.parquet")) == 6
    assert count_gets(web) == 2


def test_a_bad_shard_fails_alone_with_its_address_and_a_missing_one_before_the_run(tmp_path, web, scratch):
    for number in range(3):
        make_shard(web.folder / f"gone{number}.tar", 3)
    make_tar(web.folder / "gone1.tar", {"a.jpg": b"no image"})
    project = tmp_path / "project"
    configure(project, f"{web.address}/gone{{0..2}}.tar", shards_per_job=3, report=False)
    done = run_snakemake(project)
    assert done.returncode != 0
    (line,) = re.findall(r"^failed: .*", done.stdout, re.MULTILINE)
    assert line.startswith(f"failed: {web.address}/gone1.tar: 1 of 1 samples failed")
    assert list(find_inodes(project)) == ["gone0", "gone2"]
    logged = (project / "results/logs/embed/gone0+2.log").read_text()
    assert logged.count(str(scratch)) == 1  # where the copies are; all else names addresses

    (web.folder / "gone1.tar").unlink()
    done = run_snakemake(project, "-n")
    assert done.returncode != 0
    assert f"shards: 1 of 3 addresses cannot be read: '{web.address}/gone1.tar' (not there); expected" in done.stdout
    assert "Traceback" not in done.stdout

    make_shard(web.folder / "gone1.tar", 4)
    run_well(project)
    assert len(find_inodes(project)) == 3


def test_a_job_outlives_a_server_that_is_killed_and_started_again(tmp_path, scratch, monkeypatch):
    for number in range(4):
        make_shard(tmp_path / f"{number}.tar", 3)
    server = MortalS3(tmp_path)
    set_s3(monkeypatch, "127.0.0.1", server.port)
    project = tmp_path / "project"
    project.mkdir()
    (project / "embedder.py").write_text(EMBEDDER)
    (project / "beside.py").write_text("SCALE = 1\n")
    configure(
        project, "s3://photos/*.tar", embedder={"class": "embedder.py:MeanColor"}, shards_per_job=4, report=False
    )
    (project / "hold").touch()
    with (project / "printed.txt").open("w") as printed:
        run = subprocess.Popen(
            snakemake_command(), cwd=project, env=snakemake_environment(), stdout=printed, stderr=printed
        )
    # In the middle of the first shard, the second one is there too.
    wait_until((project / "held").exists)
    wait_until(lambda: len([name for name in leftovers(scratch) if name.endswith(".tar")]) == 2)
    server.kill()
    (project / "hold").unlink()
    log = project / "results/logs/embed/0+3.log"
    wait_until(lambda: "s3://photos/2.tar: " in log.read_text() and "next try in" in log.read_text())
    server.start()
    assert run.wait(600) == 0, (project / "printed.txt").read_text()
    server.kill()
    assert [pq.read_metadata(path).num_rows for path in (project / "results/embeddings").iterdir()] == [3] * 4
    assert leftovers(scratch) == []


def test_retry_and_prune_work_with_addresses(tmp_path, web, scratch):
    images = {f"{number:05}.jpg": make_image(number) for number in range(12)}
    make_tar(web.folder / "retried.tar", images | {"bad.jpg": b"no image"})
    project = tmp_path / "project"
    configure(project, f"{web.address}/retried.tar", report=False)
    run_well(project)
    run_well(project, "retry")
    assert pq.read_table(project / "results/retried/ledger/retried.parquet")["key"].to_pylist() == ["bad"]
    assert "embed_failed" not in run_well(project, "-n", "retry")
    make_shard(web.folder / "other.tar", 3)
    configure(project, f"{web.address}/other.tar", report=False)
    run_well(project)
    assert "embeddings/retried.parquet: no shard of this run" in run_cli("prune", "results", cwd=project).stdout


def test_a_server_that_does_not_answer_is_said_before_the_run(tmp_path):
    with start_web(tmp_path) as web:
        pass
    configure(tmp_path, f"{web.address}/{{0..1}}.tar")
    done = run_snakemake(tmp_path, "-n")
    assert done.returncode != 0
    assert f"'{web.address}/" in done.stdout and "expected a server that answers" in done.stdout
    assert "Traceback" not in done.stdout


def test_a_results_folder_from_before_is_compared_by_what_its_record_knows(tmp_path, web, scratch):
    make_shard(web.folder / "old.tar", 3)
    project = tmp_path / "project"
    configure(project, f"{web.address}/old.tar", report=False)
    run_well(project)
    record = project / "results/record/outputs.json"
    stored = json.loads(record.read_text())
    for origin in stored["outputs"].values():
        del origin["etag"]
        origin["mtime_ns"] = None
    record.write_text(json.dumps(stored))
    assert find_planned(project) == set()
    make_shard(web.folder / "old.tar", 9)
    assert find_planned(project) == {"old"}


def test_check_tries_the_first_address_and_estimates_from_all(web, scratch):
    for number in range(2):
        make_shard(web.folder / f"checked{number}.tar", 10)
    done = run_cli("check", MEAN_COLOR, "--shard", f"{web.address}/checked{{0..1}}.tar", "--device", "cpu")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{web.address}/checked0.tar: 10 samples" in done.stdout
    assert "2 shards of about 20 images in all" in done.stdout
    assert str(scratch) not in done.stdout and leftovers(scratch) == []
    done = run_cli("check", MEAN_COLOR, "--shard", f"{web.address}/none.tar", "--device", "cpu")
    assert done.returncode == 1
    assert done.stderr.startswith(
        f"error: shards: 1 of 1 addresses cannot be read: '{web.address}/none.tar' (not there)"
    )


def test_embed_takes_an_address_by_hand_and_says_in_a_line_that_it_is_not_there(tmp_path, web, scratch):
    make_shard(web.folder / "hand.tar", 3)
    options = (tmp_path / "0.parquet", "--embedder", MEAN_COLOR, "--device", "cpu")
    assert run_cli("embed", f"{web.address}/hand.tar", *options).returncode == 0
    done = run_cli("embed", f"{web.address}/none.tar", *options)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == f"error: '{web.address}/none.tar': it is not there; check the address"


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


def test_a_pattern_names_shards_as_one_of_files_does(bucket):
    for key in ("named/a/0.tar", "named/b/0.tar.gz", "named/b/notes.txt"):
        bucket.put_object(Key=key, Body=b"")
    found = {"a/0": "s3://photos/named/a/0.tar", "b/0": "s3://photos/named/b/0.tar.gz"}
    assert find_shards("s3://photos/named/**/*") == found
    assert find_shards("s3://photos/./named/**/*.tar") == {"named/a/0": "s3://photos/named/a/0.tar"}
    with pytest.raises(ConfigError, match=r"'s3://photos/none/\*\.tar' matches no file that ends in \.tar"):
        find_shards("s3://photos/none/*.tar")


@pytest.mark.parametrize("address", ["https://host/0.tar?key=secret", "https://me:secret@host/0.tar"])
def test_an_address_with_a_secret_is_refused_before_it_is_written_anywhere(tmp_path, address):
    (tmp_path / "list.txt").write_text(f"{address}\n")
    configure(tmp_path, "list.txt")
    done = run_snakemake(tmp_path)
    assert done.returncode != 0 and "expected an address without" in done.stdout
    assert "secret" not in done.stdout
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("address", ["s3://photos/0.zip", "https://host/folder/"])
def test_an_address_must_name_a_tar(address):
    with pytest.raises(ConfigError, match=r"expected an address that ends in \.tar.* such as s3://bucket/\*\.tar"):
        find_shards(address)
