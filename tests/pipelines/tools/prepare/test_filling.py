"""Progress without a terminal, and the end of all threads when one fails."""

from __future__ import annotations

from threading import Event

import pytest

from pipelines.common.errors import UserError
from pipelines.tools.prepare.filling import Progress, run


def test_lines_of_progress(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress(total=2_000_000_000)
    for _ in range(1000):
        progress.advance(2_000_000)
    progress.close()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 20
    assert (lines[0], lines[-1]) == ("prepare: 0.1 GB of 2.0 GB", "prepare: 2.0 GB of 2.0 GB")


def test_nothing_to_do_is_no_fault(capsys: pytest.CaptureFixture[str]) -> None:
    Progress(total=0).advance(0)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("error", [UserError("one line"), KeyboardInterrupt()])
def test_an_error_stops_the_others(error: BaseException) -> None:
    """Tasks that run wait for the stop; those behind them never begin, but for one that a thread takes meanwhile."""
    stop, ran = Event(), list[int]()

    def waits() -> None:
        ran.append(1)
        stop.wait()

    def fails() -> None:
        raise error

    with pytest.raises(type(error)):
        run([waits, fails, *[waits] * 50], 2, stop)
    assert len(ran) <= 2
