"""The time as a run's files give it."""

from __future__ import annotations

from datetime import datetime, timezone


def now() -> str:
    """Return the time in UTC, as 2026-11-23T08:00:00+00:00: always 25 characters long."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
