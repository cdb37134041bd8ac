"""The network of a checkpoint that its run is judged by: its weights, or the average of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def best_by(ema: Mapping[str, Any] | None) -> str:
    """Return which network chooses the best epoch, given the section of the average; older configs have none."""
    return str((ema or {}).get("best_by", "model"))


def is_average(saved: Mapping[str, Any]) -> bool:
    """Return whether a checkpoint's run chooses its best epoch by the average of its weights."""
    return "ema" in saved and best_by(saved["config"]["train"].get("ema")) == "ema"


def judged(saved: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a checkpoint's state with the average in place of its weights and buffers, where that is judged."""
    if not is_average(saved):
        return saved
    ranks = [{**rank, "buffers": rank["ema_buffers"]} for rank in saved["ranks"]]
    return {**saved, "weights": saved["ema"]["weights"], "ranks": ranks}
