"""torchrun as the launchers run it: agent.py LOG TORCHRUN_ARGUMENTS...

It differs from `python -m torch.distributed.run` in its messages and in where it listens (docs/adr/launching.md).
`--rdzv-backend alone` is for one machine: no port, the workers meet in files whose names begin with --rdzv-endpoint.
`--rdzv-backend meeting` is c10d whose store listens on the endpoint's address only, where `--rdzv-conf is_host=true`.
torchrun's log goes to LOG. On stderr there is a line for each worker that died, and for each warning of torchrun.
"""

from __future__ import annotations

import signal

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # No traceback if it comes while torch is imported.

import logging
import os
import socket
import sys
import threading
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).parents[1])

from dynsparse.errors import EXIT_BAD_INPUT, EXIT_DONE, EXIT_FAULT, EXIT_INTERRUPTED, EXIT_STOPPED
from pipelines.common import streams

streams.make_safe()
streams.go_on_without()

# torch's C++ part warns of each connection that fails; the exception that follows says it too. For this process alone:
# the workers get the environment without it.
_QUIET = "TORCH_CPP_LOG_LEVEL"
if quiet := _QUIET not in os.environ:
    os.environ[_QUIET] = "ERROR"

from torch.distributed import HashStore, PrefixStore, TCPStore  # type: ignore[attr-defined]
from torch.distributed import run as torchrun
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.elastic.rendezvous import (
    RendezvousClosedError,
    RendezvousConnectionError,
    RendezvousHandler,
    RendezvousInfo,
    RendezvousParameters,
    RendezvousStoreInfo,
    RendezvousTimeoutError,
    rendezvous_handler_registry,
)
from torch.distributed.elastic.rendezvous.c10d_rendezvous_backend import C10dRendezvousBackend
from torch.distributed.elastic.rendezvous.dynamic_rendezvous import create_handler
from torch.distributed.elastic.rendezvous.utils import parse_rendezvous_endpoint
from torch.distributed.launcher import api as launcher

if quiet:
    del os.environ[_QUIET]

PARENT = os.getppid()
STOPS = ("SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP")
MEETING = "DYNSPARSE_MEETING"
"""The variable with the file in which the workers of one machine meet; dynsparse.runtime reads it."""

# Logged by torchrun at every stop and fault. Our own lines tell it, or it needs no action.
EXPECTED = (
    "Sending process",
    "Closing process",
    "Received ",
    "Got termination signal",
    "failed (exitcode",
    "Error waiting on exit barrier",
    "has failed to shutdown the rendezvous",
)


def main(log: str, arguments: list[str]) -> int:
    """Run torchrun to its end, and return 0, or 1 if a worker failed or a signal came.

    The workers leave their own exit code in a file.
    """
    try:
        logger = log_to(log)
    except OSError as error:
        say(f"error: {log}: cannot be written ({error.strerror}); set --logs or TMPDIR")
        return EXIT_BAD_INPUT
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"  # Else torchrun makes one more store, on all interfaces.
    rendezvous_handler_registry.register("alone", Alone)
    rendezvous_handler_registry.register("meeting", Meeting)
    launcher.LocalElasticAgent = Agent  # type: ignore[attr-defined]
    # Under nohup SIGHUP is ignored, and stays so.
    stops = [name for name in STOPS if signal.getsignal(signal.Signals[name]) is not signal.SIG_IGN]
    end_with_launcher()
    options = torchrun.parse_args(["--signals-to-handle", ",".join(stops), *arguments])
    try:
        torchrun.run(options)
    except (ChildFailedError, SignalException):  # The agent, or the sender of the signal, has printed why.
        logger.error("torchrun ends", exc_info=True)
        return EXIT_FAULT
    except Exception as error:  # One line is printed; the log has the rest.
        logger.error("torchrun ends", exc_info=True)
        # Where the workers have left with a code of theirs, the head may have left first, with its store.
        if isinstance(error, RendezvousTimeoutError) or not over():
            say(f"error: {reason(error, options.rdzv_endpoint)}")
        return EXIT_FAULT
    return EXIT_DONE


