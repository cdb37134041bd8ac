"""Types that the settings of optimizers share."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, TypeAlias

from pydantic import Field
from torch import nn

Decay = Annotated[float, Field(ge=0, le=1e6)]
Beta = Annotated[float, Field(ge=0, lt=1)]
Eps = Annotated[float, Field(ge=1e-30, le=1e6)]
"""Far less is 0 in float32, and a masked weight, whose moments are 0, would become 0 / 0."""
Parameters: TypeAlias = Iterable[nn.Parameter] | Iterable[dict[str, Any]]
"""Parameters, or groups of them with settings of their own (`groups.parameter_groups`)."""
