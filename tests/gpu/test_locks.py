import ctypes
import fcntl
import json
import os
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

from embedders.gpu import locks
from embedders.gpu.locks import NotFree, card_path, format_holder, locked, read_leases, slot_path, write_holder


@pytest.fixture
def folder(tmp_path):
    return tmp_path


@pytest.fixture
def path(folder):
    return card_path(folder, "GPU-a")


def is_free(path):
    """Ask through a descriptor of its own, without the code under test."""
    with path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


@pytest.fixture
def in_child():
    """Run a function in a forked child, killed at the end at the latest; it can say things to the test."""
    children = []

    def start(work):
        reader, writer = os.pipe()
        pid = os.fork()
        if not pid:
            try:
                work(lambda text: os.write(writer, f"{text}\n".encode()))
            finally:
                os._exit(0)
        children.append(pid)
        os.close(writer)
        return pid, os.fdopen(reader)

    yield start
    for pid in children:
        try:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        except (ProcessLookupError, ChildProcessError):
            pass


def test_lock_is_held_and_dropped(path):
    with locked(path):
        assert not is_free(path)
        with pytest.raises(NotFree, match="leased by a job that did not write its name"), locked(path):
            pass
        assert not is_free(path), "who is refused must not drop the lock of the holder"
    assert is_free(path) and path.exists(), "never unlinked"
    assert not locks.is_holding()


def test_lock_is_dropped_on_an_error(path):
    with pytest.raises(KeyError), locked(path):
        raise KeyError
    assert is_free(path)


def test_holder_signs_and_the_signature_goes_with_the_lock(folder, path):
    with locked(path) as descriptor:
        write_holder(descriptor, "00042.tar")
        (holder,) = read_leases(folder, "GPU-a")
        assert (holder["pid"], holder["shard"]) == (str(os.getpid()), "00042.tar")
        with (
            pytest.raises(NotFree, match=f"leased by pid {os.getpid()} on .*, shard 00042.tar, since 20"),
            locked(path),
        ):
            pass
    assert read_leases(folder, "GPU-a") == [] and path.read_text() == ""


def test_readers_of_the_table_do_not_cost_a_job_its_card(folder, path, in_child):
    def look(_):
        while True:
            read_leases(folder, "GPU-a")

    with locked(path):
        pass
    readers = [in_child(look) for _ in range(2)]
    refused = 0
    for _ in range(300):
        try:
            with locked(path):
                pass
        except NotFree:
            refused += 1
    assert refused < 10  # a reader may be suspended in between, on a busy machine; without the second look: most
    assert len(readers) == 2


def test_slots_of_a_card(folder):
    with locked(slot_path(folder, "GPU-a", 0)), locked(slot_path(folder, "GPU-a", 2)) as descriptor:
        write_holder(descriptor, "2.tar")
        assert [holder.get("shard") for holder in locks.find_leased_slots(folder, "GPU-a")] == [
            None,
            "2.tar",
        ]
        assert locks.find_leased_slots(folder, "GPU-aa") == []
    assert locks.find_leased_slots(folder, "GPU-a") == []


def test_old_mig_names_make_no_folders(folder):
    with locked(card_path(folder, "MIG-GPU-a/7/0")) as descriptor:
        assert os.fstat(descriptor) and [path.name for path in folder.iterdir()] == ["MIG-GPU-a_7_0.lock"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no json",
        "[1, 2]",
        "3",
        '{"pid": 1}',
        "[" * 4000,
        "\0" * 100000,
        b"\xff\xfe".decode("latin1"),
    ],
)
def test_forged_signature_is_no_signature(folder, path, text):
    path.write_text(text)
    with locked(path):
        path.write_text(text)
        assert read_leases(folder, "GPU-a") == [{}]
        assert format_holder({}) == "a job that did not write its name"


def test_forged_signature_cannot_play_with_the_terminal(folder, path):
    with locked(path):
        path.write_text(json.dumps({"pid": "\x1b[2J", "host": "a\nb", "shard": "x" * 3000, "since": {"a": 1}}))
        (holder,) = read_leases(folder, "GPU-a")
    assert holder["pid"] == r"\x1b[2J" and holder["host"] == r"a\nb" and len(holder["shard"]) == 100
    assert format_holder(holder).isprintable()


def test_killed_holder_drops_the_lock(path, in_child):
    def hold(say):
        with locked(path):
            say("locked")
            signal.pause()

    pid, said = in_child(hold)
    assert said.readline() == "locked\n" and not is_free(path)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert is_free(path)


def test_forked_worker_does_not_keep_the_lock_of_a_killed_job(path, in_child):
    def hold(say):
        with locked(path):
            if not os.fork():
                say(os.getpid())  # Python's hook runs in the child before its first line does
                time.sleep(60)
                os._exit(0)
            signal.pause()

    pid, said = in_child(hold)
    worker = int(said.readline())
    try:
        assert not is_free(path), "a fork must not drop the lock of its parent"
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.kill(worker, 0)  # it lives
        assert is_free(path)
    finally:
        os.kill(worker, signal.SIGKILL)


