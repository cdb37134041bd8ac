"""The axes of curves: what they leave out and what they show."""

from __future__ import annotations

import math

import pytest
from matplotlib.figure import Figure

from dynsparse.tools.report.charts import lines as charts
from dynsparse.tools.report.charts.lines import Curve, lines


@pytest.mark.parametrize(("decades", "lowest"), [(4, 0.05), (math.inf, 1e-9)])
def test_the_end_of_a_cosine_does_not_flatten_the_rates_before_it(
    decades: float, lowest: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[tuple[float, float]] = []
    inline = charts.inline

    def noted(drawn: Figure, prefix: str) -> object:
        shown.append(drawn.axes[0].get_ylim())
        return inline(drawn, prefix)

    monkeypatch.setattr(charts, "inline", noted)
    rates = Curve(0, "a run", [1, 2, 3], [0.1, 0.05, 1e-9])
    chart = lines("learning rate", [rates], "epoch", "e", log=True, decades=decades)
    assert chart is not None and "least 1e-09" in chart.summary
    ((low, high),) = shown
    assert lowest / 10 < low <= lowest and high >= 0.1
