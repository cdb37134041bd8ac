"""Outputs that no active weight leads to."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dynsparse.masks import MaskSet, sparse_layers
from dynsparse.masks.outputs import dead_outputs


def masks_of(module: nn.Module, active: list[int], granularity: int = 4) -> MaskSet:
    model = nn.Sequential(module)
    specs = sparse_layers(model, granularity=granularity)  # type: ignore[arg-type]
    return MaskSet(model, specs, {specs[0].name: torch.tensor(active)})


@pytest.mark.parametrize(
    ("module", "active", "granularity", "dead"),
    [
        (nn.Linear(4, 3), [0, 1, 8], 4, 1),
        (nn.Linear(4, 3), [0, 5, 11], 4, 0),
        (nn.Linear(4, 3), list(range(12)), 4, 0),
        (nn.Conv2d(2, 3, 2), [0, 7, 16], 4, 1),  # 8 weights an output.
        (nn.Conv2d(2, 3, 2), [2, 3], 2, 2),  # 2 kernel slices an output.
        (nn.Conv2d(2, 3, 2), [1], 1, 2),  # A filter each.
        (nn.ConvTranspose2d(2, 3, 2), [4, 12], 4, 1),  # [in 2, out 3, 2, 2]: units 4 and 12 are of outputs 1 and 0.
        (nn.ConvTranspose2d(2, 3, 2), [1], 1, 0),  # All outputs of an input.
    ],
)
def test_by_hand(module: nn.Module, active: list[int], granularity: int, dead: int) -> None:
    assert dead_outputs(masks_of(module, active, granularity)) == {"0.weight": dead}


def test_it_is_what_the_weights_say() -> None:
    """Drawn masks of a few densities; a row of zeros is an output without weights."""
    for density in (0.02, 0.1, 0.5):
        module = nn.Linear(30, 40)
        units = torch.randperm(1200, generator=torch.Generator().manual_seed(1))[: round(1200 * density)]
        masks = masks_of(module, sorted(units.tolist()))
        assert dead_outputs(masks)["0.weight"] == int((~masks.layers[0].mask.any(1)).sum())
    assert dead_outputs([]) == {}
