"""Real processes that lease GPUs, for the tests of leases: `python lease_jobs.py crowd 50 ...` and so on.

They are forked from one process that has imported everything and holds no lease, so that 50 of them start
within milliseconds. What happens is printed as it happens, one JSON object a line.
"""

import json
import logging
import os
import random
import signal
import sys
import time

from embedders.errors import GpuError
from embedders.gpu import locks
from embedders.gpu.lease import lease_gpu
from embedders.gpu.lock_folder import open_folder
from embedders.gpu.terms import Terms

NOBODY = 65534


def tell(what, **details):
    # One write: shorter than PIPE_BUF, so that the lines of several processes do not mix.
    event = {"what": what, "pid": os.getpid(), "uid": os.getuid(), "time_s": time.monotonic(), **details}
    os.write(1, (json.dumps(event) + "\n").encode())


def fork(work, *args):
    """Run `work` in a child that never returns from here."""
    pid = os.fork()
    if pid:
        return pid
    try:
        work(*args)
        os._exit(0)
    except BaseException as error:
        tell("error", text=f"{type(error).__name__}: {error}")
        os._exit(1)


def run_crowd(jobs, hold_s, jobs_per_gpu, timeout_s, second_uid):
    """All jobs start at one instant, hold a device for a while and go; every other one as another user."""
    gate, opener = os.pipe()

    def job(number):
        os.close(opener)
        os.read(gate, 1)  # returns when the parent closes the other end: for all at once
        if second_uid and number % 2:
            os.setuid(NOBODY)
        tell("wait")
        try:
            with lease_gpu(f"{number:05}.tar", Terms(timeout_s, jobs_per_gpu=jobs_per_gpu)) as gpu:
                tell("take", uuid=gpu.uuid, pin=os.environ["CUDA_VISIBLE_DEVICES"])
                time.sleep(hold_s * random.uniform(0.5, 1.5))
                tell("leave", uuid=gpu.uuid)
        except GpuError as error:
            tell("refused", text=str(error))

    for number in range(jobs):
        fork(job, number)
    os.close(opener)
    for _ in range(jobs):
        os.wait()


def run_kills(rounds, cards):
    """Every card is held; a holder is killed again and again, and its card must be free at once, no other."""
    folder = open_folder()
    end, keeper = os.pipe()

    def hold(ready):
        with lease_gpu(terms=Terms(30)) as gpu:
            if not os.fork():  # a worker that outlives its job, as a DataLoader's do for a while
                os.close(keeper)
                os.write(ready, gpu.uuid.encode())
                os.close(ready)
                os.read(end, 1)
                os._exit(0)
            signal.pause()

    def start():
        reader, writer = os.pipe()
        pid = fork(hold, writer)
        os.close(writer)
        uuid = os.read(reader, 100).decode()
        os.close(reader)
        return pid, uuid

    def is_free(uuid):
        try:
            with locks.locked(locks.card_path(folder, uuid)):
                return True
        except locks.NotFree:
            return False

    holders = dict(start() for _ in range(cards))
    for _ in range(rounds):
        victim = random.choice(list(holders))
        os.kill(victim, signal.SIGKILL)
        os.waitpid(victim, 0)
        lost = holders.pop(victim)
        free = [uuid for uuid in [lost, *holders.values()] if is_free(uuid)]
        pid, uuid = start()
        holders[pid] = uuid
        tell("round", killed=lost, free=free, taken=uuid, held=sorted(holders.values()))
    for pid in holders:
        os.kill(pid, signal.SIGKILL)


def run_hold(jobs_per_gpu):
    """Hold a device until the standard input ends."""
    with lease_gpu("held.tar", Terms(0, jobs_per_gpu=jobs_per_gpu)) as gpu:
        tell("take", uuid=gpu.uuid)
        sys.stdin.read()


def run_once(uid, jobs_per_gpu):
    """Look once, as some user."""
    os.setuid(uid)
    try:
        with lease_gpu("once.tar", Terms(0, jobs_per_gpu=jobs_per_gpu)) as gpu:
            tell("take", uuid=gpu.uuid)
    except GpuError as error:
        tell("refused", text=str(error))


if __name__ == "__main__":
    logging.getLogger().addHandler(logging.NullHandler())  # only events are read from here
    name, *numbers = sys.argv[1:]
    {"crowd": run_crowd, "kills": run_kills, "hold": run_hold, "once": run_once}[name](*map(json.loads, numbers))