def test_forked_worker_that_leaves_the_block_drops_nothing(path, tmp_path):
    innocent = tmp_path / "innocent"
    innocent.write_text("text of the worker")
    with locked(path) as descriptor:
        write_holder(descriptor, "mine.tar")
        pid = os.fork()
        if not pid:
            # In the child the number of the dropped descriptor is free for a file of its own.
            os.dup2(os.open(innocent, os.O_RDWR), descriptor)
        else:
            os.waitpid(pid, 0)
            assert not is_free(path) and "mine.tar" in path.read_text()
    if not pid:
        os._exit(0)
    assert is_free(path) and innocent.read_text() == "text of the worker"


def test_lock_is_dropped_at_the_end_of_the_block_whoever_has_a_copy(path):
    """C code may fork without Python's knowing, and the copy of the descriptor then stays."""
    with locked(path):
        pid = ctypes.PyDLL(None).fork()
        if not pid:
            time.sleep(60)
            os._exit(0)
    try:
        assert is_free(path)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_started_program_does_not_inherit_the_lock(path, in_child):
    def hold(say):
        with locked(path):
            say(subprocess.Popen(["sleep", "60"], close_fds=False).pid)
            signal.pause()

    pid, said = in_child(hold)
    program = int(said.readline())
    try:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.kill(program, 0)
        assert is_free(path)
    finally:
        os.kill(program, signal.SIGKILL)


@pytest.fixture
def soon():
    """Fail instead of hanging."""

    def fail(*_):
        raise TimeoutError("it hangs")

    signal.signal(signal.SIGALRM, fail)
    signal.alarm(60)
    yield
    signal.alarm(0)


def make_link(path):
    path.with_name("target").touch()
    path.symlink_to("target")


def make_hard_link(path):
    path.with_name("target").write_text("precious")
    path.hardlink_to(path.with_name("target"))


FORGERIES = [
    os.mkfifo,
    make_link,
    lambda path: path.symlink_to("nowhere"),
    make_hard_link,
    lambda path: path.mkdir(),
    lambda path: os.mknod(path, 0o600 | 0o140000),  # a socket
]


@pytest.mark.parametrize("forge", FORGERIES)
def test_forged_file_is_refused_at_once(soon, folder, path, forge):
    forge(path)
    with pytest.raises(NotFree, match=f"its lock file '{path}'"), locked(path):
        pass
    assert not locks.is_holding()
    assert not path.exists() or "problem" in read_leases(folder, "GPU-a")[0]
    target = path.with_name("target")
    assert not target.exists() or target.read_text() in ("", "precious")


def test_file_that_was_removed_after_it_was_opened_is_not_trusted(path, monkeypatch):
    real = fcntl.flock

    def flock_late(descriptor, how):
        path.unlink(missing_ok=True)
        path.touch()
        real(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", flock_late)
    with pytest.raises(NotFree, match="was replaced meanwhile"), locked(path):
        pass


def test_new_file_is_open_to_other_users(path):
    before = os.umask(0o077)
    try:
        with locked(path):
            assert path.stat().st_mode & 0o777 == 0o666
    finally:
        os.umask(before)


# Cards that failed at work


def make_older(path, age_s):
    os.utime(path, (time.time() - age_s,) * 2, follow_symlinks=False)


def test_failure_is_remembered_for_ten_minutes(folder):
    note = folder / "GPU-a.failed"
    assert not locks.is_suspect(folder, "GPU-a")
    for _ in range(2):
        locks.note_failure(folder, "GPU-a")
        assert locks.is_suspect(folder, "GPU-a") and not locks.is_suspect(folder, "GPU-b")
        make_older(note, 590)
        assert locks.is_suspect(folder, "GPU-a")
        make_older(note, 610)
        assert not locks.is_suspect(folder, "GPU-a")
    make_older(note, -3600)
    assert not locks.is_suspect(folder, "GPU-a"), "the clock was set back, or a stranger wants the card out for good"
    assert not locks.is_holding()


@pytest.mark.parametrize("forge", FORGERIES)
def test_forged_note_neither_hangs_nor_fails_nor_reaches_another_file(soon, folder, forge):
    note, target = folder / "GPU-a.failed", folder / "target"
    forge(note)
    for path in [note, *([target] if target.exists() else [])]:
        make_older(path, 3600)
    locks.note_failure(folder, "GPU-a")
    locks.is_suspect(folder, "GPU-a")
    assert note.lstat().st_mtime < time.time() - 3000
    assert not target.exists() or target.stat().st_mtime < time.time() - 3000
    assert not locks.is_holding()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become a second user")
@pytest.mark.parametrize(("mode", "is_renewed"), [(None, True), (0o600, False)])
def test_note_of_another_user_is_renewed_where_its_mode_allows_it(in_child, mode, is_renewed):
    def fail_too(say):
        os.setuid(65534)
        locks.note_failure(folder, "GPU-a")
        say(locks.is_suspect(folder, "GPU-a"))

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o1777)
        before = os.umask(0o077)
        locks.note_failure(folder, "GPU-a")
        os.umask(before)
        if mode is not None:
            (folder / "GPU-a.failed").chmod(mode)
        make_older(folder / "GPU-a.failed", 3600)
        _, said = in_child(fail_too)
        assert said.readline() == f"{is_renewed}\n"
