from __future__ import annotations

from unittest.mock import Mock

import pytest
import torch
from torch import nn

from dynsparse.config.sections import PenaltySettings
from dynsparse.masks import MaskSet, sparse_layers
from dynsparse.masks.tying import tie
from dynsparse.training.penalties import add_gradients
from tests.training import runs


def conv_masks(granularity: int = 4) -> tuple[nn.Conv2d, MaskSet]:
    torch.manual_seed(0)
    model = nn.Conv2d(3, 4, 3, bias=False)
    specs = sparse_layers(model, granularity=granularity)  # type: ignore[arg-type]
    return model, MaskSet(model, specs, {"weight": specs[0].units // 2})


def test_l1_is_the_sign_of_the_active_weights() -> None:
    """0.1 times the sign; 0 outside the mask, so that what is inactive adds nothing. Autograd of sum |w| agrees."""
    model, masks = conv_masks()
    model.weight.grad = torch.zeros_like(model.weight)
    add_gradients(PenaltySettings(l1=0.1), masks.layers)
    assert torch.equal(model.weight.grad, 0.1 * model.weight.detach().sign())
    assert not model.weight.grad[~masks.layers[0].mask].any()
    copy = model.weight.detach().clone().requires_grad_()
    (0.1 * copy.abs().sum()).backward()
    assert torch.equal(model.weight.grad, copy.grad)


@pytest.mark.parametrize("granularity", [4, 2])
def test_group_lasso_is_the_gradient_of_the_norm_of_each_kernel_slice(granularity: int) -> None:
    model, masks = conv_masks(granularity)
    with torch.no_grad():
        model.weight[0, 0] = 0  # A slice without weights has the gradient 0, not NaN.
    model.weight.grad = torch.ones_like(model.weight)
    add_gradients(PenaltySettings(l1=0.1, group_lasso=True), masks.layers)
    copy = model.weight.detach().clone().requires_grad_()
    (0.1 * (copy.square().sum((2, 3)) + 1e-12).sqrt().sum()).backward()
    assert copy.grad is not None
    assert torch.allclose(model.weight.grad, 1 + copy.grad, atol=1e-6)
    assert model.weight.grad[0, 0].eq(1).all()


def test_linear_layers_keep_the_l1_under_group_lasso() -> None:
    model = nn.Linear(4, 3)
    masks = MaskSet(model, sparse_layers(model), {"weight": 6})
    model.weight.grad = torch.zeros_like(model.weight)
    add_gradients(PenaltySettings(l1=0.1, group_lasso=True), masks.layers)
    assert torch.equal(model.weight.grad, 0.1 * model.weight.detach().sign())


@pytest.mark.parametrize("group_lasso", [False, True])
def test_tied_weights_are_penalised_in_the_bank(group_lasso: bool) -> None:
    """Once each, however often they are used."""
    model = nn.Conv2d(3, 4, 3, bias=False)
    layer = tie(model, sparse_layers(model, granularity=2)[0], 4, seed=0)
    layer.weight.grad = torch.zeros_like(layer.weight)
    add_gradients(PenaltySettings(l1=0.1, group_lasso=group_lasso), [layer])
    bank = layer.weight.detach()
    norm = bank.square().sum((1, 2), keepdim=True).sqrt() if group_lasso else bank.abs()
    assert torch.allclose(layer.weight.grad, 0.1 * bank / norm, atol=1e-6)


def test_without_a_coefficient_nothing_is_touched() -> None:
    model, masks = conv_masks()
    model.weight.grad = torch.full_like(model.weight, -0.0)
    add_gradients(PenaltySettings(group_lasso=True), masks.layers)
    assert torch.signbit(model.weight.grad).all()


@pytest.mark.parametrize("method", ["static", "rigl", "deepr"])
def test_a_penalty_costs_no_pass_over_the_masks(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It adds 0 outside the masks: what is masked stays so, and the weights outside are 0."""
    passes: dict[float, int] = {}
    for l1 in (0.0, 1e-3):
        trainer = runs.trainer(runs.config(method={"name": method}, train={"epochs": 1, "penalty": {"l1": l1}}))
        counted = Mock(side_effect=trainer.masks.mask_gradients)
        monkeypatch.setattr(trainer.masks, "mask_gradients", counted)
        trainer.fit()
        trainer.masks.check()
        passes[l1] = counted.call_count
    assert passes[0.0] == passes[1e-3]
