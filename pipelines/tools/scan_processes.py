"""The processes of a scan. An image may kill one: decoders are native code."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Generator, Iterator, Mapping
from contextlib import suppress
from itertools import islice
from multiprocessing.connection import wait
from typing import Any

from pipelines.common.errors import UserError
from pipelines.common.processes import clean_processes
from pipelines.common.signals import undisturbed
from pipelines.sources.base import Encoded
from pipelines.tools.scan_facts import Check, Facts, examine

CHUNK = 64
"""Samples that a process gets at a time."""
DEADLY = "ends the process that decodes it"

Sample = tuple[str, int]
"""Part of the data set, and index in it."""


def examined(parts: Mapping[str, Encoded], workers: int, check: Check) -> Generator[tuple[Sample, Facts], None, None]:
    """Yield the facts about each sample of each part, in the order in which `workers` processes finish.

    Close it to end the processes. Raises UserError if they cannot start.
    """
    chunks = _chunks(parts)
    busy: list[_Worker] = []
    try:
        for chunk in islice(chunks, workers):
            busy.append(_Worker(parts, check, chunk))
        while busy:
            heard = wait([worker.connection for worker in busy])
            for worker in [worker for worker in busy if worker.connection in heard]:
                if (answer := worker.answer()) is not None:
                    yield answer
                if worker.idle:
                    if chunk := next(chunks, []):
                        worker.give(chunk)
                    else:
                        busy.remove(worker)
                        worker.stop()
    finally:
        for worker in busy:
            worker.stop()


def _chunks(parts: Mapping[str, Encoded]) -> Iterator[list[Sample]]:
    for part, source in parts.items():
        size = len(source.labels)
        for start in range(0, size, CHUNK):
            yield [(part, index) for index in range(start, min(start + CHUNK, size))]


class _Worker:
    """A process and its unanswered samples. A new process replaces it if it dies.

    It answers sample by sample, so the first unanswered sample is the one it died of. That sample is tried once more in
    the new process: the death may have been an accident.
    """

    def __init__(self, parts: Mapping[str, Encoded], check: Check, samples: list[Sample]) -> None:
        self._arguments = dict(parts), check
        self._unanswered = deque(samples)
        self._suspect: Sample | None = None
        self._start()

    @property
    def idle(self) -> bool:
        return self._started and not self._unanswered

    def give(self, samples: list[Sample]) -> None:
        self._unanswered.extend(samples)
        with suppress(OSError):  # It has died; `answer` will notice.
            self.connection.send(samples)

    def answer(self) -> tuple[Sample, Facts] | None:
        """Wait for an answer. None if the process only said that it runs, or died and the sample is tried again."""
        try:
            facts: Facts | UserError | None = self.connection.recv()
        except (EOFError, OSError):
            return self._replaced()
        if isinstance(facts, UserError):
            raise facts
        if facts is not None:
            return self._unanswered.popleft(), facts
        self._started = True
        if self._unanswered:
            samples = list(self._unanswered)
            self._unanswered.clear()
            self.give(samples)
        return None

    def stop(self) -> None:
        """Kill the process: it has nothing to tidy up."""
        self._process.kill()
        self._process.join()
        self.connection.close()

    def _start(self) -> None:
        self.connection, theirs = multiprocessing.Pipe()
        self._started = False
        with undisturbed():
            self._process = clean_processes().Process(target=_work, args=(theirs, *self._arguments), daemon=True)
            self._process.start()
        theirs.close()  # Otherwise its end would not be noticed.

    def _replaced(self) -> tuple[Sample, Facts] | None:
        self.stop()
        if not self._started:
            raise UserError("a process of the scan has ended before its first image; is there memory left?")
        sample = self._unanswered[0]
        deadly = sample == self._suspect
        self._suspect = sample
        if deadly:
            self._unanswered.popleft()
        self._start()
        return (sample, Facts(DEADLY)) if deadly else None


def _work(connection: Any, parts: Mapping[str, Encoded], check: Check) -> None:
    """Examine samples until the other end of the connection is closed. The process's main function."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    # Native decoders write warnings to standard error.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    connection.send(None)
    with suppress(EOFError, OSError):
        while True:
            for part, index in connection.recv():
                connection.send(_examined(parts[part], index, check))


def _examined(source: Encoded, index: int, check: Check) -> Facts | UserError:
    """Return the facts about a sample, or the error that ends the scan."""
    try:
        return examine(source, index, check)
    except UserError as error:
        return UserError(str(error))  # A new one: the old one's context may hold what cannot be sent.


def preload() -> None:
    """Import this module once for all processes to come. That starts no thread, which a fork would lack."""
    clean_processes([__name__])
