"""Deliveries to a service, in a thread of their own."""

from __future__ import annotations

import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable
from itertools import islice, takewhile
from threading import Condition, Thread

from dynsparse.training.callbacks.tracking.base import Reading

log = logging.getLogger(__name__)

Job = Callable[[], object]
Piece = list[Job | Reading]
"""A job, or readings that follow one another."""

MOST_WAITING = 10_000
"""Jobs and readings that wait for a service that is away; later ones are lost."""
MOST_AT_ONCE = 100
"""Readings in one piece."""
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0
"""Seconds between two tries, which double."""


class Delivery:
    """Does jobs and sends readings, in order. Whatever a service does, nobody else fails or waits.

    Readings that wait are sent together: after an outage the service is not asked for each of them. What fails is tried
    again while its error may pass, and is lost otherwise. With the first job all is lost: without its beginning a
    service knows no run.
    """

    def __init__(
        self,
        name: str,
        send: Callable[[list[Reading]], object],
        may_pass: Callable[[Exception], bool],
        *,
        most: int = MOST_WAITING,
    ) -> None:
        self.name = name
        self.lost = 0
        """Number of jobs and readings that could not be done."""
        self._send = send
        self._may_pass = may_pass
        self._most = most
        self._jobs: deque[Job | Reading] = deque()
        self._news = Condition()
        self._thread: Thread | None = None
        self._ending = self._given_up = False
        self._away = self._refused = False
        """Tell what was said: that the service is away, that it refused something."""
        self._done = 0

    def add(self, job: Job | Reading) -> None:
        """Take a job or a reading. Returns at once."""
        with self._news:
            if self._given_up or len(self._jobs) >= self._most:
                self.lost += 1
                return
            self._jobs.append(job)
            self._news.notify()
        if self._thread is None:
            # A daemon: no service keeps a process that has ended.
            self._thread = Thread(target=self._work, name=self.name, daemon=True)
            self._thread.start()

    def finish(self, within: float) -> int:
        """Wait for so many seconds until no job is left. Returns how many were not done, and never are."""
        deadline = time.monotonic() + within
        with self._news:
            self._ending = True
            self._news.notify()
        if self._thread is not None:
            self._thread.join(max(0.0, deadline - time.monotonic()))
        with self._news:
            self._given_up = True
            left = len(self._jobs)
            self._jobs.clear()
        return self.lost + left

    def _work(self) -> None:
        while piece := self._next():
            self._do(piece)
            with self._news:
                for _ in range(min(len(piece), len(self._jobs))):  # They count as not done until they are.
                    self._jobs.popleft()

    def _next(self) -> Piece:
        """Return what is to be done next, once there is something; nothing at the end."""
        with self._news:
            while not self._jobs and not self._ending and not self._given_up:
                self._news.wait()
            if not self._jobs or self._given_up:
                return []
            waiting = islice(self._jobs, MOST_AT_ONCE)
            return list(takewhile(lambda one: isinstance(one, Reading), waiting)) or [self._jobs[0]]

    def _act(self, piece: Piece) -> None:
        if callable(piece[0]):
            piece[0]()
        else:
            self._send([one for one in piece if isinstance(one, Reading)])

    def _do(self, piece: Piece) -> None:
        pause = FIRST_PAUSE
        while not self._given_up:
            try:
                self._act(piece)
            except Exception as error:  # noqa: BLE001 - a service's library raises whatever it likes
                if not self._may_pass(error):
                    self._lose(error, len(piece))
                    return
                if not self._away:
                    self._away = True
                    self._warn(error, "it tries again")
                self._rest(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
            else:
                self._succeeded()
                return

    def _succeeded(self) -> None:
        self._done += 1
        if self._away:
            self._away = False
            _say(logging.INFO, f"{self.name} takes readings again")

    def _lose(self, error: Exception, count: int) -> None:
        self.lost += count
        if self._done == 0:
            self._warn(error, "this run is not shown there")
            with self._news:
                self._given_up = True
        elif not self._refused:
            self._refused = True
            self._warn(error, "what it refuses is lost")

    def _rest(self, seconds: float) -> None:
        """Wait for the next try; shorter, once training waits for it."""
        deadline = time.monotonic() + seconds
        with self._news:
            while not self._given_up and (left := deadline - time.monotonic()) > 0:
                self._news.wait(min(left, FIRST_PAUSE))
                if self._ending:
                    return

    def _warn(self, error: Exception, what: str) -> None:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        _say(logging.WARNING, f"{self.name} takes no readings ({reason}); training goes on, and {what}")


def _say(level: int, line: str) -> None:
    with contextlib.suppress(ValueError):  # Raised by a stream that is closed.
        log.log(level, "%s", line)
