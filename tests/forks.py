"""Processes that begin with everything imported: forks of one server, in milliseconds where imports take seconds.

A forked program has no start of its own: what a test proves about the interpreter's start, about signals during it or
about the streams that it is given needs `runs.start`, which starts a true one.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from multiprocessing import forkserver
from pathlib import Path
from typing import IO, Any, NoReturn

from dynsparse import torchrun

CONTEXT = multiprocessing.get_context("forkserver")


def serve() -> None:
    """Start the server before anything else does: there is one, and who starts it says what it imports."""
    CONTEXT.set_forkserver_preload(["tests.preloaded"])
    forkserver.ensure_running()


def python(words: Sequence[str], folder: Path, environment: Mapping[str, str], out: Path, err: Path) -> Any:
    """A process, not yet started, that does what `python WORDS` would. Output goes to files."""
    return CONTEXT.Process(target=_be_program, args=([*words], folder, {**environment}, out, err))


def _be_program(words: list[str], folder: Path, environment: dict[str, str], out: Path, err: Path) -> NoReturn:
    with out.open("wb") as file_out, err.open("wb") as file_err:
        _prepare(environment, file_out, file_err)
    os.chdir(folder)
    if words[:2] == ["-m", "torch.distributed.run"]:
        _end(lambda: _be_torchrun(words[1:]))
    _end(lambda: _run(words))


def _prepare(environment: Mapping[str, str], out: IO[Any] | None, err: IO[Any] | None) -> None:
    """Give this process what it would have if it had been started: its own session, environment, streams, signals."""
    os.setsid()
    os.environ.clear()
    os.environ.update(environment)
    tempfile.tempdir = None
    for number, file in ((1, out), (2, err)):
        if file is not None:
            os.dup2(file.fileno(), number)
    sys.stdin = open(os.devnull)  # noqa: SIM115
    sys.stdout = sys.__stdout__ = open(1, "w", closefd=False)  # type: ignore[misc] # noqa: SIM115
    sys.stdout.reconfigure(write_through=True)  # type: ignore[union-attr] # As torchrun's workers have it.
    sys.stderr = sys.__stderr__ = open(2, "w", 1, closefd=False, errors="backslashreplace")  # type: ignore[misc] # noqa: SIM115
    for number in signal.valid_signals():
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])


def _run(words: list[str]) -> None:
    """Do what `python WORDS` does: run a script, or -m and a module."""
    importlib.reload(torchrun)  # It looks at its process's parent when it is imported.
    if words[0] == "-m":
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = words
        sys.path.insert(0, str(Path(words[0]).parent))
        runpy.run_path(words[0], run_name="__main__")


def _be_torchrun(words: list[str]) -> None:
    """The true agent, but that its workers are forked."""
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.subprocess_handler import subprocess_handler

    subprocess_handler.Popen = _Worker  # type: ignore[misc, assignment]
    sys.argv = words
    run.main()


class _Worker:
    """A worker of torchrun, with the parts of subprocess.Popen that torchrun uses."""

    def __init__(
        self, args: Sequence[str], env: Mapping[str, str], stdout: Any, stderr: Any, start_new_session: bool
    ) -> None:
        assert args[:2] == (sys.executable, "-u")
        assert start_new_session
        self.args = args
        self.returncode: int | None = None
        sys.stdout.flush()
        sys.stderr.flush()
        if (pid := os.fork()) == 0:
            gc.freeze()  # What the agent holds is not this process's to end.
            _close_sockets()
            _prepare(env, stdout, stderr)
            _end(lambda: _run([*args[2:]]))
        self.pid = pid

    def poll(self) -> int | None:
        if self.returncode is None and (found := os.waitpid(self.pid, os.WNOHANG))[0]:
            self.returncode = os.waitstatus_to_exitcode(found[1])
        return self.returncode

    def wait(self, timeout: float) -> int:
        asleep = threading.Event()
        for _ in range(int(timeout / 0.02) + 1):
            if (code := self.poll()) is not None:
                return code
            asleep.wait(0.02)
        raise subprocess.TimeoutExpired(self.args, timeout)


def _close_sockets() -> None:
    """A program that is started inherits no sockets: the agent's store is to end with the agent."""
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            if os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                os.close(int(name))


def _end(act: Callable[[], object]) -> NoReturn:
    """Do it, and end as the interpreter does."""
    code = 1
    try:
        code = _code(act)
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def _code(act: Callable[[], object]) -> int:
    try:
        act()
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
            return 1
        return int(end.code or 0)
    except KeyboardInterrupt:
        sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    except BaseException:  # noqa: BLE001 - as the interpreter would
        sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
        return 1
    return 0
