"""The base of every settings class, and bounded numbers.

Each method, model, data set and section of the config has a subclass beside it. Its options, their types, defaults
and documentation stand there in one place.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

MOST = 2**31 - 1
"""The largest count: products of two counts fit into 64 bits."""

Count = Annotated[int, Field(ge=0, le=MOST)]
AtLeast1 = Annotated[int, Field(ge=1, le=MOST)]


class Settings(BaseModel):
    """Strict (no silent conversions), closed (no unknown keys) and frozen.

    The string under a field is its documentation, in `--print-schema` too.
    """

    model_config = ConfigDict(
        strict=True, extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )
