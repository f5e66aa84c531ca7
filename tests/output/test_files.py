import os
import resource
import signal
import subprocess
import threading
from pathlib import Path

import pytest
from support.tools import leftovers, start_python

from embedders.errors import OutputError
from embedders.output.files import PARTIAL, check_writable, write_whole

WRITE = """
import sys, time
from embedders.output.files import write_whole
with write_whole(sys.argv[1]) as file:
    file.write(sys.argv[2].encode() * 1000)
    file.flush()
    print("half", flush=True)
    sys.stdin.readline()
    file.write(sys.argv[2].encode() * 1000)
"""


def start_writer(path, letter):
    writer = start_python(WRITE, path, letter, stdin=subprocess.PIPE)
    assert writer.stdout.readline() == "half\n"
    return writer


def test_a_file_appears_whole_in_a_folder_made_for_it(tmp_path):
    path = tmp_path / "a" / "b" / "out.parquet"
    with write_whole(path) as file:
        file.write(b"x")
        assert not path.exists()
    assert path.read_bytes() == b"x"
    assert leftovers(tmp_path) == ["a/b/out.parquet"]


def test_an_error_leaves_what_was_there_before(tmp_path):
    (tmp_path / "out").write_bytes(b"old")
    with pytest.raises(RuntimeError), write_whole(tmp_path / "out") as file:
        file.write(b"new")
        raise RuntimeError
    assert (tmp_path / "out").read_bytes() == b"old"
    assert leftovers(tmp_path) == ["out"]


def test_the_mode_follows_the_umask(tmp_path):
    old = os.umask(0o027)
    try:
        with write_whole(tmp_path / "out"):
            pass
    finally:
        os.umask(old)
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o640


def test_a_killed_writer_leaves_nothing_under_the_name_and_the_next_one_cleans_up(tmp_path):
    writer = start_writer(tmp_path / "out[1].bin", "a")  # brackets: a name is no pattern
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    assert [name.endswith(PARTIAL) for name in leftovers(tmp_path)] == [True]
    with write_whole(tmp_path / "out[1].bin") as file:
        file.write(b"whole")
    assert leftovers(tmp_path) == ["out[1].bin"]


def test_the_partial_of_a_living_writer_is_left_alone_and_the_last_one_wins_whole(tmp_path):
    first, second = (start_writer(tmp_path / "out", letter) for letter in "ab")
    assert len(leftovers(tmp_path)) == 2
    second.communicate("go\n")
    assert (tmp_path / "out").read_bytes() == b"b" * 2000
    first.communicate("go\n")
    assert (tmp_path / "out").read_bytes() == b"a" * 2000
    assert first.returncode == second.returncode == 0
    assert leftovers(tmp_path) == ["out"]


def test_many_writers_at_once_never_take_each_others_partial(tmp_path):
    # The moment between making a partial and locking it is short: many starts find it.
    errors = []

    def write(letter):
        try:
            for _ in range(150):
                with write_whole(tmp_path / "out") as file:
                    file.write(letter * 500)
        except OutputError as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=[bytes([65 + n])]) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(set((tmp_path / "out").read_bytes())) == 1
    assert leftovers(tmp_path) == ["out"]


def write_much(path):
    with write_whole(path) as file:
        for _ in range(1000):
            file.write(b"x" * 10_000)


def test_a_file_size_limit_is_one_line_and_leaves_no_debris(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(OutputError, match="File too large"):
            write_much(tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert leftovers(tmp_path) == []


@pytest.fixture
def tiny_disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "none", folder], capture_output=True, check=False
    )
    if mount.returncode:
        pytest.skip("a tmpfs cannot be mounted here")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_is_one_line_and_leaves_no_debris(tiny_disk):
    with pytest.raises(OutputError, match="No space left"):
        write_much(tiny_disk / "out")
    assert leftovers(tiny_disk) == []


@pytest.mark.parametrize("place", ["file/out", "folder", "n" * 300, "x/" + "n" * 245])
def test_a_place_that_cannot_be_written_is_one_line(tmp_path, place):
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "folder" / "full").mkdir(parents=True)
    with pytest.raises(OutputError, match="cannot be written"), write_whole(tmp_path / place):
        pass
    assert leftovers(tmp_path) == ["file"]


@pytest.mark.skipif(os.geteuid() == 0 and not Path("/proc/sys").exists(), reason="needs /proc")
def test_an_unwritable_folder_is_told_before_the_work():
    folder = Path("/proc/sys") if os.geteuid() == 0 else Path("/")  # root may write everywhere but there
    for attempt in (lambda: check_writable(folder / "out"), lambda: write_whole(folder / "out").__enter__()):
        with pytest.raises(OutputError, match="cannot be written"):
            attempt()


def test_checking_leaves_nothing_behind(tmp_path):
    check_writable(tmp_path / "new" / "out")
    assert leftovers(tmp_path) == []
