"""The registry of optimizers, with their settings, and what dynsparse has to know of each.

To add one: its file, and its place in the union below.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Discriminator, Tag

from dynsparse.optimizers.common import AdamWSettings, SgdSettings
from dynsparse.optimizers.groups import ParameterSettings, described, parameter_groups, rate_of, set_rate
from dynsparse.optimizers.lamb import LambSettings
from dynsparse.optimizers.layouts import (
    STATE_KEYS,
    WHOLE,
    check_layouts,
    has_begun,
    makes_state_at_once,
    scalars_are_on_device,
    skips_on_device,
)
from dynsparse.optimizers.named import PREFIX, TorchSettings, more_names
from dynsparse.optimizers.zeros import leaves_zero_at_zero

ANY_OF_TORCH = f"{PREFIX}..."


def _tag(section: Any) -> str | None:
    """Tag of the member of the union for a section of a config, or its settings. None where it lacks a name."""
    found = section.get("name") if isinstance(section, Mapping) else getattr(section, "name", None)
    if found is None:
        return None
    return ANY_OF_TORCH if str(found).startswith(PREFIX) else str(found)


OptimizerSettings = Annotated[
    Annotated[SgdSettings, Tag("sgd")]
    | Annotated[AdamWSettings, Tag("adamw")]
    | Annotated[LambSettings, Tag("lamb")]
    | Annotated[TorchSettings, Tag(ANY_OF_TORCH)],
    Discriminator(_tag),
]

__all__ = [
    "STATE_KEYS",
    "WHOLE",
    "AdamWSettings",
    "LambSettings",
    "OptimizerSettings",
    "ParameterSettings",
    "SgdSettings",
    "TorchSettings",
    "check_layouts",
    "described",
    "has_begun",
    "leaves_zero_at_zero",
    "makes_state_at_once",
    "more_names",
    "parameter_groups",
    "rate_of",
    "scalars_are_on_device",
    "set_rate",
    "skips_on_device",
]
