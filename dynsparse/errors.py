"""What can go wrong, sorted by who can mend it.

A message names the value, the rule that it breaks and the remedy, on one line.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

EXIT_DONE = 0
EXIT_FAULT = 1
EXIT_BAD_INPUT = 2
EXIT_STOPPED = 75  # EX_TEMPFAIL of sysexits.h: stopped on request, a checkpoint is there to resume from
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells have it: a second Ctrl-C, which waits for no checkpoint


class UserError(ValueError):
    """Bad input. The run ends with exit code 2 and this message, without a traceback.

    `lines` holds one message for each thing that is wrong.
    """

    def __init__(self, *lines: str) -> None:
        super().__init__("\n".join(lines))
        self.lines = lines


class StorageError(UserError):
    """What a file system refuses at the moment. Said as bad input at a first start; what goes on waits for it."""


class StorageFaultError(RuntimeError):
    """The storage of a run that goes on has been away for too long. Another attempt may find it."""


class DesyncError(RuntimeError):
    """Ranks hold different masks or weights (`distributed.on_desync: abort`)."""


class StopRequested(Exception):  # noqa: N818 - a request, not an error
    """Every rank leaves at the same step; a checkpoint has been saved."""


def one_line(text: object) -> str:
    """With escapes for what is not printable: names may hold line ends, tabs, and bytes that are no text."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in str(text))


def nearest(word: str, known: Iterable[str]) -> str:
    """`"; did you mean 'period'?"` for a near miss, else `"; there are a, b, c"`."""
    known = sorted(known)
    matches = difflib.get_close_matches(word, known, n=1) or [name for name in known if word in name.split("_")]
    if matches:
        quoted = [f"'{match}'" for match in matches]
        return f"; did you mean {' or '.join(quoted)}?"
    return f"; there are {', '.join(known)}" if known else ""
