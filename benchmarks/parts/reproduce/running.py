"""Jobs run side by side, each in a process of its own; what is done is skipped, what was stopped resumes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from threading import RLock
from types import FrameType

from benchmarks.harness.record import ROOT
from benchmarks.parts.reproduce.jobs import Job
from dynsparse.errors import EXIT_DONE, EXIT_STOPPED


class Children:
    """Processes that end with this one: SIGTERM lets each save and stop."""

    def __init__(self) -> None:
        self.stopping = False
        self._children: set[subprocess.Popen[bytes]] = set()
        self._lock = RLock()  # A signal may come while this thread holds it.

    def run(self, command: Sequence[str], log: Path) -> int:
        """Run a command to its end, all it writes in a log. Returns its exit code."""
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "DYNSPARSE_TABLE_PROCESS": str(os.getpid())}
        with log.open("wb") as out:
            with self._lock:
                if self.stopping:
                    return EXIT_STOPPED
                # In a session of its own: a terminal's Ctrl-C comes to this process, which asks each to stop.
                child = subprocess.Popen(
                    command, cwd=ROOT, env=environment, stdout=out, stderr=out, start_new_session=True
                )
                self._children.add(child)
            code = child.wait()
            with self._lock:
                self._children.discard(child)
        return code

    @contextmanager
    def asked_to_stop(self) -> Iterator[None]:
        """Take SIGINT and SIGTERM as a request to stop, until the block ends."""
        before = {number: signal.signal(number, self._stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self.stop()

    def stop(self) -> None:
        """Ask all to save and stop, and start no more."""
        with self._lock:
            self.stopping = True
            for child in self._children:
                child.send_signal(signal.SIGTERM)


def command(config: Path) -> list[str]:
    return [sys.executable, "-m", "benchmarks.parts.reproduce.child", str(config)]


def log_of(config: Path) -> Path:
    """Return the file for what a job writes."""
    return config.with_suffix(".log")


class Queue:
    """Jobs that wait for their turn: none begins before the one that it needs has ended."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self.waiting = list(jobs)
        self.failed: list[Job] = []

    def take(self, running: Collection[Job]) -> Job | None:
        """Return the next job that can begin. Jobs that need one that failed fail, too."""
        for job in self.waiting:
            if job.needs is None or job.needs not in {*self.waiting, *running}:
                self.waiting.remove(job)
                if job.needs not in self.failed:
                    return job
                self.failed.append(job)
                return self.take(running)
        return None


def run_all(
    jobs: Sequence[Job], prepare: Callable[[Job], Path], done: Callable[[Job], None], *, at_once: int
) -> list[Job]:
    """Run the jobs, each after the one that it needs. Returns those that failed.

    `prepare` writes a job's config and returns its path; the log goes beside it. `done` is called as each ends, in this
    thread. Exits with code 75 if asked to stop, once the runs have saved where they are.
    """
    children, queue, progress = Children(), Queue(jobs), Progress(len(jobs))
    threads: dict[Future[int], tuple[Job, Path]] = {}
    with children.asked_to_stop(), ThreadPoolExecutor(at_once) as pool:
        while True:
            running = {job for job, _ in threads.values()}
            while len(threads) < at_once and not children.stopping and (job := queue.take(running)):
                config = prepare(job)
                threads[pool.submit(children.run, command(config), log_of(config))] = (job, config)
                running.add(job)
            if not threads:
                break
            for future in wait(threads, return_when=FIRST_COMPLETED).done:
                job, config = threads.pop(future)
                if (code := future.result()) == EXIT_DONE:
                    or_stop(children, done, job)
                    progress.note(running=len(threads))
                elif not children.stopping:
                    queue.failed.append(job)
                    print(f"{job.name} ended with code {code}; see {log_of(config)}", flush=True)
    if children.stopping:
        print("stopped; the same command resumes", flush=True)
        sys.exit(EXIT_STOPPED)
    return queue.failed


def or_stop(children: Children, done: Callable[[Job], None], job: Job) -> None:
    """Call `done`. If it fails, the other runs save and stop, so that its error is told at once."""
    try:
        done(job)
    except BaseException:
        children.stop()
        raise


class Progress:
    """Says how many runs are done, and about how long the others take."""

    def __init__(self, total: int) -> None:
        self.total, self.done, self.began = total, 0, time.monotonic()

    def note(self, *, running: int) -> None:
        """Count a run as done. Those that still run count as half done."""
        self.done += 1
        worked = self.done + running / 2
        minutes = (time.monotonic() - self.began) / 60 / worked * (self.total - worked)
        print(f"    {self.done} of {self.total} runs; about {max(0, minutes):.0f} minutes to go", flush=True)
