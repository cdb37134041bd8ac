"""Heat maps of a few readings."""

from __future__ import annotations

import json
import warnings

import numpy as np

from dynsparse.tools.report.charts.heat import COLUMNS, Readings, common_scale, heat


def test_a_run_whose_only_reading_is_at_step_0() -> None:
    readings = Readings(["a", "b"], np.array([0.0]), np.array([[0.25, 0.5]]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        chart = heat("Layers", "share active", readings, common_scale([readings]), "x")
    assert readings.columns().tolist() == [[0.25] * COLUMNS, [0.5] * COLUMNS]
    assert json.loads(str(chart.hover))["last"] == 1


def test_columns_hold_the_latest_reading_before_their_end() -> None:
    readings = Readings(["a"], np.array([50.0, 100.0]), np.array([[0.1], [0.2]]))
    (row,) = readings.columns()
    assert np.isnan(row[:99]).all() and (row[99:199] == 0.1).all() and row[199] == 0.2
