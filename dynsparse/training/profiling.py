"""Traces of a few steps by torch.profiler, one for each worker (`log.profile`)."""

from __future__ import annotations

import contextlib
import gzip
import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import device
from torch.profiler import ProfilerActivity, profile, schedule

from dynsparse import files
from dynsparse.training.run import names

log = logging.getLogger(__name__)

WAIT, WARMUP = 5, 3
"""Steps before the recorded ones: libraries choose their kernels, then the profiler starts and is slow at first."""


@contextlib.contextmanager
def profiled(
    steps: int | None,
    when_stepped: list[Callable[[], None]],
    on: device,
    folder: Path,
    *,
    rank: int,
    done: int,
) -> Iterator[None]:
    """Record so many training steps in the block, and write a trace into the run's `folder`. None: do nothing.

    `when_stepped`: functions that the trainer calls at the end of each step. A hook of the optimizer would be called
    before the reallocation. What follows, such as loading the next batch, belongs to the next step.

    `done`: steps of the run before the block. Nothing in the run changes but its speed in these steps. If they do not
    all come, what there is of them is written.
    """
    if steps is None:
        yield
        return
    recorder = _Recorder(steps, on, folder, rank, done)
    when_stepped.append(recorder.step_done)
    try:
        yield
    finally:
        when_stepped.remove(recorder.step_done)
        recorder.end()


class _Recorder:
    """A profiler that is stopped once it has recorded, and whose faults end no training."""

    def __init__(self, steps: int, on: device, folder: Path, rank: int, done: int) -> None:
        self._steps, self._folder, self._rank, self._done = steps, folder, rank, done
        self._seen = 0
        self._written = self._ended = False
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on.type == "cuda" else [])]
        self._profiler = profile(
            activities=activities,
            schedule=schedule(wait=WAIT, warmup=WARMUP, active=steps, repeat=1),
            on_trace_ready=self._write,
            record_shapes=True,
            profile_memory=on.type == "cuda",
        )
        self._profiler.start()

    def step_done(self) -> None:
        """Count a step. The last one is followed by the writing of the trace."""
        if self._ended:
            return
        self._seen += 1
        self._profiler.step()
        if self._written:
            self.end()

    def end(self) -> None:
        """Stop, and write what was recorded if that is not done yet."""
        if self._ended:
            return
        self._ended = True
        self._profiler.stop()
        if not self._written and self._rank == 0:
            log.warning(
                "log.profile: no step was recorded; %d were done, and recording begins after %d",
                self._seen,
                WAIT + WARMUP,
            )

    def _write(self, profiler: Any) -> None:
        self._written = True
        first = self._done + WAIT + WARMUP + 1
        recorded = min(self._seen - WAIT - WARMUP, self._steps)
        path = self._folder / names.PROFILES / names.trace(self._rank, first)
        try:
            write_trace(profiler, path)
        except (OSError, RuntimeError) as error:
            log.warning("log.profile: %s cannot be written (%s); training goes on", path, error)
            return
        if self._rank == 0:
            log.info("profile of %d steps from step %d: %s; open it at ui.perfetto.dev", recorded, first, path)


def write_trace(profiler: Any, path: Path) -> None:
    """Write the trace to `path` in one step, compressed. OSError or RuntimeError if that fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory() as place:
        plain = Path(place) / "trace.json"
        profiler.export_chrome_trace(str(plain))
        with plain.open("rb") as source, files.whole(path) as file, gzip.GzipFile(fileobj=file, mode="wb") as packed:
            shutil.copyfileobj(source, packed)
