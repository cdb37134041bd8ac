"""What can go wrong, sorted by who can mend it.

A message names the value, the rule that it breaks and the remedy, on one line.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

from pipelines.common.text import one_line as one_line

EXIT_DONE = 0
EXIT_FAULT = 1
EXIT_BAD_INPUT = 2
EXIT_STOPPED = 75  # EX_TEMPFAIL of sysexits.h: stopped on request, a checkpoint is there to resume from
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells have it: a second Ctrl-C, which waits for no checkpoint

LONGEST_LINE = 4000
MOST_LINES = 30
MOST_NAMES = 20
LONGEST_NUMBER = 100
"""Characters. PyYAML takes time that grows with the square of the length, and Python refuses 4,300 digits."""
LONGEST_WORD = 200
"""Of what somebody has written, that is compared with what there is."""


class UserError(ValueError):
    """Bad input. The run ends with exit code 2 and this message, without a traceback.

    `lines` holds one message for each thing that is wrong, each on one line whatever the names in it hold. Of very
    many, and of very long ones, a part is enough.
    """

    def __init__(self, *lines: str) -> None:
        self.lines = tuple(cut(one_line(line), LONGEST_LINE) for line in lines[:MOST_LINES])
        if len(lines) > MOST_LINES:
            self.lines += (f"and {len(lines) - MOST_LINES:,} more; mend these first",)
        super().__init__("\n".join(self.lines))


class StorageError(UserError):
    """What a file system refuses at the moment. Said as bad input at a first start; what goes on waits for it."""


class StorageFaultError(RuntimeError):
    """The storage of a run that goes on has been away for too long. Another attempt may find it."""


class DesyncError(RuntimeError):
    """Ranks hold different masks or weights (`distributed.on_desync: abort`)."""


class StopRequested(Exception):  # noqa: N818 - a request, not an error
    """Every rank leaves at the same step; a checkpoint has been saved."""


def cut(text: object, most: int = 60) -> str:
    """The text, or its beginning and `...` where it has more than `most` characters."""
    shown = str(text)
    return shown if len(shown) <= most else f"{shown[: most - 3]}..."


def some_of(names: Iterable[str], most: int = 10) -> str:
    """`a, b, c and 9 more`."""
    names = list(names)
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(map(cut, names[:most])) + more


def nearest(word: str, known: Iterable[str]) -> str:
    """`"; did you mean 'period'?"` for a near miss, else `"; there are a, b, c"`."""
    known = sorted(known)
    matches = close(word, known)
    if matches:
        return f"; did you mean {' or '.join(quoted(matches))}?"
    return f"; there are {some_of(known, MOST_NAMES)}" if known else ""


def close(word: str, known: Sequence[str], most: int = 1) -> list[str]:
    """Those that the word may have been meant to be: misspelt, or one of their parts."""
    word = word[:LONGEST_WORD]
    return difflib.get_close_matches(word, known, n=most) or [name for name in known if word in name.split("_")]


def alike(pattern: str, names: Iterable[str], most: int = 4) -> str:
    """`"; the nearest of 54 are a, b, c, d"`: names of layers for a shell pattern that matches none.

    One that comes nearer than all others was meant. Where none comes near, there is one for each beginning up to a
    point, such as layer1.0.conv1.weight for layer1.
    """
    names = list(names)
    plain = pattern[:LONGEST_WORD].translate({ord("*"): None, ord("?"): None})
    ratios = {name: difflib.SequenceMatcher(None, name, plain, autojunk=False).ratio() for name in names}
    best = max(ratios.values(), default=0)
    first = [name for name in names if ratios[name] == best]
    if best > 0.8 and len(first) == 1:
        return f"; did you mean '{first[0]}'?"
    if len(names) <= most:
        return f"; there {'is' if len(names) == 1 else 'are'} {some_of(names) or 'none'}"
    if best < 0.5:
        kinds = list({name.partition(".")[0]: name for name in reversed(names)}.values())[::-1]
        return (
            f"; there are {len(names)}, such as {', '.join(dict.fromkeys([*kinds[: most - 1], kinds[-1], names[-1]]))}"
        )
    near = sorted(names, key=lambda name: -ratios[name])[:most]
    return f"; the nearest of {len(names)} are {some_of(name for name in names if name in near)}"


def quoted(words: Iterable[str]) -> list[str]:
    return [f"'{word}'" for word in words]
