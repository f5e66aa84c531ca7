"""The copies of a job: in order, two at a time, gone at the end, and never those of a process that lives."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.servers import start_web, wait_until
from support.tools import leftovers, start_python

from embedders.errors import OutputError, ShardError
from embedders.reading import fetch
from embedders.reading.copies import Copies


@pytest.fixture
def web(tmp_path):
    folder = tmp_path / "web"
    folder.mkdir()
    for number in range(5):
        (folder / f"{number}.tar").write_bytes(bytes([number]) * 1000)
    with start_web(folder) as web:
        yield web


def list_copies(scratch):
    return [name for name in leftovers(scratch) if name.endswith(".tar")]


def test_two_copies_lie_there_at_a_time_and_none_at_the_end(web, scratch):
    paths = [f"{web.address}/{number}.tar" for number in range(5)]
    with Copies([*paths, "local.tar"]) as copies:
        assert copies.find("local.tar") == "local.tar" and copies.find_version("local.tar") is None
        for number, path in enumerate(paths):
            copy = Path(copies.find(path))
            assert copy.read_bytes() == bytes([number]) * 1000 and copy.name == f"{number}.tar"
            assert copies.find_version(path).bytes == 1000
            assert copies.name_in(f"{str(copy)!r}: damaged") == f"{path!r}: damaged"
            expected = min(2, 5 - number)
            wait_until(lambda expected=expected: len(list_copies(scratch)) >= expected)
            time.sleep(0.05)  # in which a third could come
            assert len(list_copies(scratch)) == expected
            copies.remove(path)
    assert leftovers(scratch) == []


def test_one_shard_that_cannot_be_fetched_does_not_keep_the_others(web, scratch, monkeypatch):
    monkeypatch.setattr(fetch, "FIRST_WAIT_S", 0.0)
    paths = [f"{web.address}/{name}.tar" for name in ("0", "none", "none too", "1")]
    with Copies(paths) as copies:
        for path in paths:
            if "none" in path:
                with pytest.raises(ShardError, match="it is not there"):
                    copies.find(path)
            else:
                assert Path(copies.find(path)).stat().st_size == 1000
            copies.remove(path)


def test_local_shards_touch_no_disk_and_load_no_library(tmp_path):
    code = (
        "import sys; from embedders.job import run; from embedders.reading.copies import Copies\n"
        "with Copies(['0.tar']) as copies: print(copies.find('0.tar'))\n"
        "print({'obstore', 'boto3', 'botocore'} & set(sys.modules))"
    )
    environment = os.environ | {"TMPDIR": str(tmp_path), "PYTHONPATH": os.getcwd()}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.stdout == "0.tar\nset()\n", done.stderr
    assert not list(tmp_path.iterdir())


HOLDING = """
import sys
from embedders.reading.copies import Copies
with Copies([sys.argv[1]]) as copies:
    print(copies.find(sys.argv[1]), flush=True)
    sys.stdin.read()
"""


def test_the_copies_of_a_killed_process_go_and_those_of_a_living_one_stay(web, scratch):
    address = f"{web.address}/0.tar"
    killed, living = (start_python(HOLDING, address, stdin=subprocess.PIPE) for _ in range(2))
    copies = [Path(process.stdout.readline().strip()) for process in (killed, living)]
    assert all(copy.is_file() for copy in copies)
    killed.kill()
    killed.wait()
    with Copies([address]) as own:
        own.find(address)
        assert not copies[0].exists() and copies[1].is_file()
    living.communicate(timeout=120)
    assert leftovers(scratch) == []


def test_a_process_that_is_told_to_end_waits_for_no_server(web, scratch):
    web.cuts = [10] * 1000
    code = (
        "import sys; from embedders.terminal import one_line_errors; from embedders.reading.copies import Copies\n"
        "with one_line_errors(), Copies([sys.argv[1]]) as copies:\n"
        "    print('begun', flush=True); copies.find(sys.argv[1])"
    )
    process = start_python(code, f"{web.address}/0.tar")
    assert process.stdout.readline() == "begun\n"
    wait_until(lambda: len(web.requests) > 2)
    process.terminate()
    # All the tries would take 90 s.
    assert "stopped by SIGTERM" in process.communicate(timeout=60)[1]
    assert leftovers(scratch) == []


def test_a_folder_of_somebody_else_is_not_used(scratch):
    (scratch / f"tarquet-{os.getuid()}").symlink_to("/")
    with pytest.raises(OutputError, match=r"is not a folder of this user; .* set TMPDIR"), Copies(["http://a/0.tar"]):
        pass
