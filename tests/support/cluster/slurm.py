"""A real SLURM on this one machine, for as long as a test wants it: Debian's packages, two nodes, eight GPUs.

Both nodes are this machine; what makes them differ for a job is in `set_node_environment`. A GPU is pretended: a null
device, which SLURM counts and hands out like a real one. Everything is in one folder, but for /etc/slurm, where
SLURM's own commands inside of a job look for it. This file run as a program is the keeper: it waits until the tests
end or are killed, and then ends every job and daemon and removes every file.
"""

import fcntl
import os
import select
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

NODES = ("n1", "n2")
GPUS_PER_NODE = 4
MIG_NODE = "n3"  # in a partition of its own: a card in MIG mode, with two instances
# SLURM limits the memory of jobs by these control groups; cgroup v2 would need systemd.
MEMORY_GROUPS = Path("/sys/fs/cgroup/memory")
PACKAGES = {"munge": "munged", "slurm-client": "sbatch", "slurmctld": "slurmctld", "slurmd": "slurmd"}
CONFIG_FOLDER = Path("/etc/slurm")
CONFIG_FILES = ("slurm.conf", "gres.conf", "cgroup.conf")
OURS = "ClusterName=tarquet-test\n"  # a file that tests which were killed have left is known by it
CONFIG = """\
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmctldPort={port}
SlurmdSpoolDir={folder}/spool.%n
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmdLogFile={folder}/log/slurmd.%n.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin={tasks}
TaskProlog={folder}/prolog
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1,sched_min_interval=0
ReturnToService=2
MinJobAge=600
KillWait=10
GresTypes=gpu
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=0
PartitionName=gpu Nodes=n[1-2] Default=YES MaxTime=INFINITE PriorityTier=1
PartitionName=urgent Nodes=n[1-2] MaxTime=INFINITE PriorityTier=2 PreemptMode=OFF
PartitionName=mig Nodes=n3 MaxTime=INFINITE
"""
NODE = "NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=16 CoresPerSocket=16 RealMemory=64000"
GPUS = "NodeName={node} Name=gpu Type={model} File={folder}/{node}.gpu[0-{last}]\n"
# On the node with MIG as SLURM does it with AutoDetect=nvml: a job is given the name of an instance, not a number.
PROLOG = """\
#!/bin/sh
cat "{folder}/$SLURMD_NODENAME.environment" 2>/dev/null
if [ "$SLURMD_NODENAME" = {mig} ]; then echo "export CUDA_VISIBLE_DEVICES=MIG-$CUDA_VISIBLE_DEVICES"; fi
"""
CGROUPS = """\
CgroupAutomount=no
CgroupPlugin=cgroup/v1
ConstrainRAMSpace={limits}
"""


def find_missing() -> str | None:
    """Say what this machine lacks to become a cluster, or nothing; Debian's packages are installed."""
    if os.getuid() != 0 or not shutil.which("apt-get"):
        return "a SLURM of its own needs root on Debian"
    config = CONFIG_FOLDER / "slurm.conf"
    if config.exists() and OURS not in config.read_text():
        return f"{CONFIG_FOLDER}/slurm.conf is there: this machine has a SLURM already, which is left alone"
    try:
        install(PACKAGES)
    except subprocess.CalledProcessError:
        return f"Debian's packages {', '.join(PACKAGES)} cannot be installed"
    return None


def install(packages: dict[str, str]) -> None:
    """Install Debian packages, given with a command of each, where one is not there."""
    if all(shutil.which(command) for command in packages.values()):
        return
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}  # 1: starts no daemon
    for command in (["update"], ["install", "-y", "--no-install-recommends", *packages]):
        subprocess.run(["apt-get", "-qq", *command], env=environment, stdout=subprocess.DEVNULL, check=True)


def can_limit_memory() -> bool:
    """Tell whether SLURM can limit the memory of its jobs on this machine."""
    return os.access(MEMORY_GROUPS / "cgroup.procs", os.W_OK)


