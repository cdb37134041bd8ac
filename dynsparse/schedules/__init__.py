"""Values that change over training, each a pure function of the epoch or step.

Nothing here keeps state, so nothing has to be saved: a resumed run reads the same value at the same step.
"""

from __future__ import annotations

from dynsparse.schedules.curves import cosine
from dynsparse.schedules.density import (
    AlternatingDensity,
    AnyDensity,
    CubicDensity,
    Places,
    SigmoidDensity,
    StepDensity,
    steps_made,
)
from dynsparse.schedules.rates import ConstantLr, CosineLr, LinearLr, LrSettings, PolynomialLr, StepLr
from dynsparse.schedules.tables import NotNegative, Period, StepTable

__all__ = [
    "AlternatingDensity",
    "AnyDensity",
    "ConstantLr",
    "CosineLr",
    "CubicDensity",
    "LinearLr",
    "LrSettings",
    "NotNegative",
    "Period",
    "Places",
    "PolynomialLr",
    "SigmoidDensity",
    "StepDensity",
    "StepLr",
    "StepTable",
    "cosine",
    "steps_made",
]
