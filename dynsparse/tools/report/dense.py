"""Weights of a run's network that stay dense, and why."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dynsparse.tools.report.run import Run
from dynsparse.tools.report.words import count
from dynsparse.training.run.log_records import BadLineError, whole_number, word

HEADS = ("shape", "weights", "reason")


def dense(run: Run) -> list[tuple[str, ...]]:
    """Return a row for each weight that stays dense: name, shape, weights, reason. Summaries of older runs have none.

    A row that is not what training writes is skipped.
    """
    found = (run.summary or {}).get("dense")
    rows = [_row(name, one) for name, one in found.items()] if isinstance(found, Mapping) else []
    return [row for row in rows if row is not None]


def _row(name: str, one: Any) -> tuple[str, ...] | None:
    try:
        shape = "x".join(str(whole_number(size)) for size in one["shape"])
        return name, shape or "–", count(whole_number(one["weights"])), word(one["reason"])
    except (BadLineError, KeyError, TypeError):
        return None
