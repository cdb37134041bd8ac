"""LAMB against its equations, and beside masks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from dynsparse.optimizers import LambSettings, leaves_zero_at_zero

Array = np.ndarray[Any, Any]


def by_the_paper(weight: Array, gradients: list[Array], *, adapted: bool = True, decay: float = 0.01) -> Array:
    """Algorithm 2 of You et al. 2020 in float64, with their defaults and a rate of 0.1."""
    mean, square = np.zeros_like(weight), np.zeros_like(weight)
    for step, gradient in enumerate(gradients, 1):
        mean = 0.9 * mean + 0.1 * gradient
        square = 0.999 * square + 0.001 * gradient**2
        update = (mean / (1 - 0.9**step)) / (np.sqrt(square / (1 - 0.999**step)) + 1e-6) + decay * weight
        sizes = np.linalg.norm(weight), np.linalg.norm(update)
        ratio = sizes[0] / sizes[1] if adapted and min(sizes) > 0 else 1.0
        weight = weight - 0.1 * ratio * update
    return weight


def after(weight: torch.Tensor, gradients: list[torch.Tensor], **group: Any) -> torch.Tensor:
    parameter = nn.Parameter(weight.clone())
    optimizer = LambSettings(name="lamb").build([{"params": [parameter], **group}], lr=0.1)
    for gradient in gradients:
        parameter.grad = gradient.clone()
        optimizer.step()
    return parameter.detach()


def drawn(seed: int, *shape: int) -> tuple[torch.Tensor, list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    weight, *gradients = (torch.randn(*shape, generator=generator) for _ in range(6))
    return weight, gradients


@pytest.mark.parametrize(
    ("group", "known"),
    [({}, {}), ({"adapted": False}, {"adapted": False}), ({"weight_decay": 0.3}, {"decay": 0.3})],
    ids=["as it is", "without a trust ratio", "more decay"],
)
def test_steps_are_those_of_the_equations(group: dict[str, Any], known: dict[str, Any]) -> None:
    weight, gradients = drawn(0, 7, 5)
    expected = by_the_paper(weight.double().numpy(), [one.double().numpy() for one in gradients], **known)
    np.testing.assert_allclose(after(weight, gradients, **group).numpy(), expected, rtol=1e-5, atol=1e-6)


def test_two_steps_by_hand() -> None:
    """Weight (3, 4) of norm 5, gradient (1, -1), no decay: Adam's step is (1, -1), of norm sqrt(2)."""
    weight, gradient = torch.tensor([3.0, 4.0]), torch.tensor([1.0, -1.0])
    step = 0.1 * 5 / 2**0.5
    expected = torch.tensor([3.0 - step, 4.0 + step])
    torch.testing.assert_close(after(weight, [gradient], weight_decay=0.0), expected, rtol=1e-5, atol=0)


def test_a_tensor_of_zeros_has_a_ratio_of_1() -> None:
    found = after(torch.zeros(2), [torch.tensor([1.0, -2.0])])
    torch.testing.assert_close(found, torch.tensor([-0.1, 0.1]), rtol=1e-5, atol=0)


def test_the_trust_ratio_is_that_of_the_active_weights() -> None:
    """A tensor of which nine tenths are masked takes the steps of the active weights alone, and stays 0 elsewhere."""
    weight, gradients = drawn(1, 1000)
    active = torch.rand(1000, generator=torch.Generator().manual_seed(2)) < 0.1
    masked = after(weight.where(active, 0), [gradient.where(active, 0) for gradient in gradients])
    alone = after(weight[active], [gradient[active] for gradient in gradients])
    torch.testing.assert_close(masked[active], alone, rtol=1e-5, atol=1e-7)
    assert not masked[~active].view(torch.int32).any()
    dense = after(weight, gradients)
    assert not torch.allclose(dense[active], masked[active], rtol=1e-3)


def test_the_front_door_trusts_it() -> None:
    assert leaves_zero_at_zero(LambSettings(name="lamb").build([nn.Parameter(torch.zeros(1))], lr=1.0))
