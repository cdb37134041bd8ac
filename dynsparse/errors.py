"""Errors by who can mend them, and exit codes.

A message names the value, the rule that it breaks and the remedy, on one line.
"""

from __future__ import annotations

from pipelines.common.errors import EXIT_BAD_INPUT as EXIT_BAD_INPUT
from pipelines.common.errors import EXIT_DONE as EXIT_DONE
from pipelines.common.errors import EXIT_INTERRUPTED as EXIT_INTERRUPTED
from pipelines.common.errors import UserError as UserError

EXIT_FAULT = 1
EXIT_STOPPED = 75  # EX_TEMPFAIL of sysexits.h: stopped on request, a checkpoint is there to resume from

LONGEST_NUMBER = 100
"""Most characters of a number. PyYAML's time grows with the square of it, and Python refuses 4,300 digits."""


class StorageError(UserError):
    """A refusal of the file system that may pass. It is bad input at a first start; a run that is resumed waits."""


class StorageFaultError(RuntimeError):
    """Storage of a resumed run that has been away for too long. Another attempt may find it."""


class RunError(UserError):
    """Ends a run on every rank at the same step. A checkpoint is left, to resume from once the cause is mended."""


class DivergedError(RunError):
    """Training has diverged. Nothing is saved: the checkpoints from before are to stay."""


class DesyncError(RuntimeError):
    """Different masks or weights on the ranks (`distributed.on_desync: abort`)."""


class StopRequested(Exception):  # noqa: N818 - a request, not an error
    """A request to stop: every rank leaves at the same step, and a checkpoint has been saved."""
