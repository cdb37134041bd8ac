"""The error for mistakes that a user can correct.

A message names the value, the rule that it breaks and the remedy, on one line.
"""

from __future__ import annotations

from pipelines.common.text import cut, one_line

EXIT_DONE = 0
EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as in shells. In training a second Ctrl-C, which waits for no checkpoint.

LONGEST_LINE = 4000
MOST_LINES = 30


class UserError(ValueError):
    """Bad input. The program ends with exit code 2 and this message, without a traceback.

    `lines` holds one message for each mistake, each on one line, whatever the names in it hold. Long lines are cut,
    and of many lines the first are kept.
    """

    def __init__(self, *lines: str) -> None:
        self.lines = tuple(cut(one_line(line), LONGEST_LINE) for line in lines[:MOST_LINES])
        if len(lines) > MOST_LINES:
            self.lines += (f"and {len(lines) - MOST_LINES:,} more; mend these first",)
        super().__init__("\n".join(self.lines))
