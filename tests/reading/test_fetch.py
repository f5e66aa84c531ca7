"""One file fetched from real servers that break, change, lie or die in the middle of it."""

import os
import threading

import pytest
from support.servers import start_bucket, start_web

from embedders.errors import OutputError, ShardError
from embedders.reading import fetch
from embedders.reading.fetch import Download, Stopped
from embedders.reading.stores import MIN_CHUNK_BYTES

CONTENT = os.urandom(3 << 20)


@pytest.fixture
def web(tmp_path):
    folder = tmp_path / "web"
    folder.mkdir()
    (folder / "0.tar").write_bytes(CONTENT)
    with start_web(folder) as web:
        yield web


@pytest.fixture
def path(tmp_path, monkeypatch):
    monkeypatch.setattr(fetch, "FIRST_WAIT_S", 0.01)
    (tmp_path / "copies").mkdir()
    return tmp_path / "copies/0/0.tar"


def run(address, path):
    return Download(address, path, threading.Event()).run()


def list_starts(web):
    return [start for method, _, start in web.requests if method == "GET"]


def test_a_broken_connection_is_taken_up_where_it_broke(web, path):
    web.cuts = [1 << 20, 1 << 20]
    version = run(f"{web.address}/0.tar", path)
    assert path.read_bytes() == CONTENT
    assert version.bytes == len(CONTENT) and version.etag and version.mtime_ns
    starts = list_starts(web)
    assert len(starts) == 3 and starts[0] == 0
    for start, cut in zip(starts[1:], (1 << 20, 2 << 20), strict=True):
        assert cut - 2 * MIN_CHUNK_BYTES <= start <= cut


@pytest.mark.parametrize("lack", ["has_ranges", "has_tags"])
def test_without_ranges_or_without_a_sign_of_the_version_it_begins_again(web, path, lack):
    setattr(web, lack, False)
    web.cuts = [1 << 20]
    run(f"{web.address}/0.tar", path)
    assert path.read_bytes() == CONTENT
    assert list_starts(web)[0] == 0 and list_starts(web)[-1] == 0


def test_parts_of_two_versions_are_never_joined(web, path):
    web.cuts = [1 << 20]
    web.changes = lambda: (web.folder / "0.tar").write_bytes(CONTENT[::-1])
    with pytest.raises(
        ShardError, match=r"0\.tar': changed while it was fetched; expected a finished \.tar; run again"
    ):
        run(f"{web.address}/0.tar", path)


def test_a_server_that_always_breaks_at_one_place_is_given_up(web, path):
    web.has_ranges = False
    web.cuts = [1 << 20] * 100
    with pytest.raises(ShardError, match=f"cannot be fetched, after {fetch.TRIES} tries: .*; expected a server that"):
        run(f"{web.address}/0.tar", path)  # with fewer tries than there are cuts, else it would end well


def test_a_server_that_makes_progress_is_never_given_up(web, path):
    web.cuts = [1 << 17] * 20
    run(f"{web.address}/0.tar", path)
    assert path.read_bytes() == CONTENT


def test_a_server_that_is_gone_is_given_up_in_one_line(web, path):
    web.close()
    with pytest.raises(ShardError) as caught:
        run(f"{web.address}/0.tar", path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_what_is_not_there_is_not_tried_again(web, path):
    with pytest.raises(ShardError, match=r"none\.tar': it is not there; check the address"):
        run(f"{web.address}/none.tar", path)
    assert len(web.requests) == 1


def test_a_full_disk_is_said_with_the_folder(web, path, monkeypatch):
    path.parent.mkdir()
    path.symlink_to("/dev/full")
    with pytest.raises(OutputError, match=rf"'{path.parents[1]}': .*No space left on device.*set TMPDIR"):
        run(f"{web.address}/0.tar", path)


def test_it_ends_when_it_is_told_to(web, path):
    download = Download(f"{web.address}/0.tar", path, threading.Event())
    download._stop.set()
    with pytest.raises(Stopped):
        download.run()


def test_the_md5_of_s3_is_compared_and_one_that_is_none_is_found_out(path, monkeypatch):
    monkeypatch.setattr(fetch, "_without_md5", set())
    with start_bucket(monkeypatch) as bucket:
        bucket.put_object(Key="0.tar", Body=CONTENT)
        assert run("s3://photos/0.tar", path).etag
        assert not fetch._without_md5
        real, reads = fetch.stores.open_stream, []

        def open_stream(address, start):
            version, chunks = real(address, start)
            reads.append(start)
            parts = [bytes(chunk) for chunk in chunks]
            if len(reads) == 1:
                parts[0] = b"?" + parts[0][1:]
            return version, iter(parts)

        monkeypatch.setattr(fetch.stores, "open_stream", open_stream)  # a network card that flips a bit, once
        run("s3://photos/0.tar", path)
        assert path.read_bytes() == CONTENT and reads == [0, 0]
        assert not fetch._without_md5

        def open_encrypted(address, start):
            version, chunks = real(address, start)
            reads.append(start)
            return type(version)(version.bytes, version.mtime_ns, "0" * 32), chunks

        reads.clear()
        monkeypatch.setattr(fetch.stores, "open_stream", open_encrypted)
        for _ in range(2):
            run("s3://photos/0.tar", path)
        assert path.read_bytes() == CONTENT
        assert len(reads) == 3  # twice for the first file, once for the second
