"""Sessions: a bar each, over the steps that it is known to have done."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter, MaxNLocator

from dynsparse.tools.report.charts.svg import GRID, INK, LOSS, MUTED, Chart, figure, inline, series_colour
from dynsparse.tools.report.history import Session
from pipelines.common.text import one_line

WIDTH = 620
MOST = 40
"""Sessions in the chart: the latest. The table has all."""


def timeline(sessions: Sequence[Session], last_step: int, run: int, prefix: str) -> Chart:
    """Draw the sessions. `last_step` is the latest in metrics.jsonl, for a session without an end."""
    shown = list(enumerate(sessions, 1))[-MOST:]
    drawn = figure(WIDTH, 52 + 24 * len(shown))
    axes = drawn.add_subplot()
    furthest = max([last_step, *(reached(session, sessions, last_step) for session in sessions), 1])
    for row, (_, session) in enumerate(shown):
        until = reached(session, sessions, last_step)
        axes.axhline(row, color=GRID, linewidth=0.7)
        axes.plot(
            [session.began_at, until],
            [row, row],
            color=series_colour(run),
            linewidth=6,
            solid_capstyle="butt",
            linestyle=(0, (1, 0.5)) if session.end is None else "-",
        )
        _mark_end(axes, session, until, row)
        axes.annotate(outcome(session), (furthest, row), (14, 0), textcoords="offset points", va="center", size=11)
    labels = [f"{number}: {beginning(session)}" for number, session in shown]
    axes.set_yticks(range(len(shown)), labels, size=11, color=INK)
    axes.set_ylim(len(shown) - 0.5, -0.5)
    axes.set_xlim(-0.01 * furthest, 1.01 * furthest)
    axes.tick_params(length=0)
    for side in axes.spines.values():
        side.set_visible(False)
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    summary = "; ".join(f"session {n}: {beginning(s)} at step {s.began_at:,}, {outcome(s)}" for n, s in shown)
    note = f"The latest {MOST} of {len(sessions):,} sessions." if len(sessions) > MOST else ""
    return Chart("sessions", inline(drawn, prefix), summary, note=note, least_width=WIDTH - 60)


def _mark_end(axes: Axes, session: Session, until: int, row: int) -> None:
    if session.died or (session.end or {}).get("status") == "failed":
        axes.plot([until], [row], marker="X", color=LOSS, markersize=8, markeredgecolor=INK, markeredgewidth=0.5)
    elif session.end is not None:
        done = session.end.get("status") == "done"
        axes.plot([until], [row], marker="o" if done else "s", color=MUTED, markersize=7)


def reached(session: Session, sessions: Sequence[Session], last_step: int) -> int:
    """Return the latest step that the session is known to have done."""
    if session.end is not None:
        return int(session.end["step"])
    following = sessions[sessions.index(session) + 1 :]
    return max(session.began_at, following[0].began_at if following else last_step)


def beginning(session: Session) -> str:
    """Say how the session began, and with how many workers."""
    workers = int(session.start["world_size"])
    return f"{'resume' if session.resumed else 'start'}, {workers} worker{'s' if workers != 1 else ''}"


def outcome(session: Session) -> str:
    """Say how the session ended."""
    if session.died:
        return "died"
    return "no end is written" if session.end is None else one_line(session.end.get("status", "ended"))
