"""A real Slurm cluster on this machine: a controller and nodes, each on a host of its own (tests/hosts.py).

Debian's slurm-wlm and munge. All of their files are in a folder of the test, and their ports in networks of the test.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType

from tests.hosts import Host, Hosts
from tests.hosts import why_not as why_no_hosts

LIMIT_SECONDS = 240

_CONFIG = """
ClusterName=test
SlurmctldHost=host0
SlurmUser=root
SlurmdUser=root
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdSpoolDir={folder}/%n
SlurmdPidFile={folder}/%n.pid
SlurmdLogFile={folder}/%n.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
MpiDefault=none
ReturnToService=2
MailProg=/bin/true
SchedulerParameters=batch_sched_delay=0,sched_interval=2,sched_min_interval=0
KillWait=60
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=host[1-{nodes}] CPUs=2
PartitionName=low Nodes=ALL Default=YES PriorityTier=1 GraceTime=60
PartitionName=high Nodes=ALL PriorityTier=2 PreemptMode=OFF
"""


def why_not() -> str | None:
    """Reason against a cluster on this machine; None if it can have one."""
    missing = [tool for tool in ("slurmctld", "slurmd", "munged") if shutil.which(tool, path=_path()) is None]
    if missing:
        return f"there is no {' and no '.join(missing)}: Debian's packages slurm-wlm and munge have them"
    return why_no_hosts()


def _path() -> str:
    return f"{os.environ['PATH']}:/usr/sbin:/sbin"


class Cluster:
    """A context: a cluster of `nodes` nodes, host1, host2, ..."""

    def __init__(self, nodes: int = 2) -> None:
        self._nodes = nodes
        self._hosts = Hosts(nodes + 1)
        self._daemons: list[subprocess.Popen[str]] = []

    def __enter__(self) -> Cluster:
        with ExitStack() as stack:
            self._folder = Path(stack.enter_context(TemporaryDirectory()))
            self._config = self._folder / "slurm.conf"
            self._config.write_text(_CONFIG.format(folder=self._folder, nodes=self._nodes))
            (self._folder / "state").mkdir()
            stack.enter_context(self._hosts)
            self._munge()
            self._daemon(0, "slurmctld", "-D")
            for number in range(1, self._nodes + 1):
                self._daemon(number, "slurmd", "-D", "-N", f"host{number}")
            self.until(lambda: self.idle() == self._nodes, "the nodes are idle")
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def run(self, *command: object) -> str:
        """Run a command on the controller's host, of Slurm or another, and return its output. It must succeed."""
        process = self._start(self._hosts[0], *command)
        said, _ = process.communicate(timeout=LIMIT_SECONDS)
        if process.returncode != 0:
            raise RuntimeError(f"{' '.join(map(str, command))}: {said}")
        return said

    def idle(self) -> int:
        """Number of nodes without a job."""
        return self.run("sinfo", "-hN", "-p", "low", "-o", "%T").split().count("idle")

    def field(self, job: str, name: str) -> str:
        """Value of a field of `scontrol show job`."""
        words = self.run("scontrol", "show", "job", "-o", job).split()
        return next(word for word in words if word.startswith(f"{name}=")).partition("=")[2]

    def until(self, what: Callable[[], bool], name: str) -> None:
        deadline = time.monotonic() + LIMIT_SECONDS
        while not what():
            assert all(daemon.poll() is None for daemon in self._daemons), f"a daemon ended\n{self.logs()}"
            assert time.monotonic() < deadline, f"not within {LIMIT_SECONDS} s: {name}\n{self.logs()}"
            time.sleep(0.2)

    def logs(self) -> str:
        """Logs of the daemons, to find a fault."""
        return "\n".join(f"{path}:\n{path.read_text()}" for path in sorted(self._folder.glob("*.log")))

    def _munge(self) -> None:
        """One daemon for all: it is found by a file, which all hosts share. The key is of this cluster alone."""
        key = self._folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        files = {"key-file": "key", "socket": "socket", "pid-file": "pid", "seed-file": "seed", "log-file": "log"}
        options = [f"--{option}={self._folder}/munge.{name}" for option, name in files.items()]
        self._daemon(0, "munged", "--foreground", "--force", *options)  # Force: no other user may enter the folder.
        self.until((self._folder / "munge.socket").exists, "munged listens")

    def _daemon(self, number: int, *command: object) -> None:
        host = self._hosts[number]
        self._daemons.append(self._start(host, *command, log=self._folder / f"{host.name}-{command[0]}.log"))

    def _start(self, host: Host, *command: object, log: Path | None = None) -> subprocess.Popen[str]:
        # What a job gets of its environment is what `sbatch` has, so nothing here may choose a network for it.
        return host.start(*command, log=log, PATH=_path(), SLURM_CONF=str(self._config), GLOO_SOCKET_IFNAME="")
