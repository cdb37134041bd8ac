"""Figures as SVG."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # No display is needed.

from matplotlib import pyplot as plt
from matplotlib.figure import Figure

__all__ = ["plt", "save"]


def save(figure: Figure, path: Path) -> None:
    """Write and close a figure, without a date and with fixed ids: drawing it anew changes nothing."""
    with matplotlib.rc_context({"svg.hashsalt": "dynsparse"}):
        figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
