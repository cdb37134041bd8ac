"""Several hosts on this machine: Linux namespaces, joined by a switch through links of limited rate.

A host has a name, an address, a network and processes of its own, and the machine's files, as if all mounted one NFS.
Its first process holds all of that: when it dies the kernel ends the host's other processes and its network. It dies
with this process at the latest, however that ends. The namespaces have no names and the switch is in one of its own,
so nothing here touches the machine's network or another test's.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any

from pyroute2 import IPRoute, NetlinkError

ROOT = Path(__file__).parents[1]
INTERFACE = "net0"
BURST = 128 * 1024  # Bytes that a link lets through at once: 1 ms of 1 Gbit/s.
PORT = 29500  # Nobody else is in these networks.

_KINDS = ("--net", "--pid", "--uts", "--mount")
_UNSHARE = ("unshare", *_KINDS, "--fork", "--mount-proc")
# Process numbers start elsewhere at each boot: torchrun tells its nodes apart by host name and process number.
_FIRST_PROCESS = """
echo "$1" > /proc/sys/kernel/hostname
[ ! -e /proc/sys/kernel/ns_last_pid ] || echo "$2" > /proc/sys/kernel/ns_last_pid
mount --bind "$3" /etc/hosts
echo ready
exec cat
"""


@functools.cache
def why_not() -> str | None:
    """Reason against such hosts on this machine; None if it can have them."""
    missing = [tool for tool in ("unshare", "nsenter") if shutil.which(tool) is None]
    if missing:
        return f"there is no {' and no '.join(missing)}"
    if os.geteuid() != 0:
        return "only root may make networks"
    tried = subprocess.run([*_UNSHARE, "true"], capture_output=True, text=True, check=False)
    if tried.returncode != 0:
        return f"namespaces are not allowed here ({tried.stderr.strip()})"
    try:
        with Hosts(1):
            return None
    except NetlinkError as error:
        return f"the kernel has no bridge, veth or tbf ({error})"


class Host:
    """One of several. `boot` starts it, `kill` ends all that runs on it at once."""

    def __init__(self, number: int, names: Path) -> None:
        self.number = number
        self.name = f"host{number}"
        self.address = f"10.77.0.{number + 1}"
        self.first = 0
        """Its first process, as this machine counts."""
        self._names = names
        self._boots = 0
        self._holder: subprocess.Popen[str] | None = None

    @property
    def network(self) -> str:
        return f"/proc/{self.first}/ns/net"

    def boot(self) -> None:
        self._boots += 1
        settings = (self.name, str(1000 * self._boots), str(self._names))
        # The first process reads from a pipe that nobody writes to, and ends with the pipe. Ctrl-C does not reach it.
        self._holder = subprocess.Popen(
            [
                "unshare",
                *_KINDS,
                "--fork",
                "--kill-child",
                "--mount-proc",
                "sh",
                "-ec",
                _FIRST_PROCESS,
                "sh",
                *settings,
            ],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert self._holder.stdout is not None
        assert self._holder.stderr is not None
        if self._holder.stdout.readline() != "ready\n":
            raise RuntimeError(f"{self.name} did not start: {self._holder.stderr.read()}")
        outside = self._holder.pid
        self.first = int(Path(f"/proc/{outside}/task/{outside}/children").read_text())

    def kill(self) -> None:
        """SIGKILL to the first process: the kernel sends it to all others, and has reaped them when this returns."""
        if self._holder is None:
            return
        with self._holder, contextlib.suppress(ProcessLookupError):  # The holder waits for the end.
            os.kill(self.first or self._holder.pid, signal.SIGKILL)
        self._holder, self.first = None, 0

    def start(self, *command: object, log: Path | None = None, **environment: str) -> subprocess.Popen[str]:
        """Run `command` here, in the project's folder. What it prints is added to `log`; without one it can be read."""
        settings = {"GLOO_SOCKET_IFNAME": INTERFACE, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        with contextlib.nullcontext(subprocess.PIPE) if log is None else log.open("a") as out:
            return subprocess.Popen(
                ["nsenter", f"--target={self.first}", *_KINDS, "--wd", *map(str, command)],
                env={**os.environ, **settings, **environment},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )


class Hosts:
    """A context of `count` hosts, each with a link of `rate` in either direction (tc's units, as "100mbit")."""

    def __init__(self, count: int, rate: str = "1gbit") -> None:
        self._count = count
        self._rate = rate

    def __enter__(self) -> Hosts:
        with ExitStack() as stack:
            names = Path(stack.enter_context(TemporaryDirectory())) / "hosts"
            self._hosts = [Host(number, names) for number in range(self._count)]
            lines = [f"{host.address} {host.name}\n" for host in self._hosts]
            names.write_text("".join(["127.0.0.1 localhost\n", *lines]))
            switch = Host(self._count, names)
            for host in (switch, *self._hosts):
                stack.callback(host.kill)
                host.boot()
            self._switch = stack.enter_context(IPRoute(netns=switch.network))
            self._switch.link("add", ifname="bridge", kind="bridge")
            self._set("bridge", state="up")
            for host in self._hosts:
                self._connect(host)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def __getitem__(self, number: int) -> Host:
        return self._hosts[number]

    def link_down(self, number: int) -> None:
        """Pull the host's cable: packets are lost both ways, and connections do not notice."""
        self._set(_port(number), state="down")

    def link_up(self, number: int) -> None:
        self._set(_port(number), state="up")

    def limit_inside(self, number: int) -> None:
        """Let its processes talk to each other no faster than the link to the others allows."""
        with IPRoute(netns=self._hosts[number].network) as inside:
            self._limit(inside, "lo")

    def vanish(self, number: int) -> None:
        """Cut the host's power: none of its processes can tell anybody that it ends."""
        self._switch.link("del", index=_index(self._switch, _port(number)))
        self._hosts[number].kill()

    def come_back(self, number: int) -> None:
        """Start the host again with its old name and address, and nothing running."""
        self._hosts[number].boot()
        self._connect(self._hosts[number])

    def bytes_sent(self, number: int) -> int:
        with IPRoute(netns=self._hosts[number].network) as inside:
            return _bytes_sent(inside)

    def torchrun(self, number: int, *script: object, restarts: int = 0, log: Path, **environment: str) -> Any:
        """Start a host's part of a run over all of them, one worker each. They meet at the first host."""
        return self._hosts[number].start(
            *(sys.executable, "-m", "torch.distributed.run", "--nnodes", self._count, "--nproc-per-node", 1),
            *("--rdzv-backend", "c10d", "--rdzv-endpoint", f"{self._hosts[0].address}:{PORT}", "--rdzv-id", "hosts"),
            *("--max-restarts", restarts, *script),
            log=log,
            # Else torchrun writes the workers' meeting place for its first round only: in torch 2.13 a host that joins
            # later waits for it in vain, and ends the run of all.
            TORCH_DISABLE_SHARE_RDZV_TCP_STORE="1",
            **environment,
        )

    def _set(self, interface: str, **settings: Any) -> None:
        self._switch.link("set", index=_index(self._switch, interface), **settings)

    def _connect(self, host: Host) -> None:
        port = _port(host.number)
        self._switch.link("add", ifname=port, kind="veth", peer={"ifname": INTERFACE, "net_ns_pid": host.first})
        self._limit(self._switch, port)
        self._set(port, master=_index(self._switch, "bridge"), state="up")
        with IPRoute(netns=host.network) as inside:
            self._limit(inside, INTERFACE)
            inside.addr("add", index=_index(inside, INTERFACE), address=host.address, prefixlen=24)
            for interface in ("lo", INTERFACE):
                inside.link("set", index=_index(inside, interface), state="up")

    def _limit(self, side: IPRoute, interface: str) -> None:
        side.tc("add", "tbf", index=_index(side, interface), rate=self._rate, burst=BURST, latency="50ms")


def _port(number: int) -> str:
    return f"port{number}"


def _index(side: IPRoute, interface: str) -> int:
    return int(side.link_lookup(ifname=interface)[0])


def bytes_sent() -> int:
    """Bytes that this host has sent since its link was connected, with the headers of every packet."""
    with IPRoute() as here:
        return _bytes_sent(here)


def _bytes_sent(side: IPRoute) -> int:
    limit = side.get_qdiscs(index=_index(side, INTERFACE))[0]
    return int(limit.get_nested("TCA_STATS2", "TCA_STATS_BASIC")["bytes"])
