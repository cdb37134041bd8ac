"""A model that has moved since construction: masks follow whatever comes first, and not the next step alone.

Here masks are left behind on the pretended GPU, as where a model comes back from one to the processor.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn, optim

from dynsparse import SparseTraining
from dynsparse.runtime import Worker
from tests.pretended_gpu import NAME, pretended_gpu
from tests.ranks import run_distributed
from tests.small_mlp import MOVING, loss_of, mlp, outside, step


def backward(sparse: SparseTraining, model: nn.Module) -> Any:
    """Make gradients, which the hooks mask."""
    model.zero_grad()
    loss_of(model, 9).backward()
    return gradients(sparse)


def prepared(sparse: SparseTraining, model: nn.Module) -> Any:
    """Make gradients of a step that reads them whole, and prepare them."""
    model.zero_grad()
    loss_of(model, 9).backward()
    sparse.prepare_gradients()
    return gradients(sparse)


def gradients(sparse: SparseTraining) -> list[Tensor]:
    found = [layer.gradient for layer in sparse.masks]
    assert all(one is not None and not one[~layer.mask].any() for one, layer in zip(found, sparse.masks, strict=True))
    return [one for one in found if one is not None]


def skipped(sparse: SparseTraining, model: nn.Module) -> Any:
    """Reallocate after a step that the optimizer skips."""
    sparse.skip_step()
    return [layer.active for layer in sparse.masks]


def averaged(sparse: SparseTraining, model: nn.Module) -> Any:
    average = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in average.parameters():
            parameter.fill_(1.0)
    sparse.apply_masks(average)
    return list(average.parameters())


def resumed(sparse: SparseTraining, model: nn.Module) -> Any:
    sparse.load_state_dict(sparse.state_dict())
    return [layer.active for layer in sparse.masks]


ACTS: dict[str, Callable[[SparseTraining, nn.Module], Any]] = {
    "backward": backward,
    "prepare_gradients": prepared,
    "skip_step": skipped,
    "apply_masks": lambda sparse, model: sparse.apply_masks(),
    "apply_masks of a copy": averaged,
    "verify": lambda sparse, model: sparse.verify(),
    "check": lambda sparse, model: sparse.check(),
    "state_dict": lambda sparse, model: str(sparse.state_dict()),
    "load_state_dict": resumed,
}
METHODS = {"prepare_gradients": "sparse_momentum", "state_dict": "sparse_momentum", "load_state_dict": "rigl"}


def found(act: str, device: torch.device | None) -> Any:
    """Result of an act after three steps, with the masks left on a device, and weights after a step more."""
    model = mlp()
    optimizer = optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    sparse = SparseTraining(model, optimizer, MOVING[METHODS.get(act, "set")], sparsity=0.9, total_steps=20)
    for number in range(3):
        step(model, optimizer, seed=number)
    if device is not None:
        sparse.masks.to(device)
        assert {layer.device.type for layer in sparse.masks} == {NAME}
    result = ACTS[act](sparse, model)
    assert {layer.device.type for layer in sparse.masks} == {"cpu"}, "they have followed"
    assert all(layer.active.device.type == "cpu" for layer in sparse.masks)
    step(model, optimizer, seed=4)
    assert outside(sparse) == 0
    return result, list(model.parameters())


def with_masks_left_behind(worker: Worker) -> None:
    for act in ACTS:
        expected, weights = found(act, None)
        with pretended_gpu() as device:
            result, theirs = found(act, device)
        if isinstance(expected, list):
            assert all(map(torch.equal, expected, result)), act
        else:
            assert result == expected, act
        assert all(map(torch.equal, weights, theirs)), act


def test_masks_follow_before_whatever_comes_first() -> None:
    run_distributed(with_masks_left_behind, 1)