def reason(error: Exception, endpoint: str) -> str:
    """Return why torchrun ended, for a user."""
    here = f"torchrun on {socket.gethostname()}"
    match error:
        case RendezvousConnectionError():
            return f"{here} has lost the connection to the head, {endpoint}"
        case RendezvousTimeoutError():
            return f"{here} has waited for the other nodes in vain; --wait SECONDS says for how long"
        case RendezvousClosedError():
            return f"{here} comes too late: the launch of this --id has ended"
    first = next(iter(str(error).splitlines()), "")
    return f"{here} failed ({type(error).__name__}: {first})"


def over() -> bool:
    """Return whether the workers have left with a code that is no fault; dynsparse.torchrun writes it."""
    try:
        return int(Path(os.environ["DYNSPARSE_EXIT_FILE"]).read_text()) in (EXIT_DONE, EXIT_BAD_INPUT, EXIT_STOPPED)
    except (KeyError, OSError, ValueError):
        return False


def end_with_launcher() -> None:
    """Stop the workers if the launcher that started this process is killed: nobody else could stop them."""

    def watch() -> None:
        while os.getppid() == PARENT:
            never.wait(1)
        os.kill(os.getpid(), signal.SIGTERM)

    never = threading.Event()
    threading.Thread(target=watch, name="launcher watch", daemon=True).start()


# -- messages --------------------------------------------------------------------------------------


def say(line: str) -> None:
    """Print a line on stderr at once."""
    print(line, file=sys.stderr, flush=True)


class Agent(LocalElasticAgent):
    """An agent that prints a line for each worker that died silently: which it was, and what happens next."""

    def _monitor_workers(self, worker_group: Any) -> Any:
        result = super()._monitor_workers(worker_group)
        if Path(f"{os.environ.get('DYNSPARSE_EXIT_FILE', '')}.over").exists():
            self._remaining_restarts = 0  # The workers have said why, and would leave at once.
            return result
        most = self._worker_group.spec.max_restarts
        left = self._remaining_restarts
        ends = f"; all workers start anew (restart {most - left + 1} of {most})" if left > 0 else ""
        if left > 0 and result.failures and all(one.exitcode == EXIT_STOPPED for one in result.failures.values()):
            say("warning: another node was asked to stop, and all have saved; the others wait until it comes back")
        for line in deaths(result.failures):
            say(f"{'warning' if left > 0 else 'error'}: {line}{ends}")
        return result


def deaths(failures: Mapping[int, ProcessFailure]) -> list[str]:
    """Return a line for each worker that failed and did not print why.

    If one was killed, the others have lost their peer, and print it. If one ended, torchrun ends the others with
    SIGTERM.
    """
    host = socket.gethostname()
    by_rank = sorted((rank, failure.exitcode) for rank, failure in failures.items())
    by_rank = [(rank, code) for rank, code in by_rank if code != -signal.SIGTERM] or by_rank
    if killed := [(rank, code) for rank, code in by_rank if code < 0]:
        return [f"worker {rank} on {host} was killed by {name_of(-code)}" for rank, code in killed]
    spoken = (EXIT_BAD_INPUT, EXIT_STOPPED, EXIT_INTERRUPTED)
    return [f"worker {rank} on {host} ended with exit code {code}" for rank, code in by_rank if code not in spoken]


def name_of(number: int) -> str:
    """Return a signal's name, with the likely cause of SIGKILL."""
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = f"signal {number}"
    return f"{name} (out of memory, or by hand)" if number == signal.SIGKILL else name