class Slurm:
    """The cluster; a context, at whose end nothing of it is left but Debian's packages.

    Attributes:
        folder: Readable by every user; state, logs and the nodes' environments.
    """

    def __init__(self):
        CONFIG_FOLDER.mkdir(exist_ok=True)
        self._lock = os.open(CONFIG_FOLDER, os.O_RDONLY)
        fcntl.flock(self._lock, fcntl.LOCK_EX)  # waits: there is one folder for all who test on this machine
        self.folder = Path(tempfile.mkdtemp(prefix="tarquet-slurm-"))
        self.folder.chmod(0o755)
        self._daemons: dict[str, subprocess.Popen] = {}
        # It has the lock too: the next tests wait for its end.
        self._keeper = subprocess.Popen(
            [sys.executable, __file__, self.folder],
            stdin=subprocess.PIPE, pass_fds=[self._lock], start_new_session=True,
        )  # fmt: skip

    def __enter__(self) -> "Slurm":
        try:
            self._write_files()
            self._start_munge()
            self.start_controller()
            for node in (*NODES, MIG_NODE):
                self._start("slurmd", "-D", "-N", node, name=node, is_up=lambda node=node: self.is_idle(node))
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        """End every job and every daemon, and remove the files."""
        self._keeper.stdin.close()
        if self._keeper.wait():
            raise RuntimeError("something of the cluster may be left: its keeper failed, see above")
        for daemon in self._daemons.values():
            daemon.wait()
        os.close(self._lock)

    def ask(self, *command: str) -> str:
        """Run a command of SLURM and return what it printed."""
        return ask(*command)

    def is_idle(self, node: str) -> bool:
        """Tell whether a node is up and without a job."""
        return self.ask("sinfo", "-h", "-n", node, "-o", "%t") == "idle"

    def read_state(self, job: str) -> str:
        """Read how a job is, or how it ended."""
        return self.ask("squeue", "-h", "--states=all", "-j", job, "-o", "%T")

    def start_controller(self) -> None:
        """Start slurmctld, which finds the jobs that it knew before."""
        self._start("slurmctld", "-D", name="controller", is_up=lambda: "UP" in self.ask("scontrol", "ping"))

    def stop_controller(self) -> None:
        """Stop slurmctld; jobs that run go on."""
        daemon = self._daemons.pop("controller")
        stop(daemon.pid)
        daemon.wait()
        (self.folder / "daemons/controller").unlink()

    def set_node_environment(self, node: str, **variables: object) -> None:
        """Set variables for every job step of a node, which is how two nodes on one machine differ."""
        lines = (f"export {name}={value}\n" for name, value in variables.items())
        (self.folder / f"{node}.environment").write_text("".join(lines))

    def _write_files(self) -> None:
        for name in ("daemons", "state", "log", "munge", *(f"spool.{node}" for node in (*NODES, MIG_NODE))):
            (self.folder / name).mkdir(mode=0o755)
        prolog = self.folder / "prolog"
        prolog.write_text(PROLOG.format(folder=self.folder, mig=MIG_NODE))
        prolog.chmod(0o755)
        host = socket.gethostname().partition(".")[0]
        gpus = dict.fromkeys(NODES, ("a100", GPUS_PER_NODE)) | {MIG_NODE: ("1g.10gb", 2)}
        ports = find_free_ports(1 + len(gpus))
        tasks = "task/cgroup" if can_limit_memory() else "task/none"
        config = OURS + CONFIG.format(host=host, folder=self.folder, port=ports.pop(), tasks=tasks)
        all_gpus = ""
        for node, (model, count) in gpus.items():
            for number in range(count):
                os.mknod(self.folder / f"{node}.gpu{number}", stat.S_IFCHR | 0o666, os.makedev(1, 3))
            config += f"{NODE.format(node=node, host=host, port=ports.pop())} Gres=gpu:{model}:{count}\n"
            all_gpus += GPUS.format(node=node, folder=self.folder, model=model, last=count - 1)
        (CONFIG_FOLDER / "slurm.conf").write_text(config)
        (CONFIG_FOLDER / "gres.conf").write_text(all_gpus)
        limits = "yes" if can_limit_memory() else "no"
        (CONFIG_FOLDER / "cgroup.conf").write_text(CGROUPS.format(limits=limits))

    def _start_munge(self) -> None:
        folder = self.folder / "munge"
        key = folder / "key"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(128))
        names = {"key-file": "key", "log-file": "log", "pid-file": "pid", "seed-file": "seed", "socket": "socket"}
        options = [f"--{option}={folder / name}" for option, name in names.items()]
        self._start("/usr/sbin/munged", "--foreground", *options, name="munge", is_up=(folder / "socket").is_socket)

    def _start(self, *command: str, name: str, is_up: Callable[[], bool]) -> None:
        log = self.folder / f"log/{name}.printed"
        with log.open("a") as file:
            daemon = self._daemons[name] = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True
            )
        (self.folder / f"daemons/{name}").write_text(str(daemon.pid))

        def is_up_or_dead() -> bool:
            if daemon.poll() is not None:
                raise RuntimeError(f"{command[0]} ended:\n{log.read_text()}")
            return is_up()

        wait_for(is_up_or_dead, command[0])


def ask(*command: str) -> str:
    """Run a command of SLURM and return what it printed."""
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout.strip()


def clean_up(folder: Path) -> None:
    """End every job and every daemon of a cluster, and remove its files."""
    try:
        if (folder / "daemons/controller").exists():
            ask("scancel", "--user=root")
            wait_for(lambda: not ask("squeue", "-h"), "an empty queue")
    finally:
        for name in (*NODES, MIG_NODE, "controller", "munge"):
            daemon = folder / "daemons" / name
            if daemon.exists():
                stop(int(daemon.read_text()))
        for name in CONFIG_FILES:
            (CONFIG_FOLDER / name).unlink(missing_ok=True)
        for node in (*NODES, MIG_NODE):
            groups = MEMORY_GROUPS / f"slurm_{node}"
            for group in (*sorted(groups.rglob("*/"), reverse=True), groups):
                with suppress(OSError):  # none, or it is not empty yet
                    group.rmdir()
        shutil.rmtree(folder)


def stop(pid: int) -> None:
    """End a daemon that was started here, and wait for its end."""
    with suppress(ProcessLookupError):
        daemon = os.pidfd_open(pid)
        for number, timeout_s in ((signal.SIGTERM, 30), (signal.SIGKILL, None)):
            signal.pidfd_send_signal(daemon, number)
            if select.select([daemon], [], [], timeout_s)[0]:
                return


def wait_for(condition: Callable[[], bool], what: str, timeout_s: float = 60) -> None:
    """Ask again until it is so; a command that fails meanwhile counts as no."""
    end_s = time.monotonic() + timeout_s
    while True:
        with suppress(subprocess.CalledProcessError):
            if condition():
                return
        if time.monotonic() > end_s:
            raise TimeoutError(f"{what}: not there after {timeout_s} s")
        time.sleep(0.1)


def find_free_ports(count: int) -> list[int]:
    """Find ports that nobody listens on."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [listener.getsockname()[1] for listener in sockets]
    for listener in sockets:
        listener.close()
    return ports


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    sys.stdin.read()  # ends with the tests
    clean_up(Path(sys.argv[1]))
