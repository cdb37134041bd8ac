"""Several observers as one, none of which ends the training that it watches."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Sequence

from dynsparse.reallocation import ReallocationReport
from dynsparse.training.callbacks.base import (
    Callback,
    Display,
    EpochReport,
    RunReport,
    SamplesReport,
    ShrinkReport,
    StepReport,
    Summary,
    Writer,
)

log = logging.getLogger(__name__)


class Observers(Callback):
    """Sends each report to all observers. Training goes on if all that fails is to write or to show.

    A writer whose file cannot be written tries again after each later report, and whenever `write` is called.
    """

    def __init__(self, members: Sequence[Callback], guard: Callable[[], None] = lambda: None) -> None:
        """`guard` is called before anything is written. It may raise OSError, as where the storage is gone."""
        self.members = members
        self._guard = guard
        self._behind: dict[Callback, OSError] = {}
        self._failed: set[Callback] = set()
        self._lost: dict[Callback, OSError] = {}
        """Observers that missed the start or the end of the run, and do not remember it."""

    def on_start(self, run: RunReport) -> None:
        self._tell(lambda member: member.on_start(run), matters=True)

    def on_samples(self, report: SamplesReport) -> None:
        self._tell(lambda member: member.on_samples(report))

    def on_step(self, report: StepReport) -> None:
        self._tell(lambda member: member.on_step(report))

    def on_reallocation(self, report: ReallocationReport) -> None:
        self._tell(lambda member: member.on_reallocation(report))

    def on_shrink(self, report: ShrinkReport) -> None:
        self._tell(lambda member: member.on_shrink(report))

    def on_epoch(self, report: EpochReport) -> None:
        self._tell(lambda member: member.on_epoch(report))

    def on_end(self, summary: Summary) -> None:
        self._tell(lambda member: member.on_end(summary), matters=True)
        self.write(sync=True)

    def write(self, *, sync: bool = False) -> None:
        """Let all writers write what they could not before. `sync`: down to the disk itself."""
        for member in self.members:
            if isinstance(member, Writer):
                self._write(member, sync=sync)

    @property
    def behind(self) -> list[str]:
        """Files for which something waits that could not be written."""
        return [str(member.path) for member in self.members if isinstance(member, Writer) and member in self._behind]

    def failures(self, part: str) -> list[str]:
        """Return a line for each observer that could not write this part of the run: its start, its end."""
        failed = {**self._lost, **self._behind}
        return [
            f"{type(member).__name__}: cannot write the {part} of the run ({failed[member]}); free space or restore "
            f"the folder, then --resume auto: the checkpoints are valid"
            for member in self.members
            if member in failed
        ]

    def _tell(self, send: Callable[[Callback], None], *, matters: bool = False) -> None:
        for member in self.members:
            if isinstance(member, Display):
                self._show(member, send)
            elif isinstance(member, Writer):
                send(member)
                self._write(member)
            else:
                self._try(member, send, matters=matters)

    def _show(self, member: Display, send: Callable[[Callback], None]) -> None:
        try:
            send(member)
        except Exception as error:  # noqa: BLE001 - a stream that is closed shows as any error at all
            self._say_once(member, f"cannot show how it goes ({error}); training goes on")

    def _write(self, member: Writer, *, sync: bool = False) -> None:
        try:
            if member.pending:
                self._guard()
                member.write()
            if sync:
                member.sync()
        except OSError as error:
            if member not in self._behind:
                _say(logging.WARNING, member, f"cannot write ({error}); training goes on, and it tries again")
            self._behind[member] = error
        else:
            if self._behind.pop(member, None) is not None:
                _say(logging.INFO, member, f"has written to {member.path} what had to wait")

    def _try(self, member: Callback, send: Callable[[Callback], None], *, matters: bool) -> None:
        try:
            self._guard()
            send(member)
        except OSError as error:
            self._say_once(member, f"cannot write ({error}); training goes on")
            if matters:
                self._lost[member] = error

    def _say_once(self, member: Callback, what: str) -> None:
        if member not in self._failed:
            self._failed.add(member)
            _say(logging.WARNING, member, what)


def _say(level: int, member: Callback, what: str) -> None:
    with contextlib.suppress(ValueError):  # Raised by a stream that is closed.
        log.log(level, "%s %s", type(member).__name__, what)