class Warnings(logging.Handler):
    """A handler that prints each warning of torchrun once, in one line, except the expected ones."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._said: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage().strip()
        line = next(iter(message.splitlines()), "")
        if line in self._said or any(words in message for words in EXPECTED):
            return
        self._said.add(line)
        say(f"warning: torchrun: {line}")


def log_to(path: str) -> logging.Logger:
    """Send torchrun's log to a file, and its warnings to stderr too. Returns a logger of the file alone.

    It replaces the handlers of torch.
    """
    for name in [name for name in logging.root.manager.loggerDict if name.split(".")[0] == "torch"]:
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
    file = logging.FileHandler(path)
    file.setFormatter(logging.Formatter("%(asctime)s %(process)d %(levelname)s %(name)s: %(message)s"))
    logging.root.handlers = [file, Warnings()]
    logger = logging.getLogger("dynsparse")
    logger.handlers, logger.propagate = [file], False
    return logger


# -- where it listens --------------------------------------------------------------------------------


class Alone(RendezvousHandler):
    """A rendezvous for one machine, which nobody joins. It is in this process, and has no port.

    In each attempt the workers meet in a new file, so that none reads what an earlier attempt has left.
    """

    def __init__(self, parameters: RendezvousParameters) -> None:
        self._id = parameters.run_id
        self._files = parameters.endpoint
        self._store = HashStore()
        self._round = 0
        self._closed = False

    def get_backend(self) -> str:
        return "alone"

    @property
    def use_agent_store(self) -> bool:
        return False

    def next_rendezvous(self) -> RendezvousInfo:
        self._round += 1
        os.environ[MEETING] = f"{self._files}-{self._round}"  # The workers inherit it.
        store = PrefixStore(str(self._round), self._store)
        return RendezvousInfo(store, 0, 1, RendezvousStoreInfo("127.0.0.1", 0))

    def is_closed(self) -> bool:
        return self._closed

    def set_closed(self) -> None:
        self._closed = True

    def num_nodes_waiting(self) -> int:
        return 0

    def get_run_id(self) -> str:
        return self._id

    def shutdown(self) -> bool:
        self._closed = True
        return True


class Meeting(RendezvousHandler):
    """torchrun's c10d rendezvous with one store for nodes and workers, which listens on one address.

    torch has two stores, which listen on all interfaces: one for the nodes at the head, one for the workers on the node
    of worker 0. Workers find a part of the store that no earlier attempt has written to (dynsparse.runtime).
    """

    def __init__(self, parameters: RendezvousParameters) -> None:
        host, port = parse_rendezvous_endpoint(parameters.endpoint, default_port=-1)
        hosts = bool(parameters.get_as_bool("is_host"))
        store = listen(host, port) if hosts else TCPStore(host, port, is_master=False, timeout=timedelta(seconds=60))
        self._at = RendezvousStoreInfo(host, port)
        self._nodes = create_handler(store, C10dRendezvousBackend(store, parameters.run_id), parameters)

    def get_backend(self) -> str:
        return "meeting"

    @property
    def use_agent_store(self) -> bool:
        return True

    def next_rendezvous(self) -> RendezvousInfo:
        found = self._nodes.next_rendezvous()
        return RendezvousInfo(found.store, found.rank, found.world_size, self._at)

    def is_closed(self) -> bool:
        return self._nodes.is_closed()

    def set_closed(self) -> None:
        self._nodes.set_closed()

    def num_nodes_waiting(self) -> int:
        return self._nodes.num_nodes_waiting()

    def get_run_id(self) -> str:
        return self._nodes.get_run_id()

    def shutdown(self) -> bool:
        return self._nodes.shutdown()


def listen(address: str, port: int) -> TCPStore:
    """Return a store that listens on this address only."""
    with socket.create_server((address, port), family=socket.AF_INET6 if ":" in address else socket.AF_INET) as server:
        descriptor = server.detach()
    timeout = timedelta(seconds=60)
    return TCPStore(address, port, is_master=True, master_listen_fd=descriptor, wait_for_workers=False, timeout=timeout)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
