"""The least and the greatest number that a config may give: masked weights stay 0, and others finite for a step."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import nn

from dynsparse.config.sections import ClipSettings
from dynsparse.optimizers import AdamWSettings, LambSettings, SgdSettings
from dynsparse.schedules import ConstantLr
from dynsparse.training.clipping import clip
from pipelines.common.settings import Settings

KINDS: dict[str, type[Any]] = {"sgd": SgdSettings, "adamw": AdamWSettings, "lamb": LambSettings}


def accepted(kind: type[Settings], **values: Any) -> Any:
    """The settings, or None if they are refused."""
    try:
        return TypeAdapter(kind).validate_python(values)
    except ValidationError:
        return None


def powers(kind: type[Settings], field: str, **more: Any) -> Iterator[Any]:
    """Settings with the least and the greatest power of ten that the field takes."""
    found = [one for power in range(-320, 309) if (one := accepted(kind, **{field: 10.0**power}, **more)) is not None]
    yield from (found[0], found[-1])


def stepped(optimizer: torch.optim.Optimizer, weight: nn.Parameter) -> torch.Tensor:
    weight.grad = torch.tensor([1.0, -2.0, 0.0])
    optimizer.step()
    return weight.detach()


@pytest.mark.parametrize(
    ("name", "field"),
    [
        (name, field)
        for name, kind in KINDS.items()
        for field, info in kind.model_fields.items()
        if info.annotation is float
    ],
)
def test_of_optimizers(name: str, field: str) -> None:
    for settings in powers(KINDS[name], field, name=name):
        weight = nn.Parameter(torch.tensor([0.5, -0.5, 0.0]))
        after = stepped(settings.build([weight], lr=0.1), weight)
        assert after[2] == 0 and after.isfinite().all(), settings


@pytest.mark.parametrize("name", KINDS)
def test_of_rates(name: str) -> None:
    for rate in powers(ConstantLr, "peak", name="constant"):
        weight = nn.Parameter(torch.tensor([0.5, -0.5, 0.0]))
        after = stepped(KINDS[name](name=name).build([weight], lr=rate.at(0, 1, 1)), weight)
        assert after[2] == 0 and after.isfinite().all(), rate


@pytest.mark.parametrize("field", ["norm", "value"])
def test_of_clipping(field: str) -> None:
    for settings in powers(ClipSettings, field):
        weight = nn.Parameter(torch.zeros(3))
        weight.grad = torch.tensor([3.0, -4.0, 0.0])
        norm = clip(settings, [weight])
        assert norm is not None and math.isclose(float(norm), 5)
        assert weight.grad.isfinite().all() and weight.grad[2] == 0
