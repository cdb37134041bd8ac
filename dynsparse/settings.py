"""The base of every settings class.

Each method, model and section of the config has a subclass beside it, so that
its options, their types, defaults and documentation stand in one place.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """Strict (no silent conversions), closed (no unknown keys) and frozen.

    The string under a field is its documentation, in `--print-schema` too.
    """

    model_config = ConfigDict(
        strict=True, extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )
