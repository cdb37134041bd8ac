"""The base of every settings class.

Each method, model and section of the config has a subclass beside it, so that
its options, their types, defaults and documentation stand in one place.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

MOST = 2**31 - 1
"""The largest of the numbers that count something: products of two of them fit into 64 bits."""

Count = Annotated[int, Field(ge=0, le=MOST)]
AtLeast1 = Annotated[int, Field(ge=1, le=MOST)]
Width = Annotated[int, Field(ge=1, le=2**20)]
"""Channels or features of a layer."""
Widening = Annotated[float, Field(gt=0, le=1000)]
"""What the widths of a network are multiplied by."""


class Settings(BaseModel):
    """Strict (no silent conversions), closed (no unknown keys) and frozen.

    The string under a field is its documentation, in `--print-schema` too.
    """

    model_config = ConfigDict(
        strict=True, extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )
