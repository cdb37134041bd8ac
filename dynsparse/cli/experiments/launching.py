"""Running a job's command to its end, and passing signals on to it."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Sequence
from types import FrameType

from dynsparse.errors import EXIT_DONE, EXIT_STOPPED

FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)


def launch(command: Sequence[str]) -> int:
    """Run a command to its end, and pass on the signals that ask it to stop.

    Returns its exit code, or 75 if it was done when such a signal came. It has a session of its own, so that Ctrl-C
    reaches it once, from here, and not from the terminal as well.
    """
    asked: list[int] = []
    process: subprocess.Popen[bytes] | None = None

    def forward(number: int, _: FrameType | None) -> None:
        asked.append(number)
        if process is not None:
            process.send_signal(number)

    # Under nohup SIGHUP is ignored, and stays so.
    hangup_ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    wanted = [number for number in FORWARDED if not (number == signal.SIGHUP and hangup_ignored)]
    before = {number: signal.signal(number, forward) for number in wanted}
    try:
        process = subprocess.Popen(command, start_new_session=True)  # noqa: S603 - our own launcher
        for number in tuple(asked):
            process.send_signal(number)
        code = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if asked and code == EXIT_DONE:
        return EXIT_STOPPED  # The job was done, but not those after it.
    return code if code >= 0 else 128 - code
