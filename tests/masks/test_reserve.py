"""Values beside the masks in the trainer and in loops of one's own."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn, optim

from dynsparse import SparseTraining
from dynsparse.errors import UserError
from dynsparse.masks import MaskSet, sparse_layers
from dynsparse.masks.reserve import Reserve
from dynsparse.optimizers.beside import step_beside, steps_alone
from tests import small_mlp
from tests.small_mlp import mlp
from tests.training import runs
from tests.training.test_every_method import settings


def layer_of_two_rows() -> tuple[nn.Linear, MaskSet]:
    model = nn.Linear(3, 2, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, 2, 3], [4, 5, 6]]))
    return model, MaskSet(model, sparse_layers(model), {"weight": torch.tensor([1, 5])}, apply=False)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_weights_that_are_0_come_in_the_order_of_a_draw_in_every_dtype(dtype: torch.dtype) -> None:
    """The integers that are drawn go up to 2^63, beyond float16."""
    model = nn.Linear(20, 10, bias=False).to(dtype)
    masks = MaskSet(model, sparse_layers(model), {"weight": torch.arange(10)})
    costs = Reserve(masks, share=0.5).layers["weight"].costs()[10:]
    assert costs.isfinite().all() and bool((costs >= 0).all()) and bool((costs <= 1).all())
    assert len(costs.unique()) > 100
    assert costs.argsort(stable=True).tolist() != list(range(190))


def test_moments_go_with_the_weights() -> None:
    """Weight 4 and weight 1 change places: each has the momentum afterwards that it had before.

    The second step of SGD with momentum 1/2, a rate of 0 and gradients of 1 to 6 gives momentum 1.5 to 9.
    """
    model, masks = layer_of_two_rows()
    (layer,) = masks
    reserve = Reserve(masks, share=0.5)
    masks.apply_to_weights()
    optimizer = optim.SGD(model.parameters(), lr=0.0, momentum=0.5)
    gradient = torch.tensor([[1.0, 2, 3], [4, 5, 6]])
    for _ in range(2):
        reserve.note(layer, gradient, 0.0)
        model.weight.grad = gradient * layer.mask
        optimizer.step()
        reserve.step([optimizer])
    part = reserve.layers["weight"]
    assert part.units.tolist() == [2, 3, 4]
    assert part.state["momentum_buffer"].tolist() == [4.5, 6, 7.5]
    reserve.open([optimizer])
    masks.set_active(layer, torch.tensor([4, 5]))
    reserve.close([optimizer])
    assert optimizer.state[model.weight]["momentum_buffer"][1].tolist() == [0, 7.5, 9]
    assert part.values.tolist() == [[1, 2, 3], [4, 0, 0]]
    assert part.units.tolist() == [1, 2, 3]
    assert part.state["momentum_buffer"].tolist() == [3, 4.5, 6]


def test_second_moments_that_come_from_nowhere_begin_with_the_mean_of_active_ones() -> None:
    """A weight that has neither been active nor trained begins as one that grows does (`optimizer_state.begin`)."""
    model, masks = layer_of_two_rows()
    (layer,) = masks
    reserve = Reserve(masks, share=1 / 6)
    masks.apply_to_weights()
    optimizer = optim.Adam(model.parameters(), lr=0.0, betas=(0.9, 0.5))
    reserve.note(layer, torch.ones(2, 3), 0.0)
    model.weight.grad = torch.tensor([[0.0, 2, 0], [0, 0, 4]])
    optimizer.step()
    reserve.step([optimizer])
    part = reserve.layers["weight"]
    assert (part.units.tolist(), part.state["exp_avg_sq"].tolist()) == ([4], [0.5])
    reserve.open([optimizer])
    part.values[1, 0] = 9
    reserve.close([optimizer])
    assert part.units.tolist() == [3]
    assert part.state["exp_avg_sq"].tolist() == [(2 + 8) / 2]
    assert part.state["exp_avg"].tolist() == [0]


@pytest.mark.parametrize("kind", ["SGD", "AdamW"])
def test_a_step_is_skipped_by_a_flag(kind: str) -> None:
    """Two layers of one optimizer in one step. A flag that is not set changes nothing."""
    options = {"lr": 0.1, "weight_decay": 0.1, "fused": True, **({"momentum": 0.9} if kind == "SGD" else {})}
    model = nn.Sequential(nn.Linear(3, 2, bias=False), nn.Linear(2, 2, bias=False))
    masks = MaskSet(model, sparse_layers(model), {"0.weight": 2, "1.weight": 2}, seed=1, apply=False)
    reserves = [Reserve(masks) for _ in range(2)]
    optimizer: optim.Optimizer = getattr(optim, kind)(model.parameters(), **options)

    def stepped(reserve: Reserve, gradient: float, flag: bool | None) -> list[Tensor]:
        for layer in masks:
            reserve.note(layer, torch.full_like(layer.weight, gradient), 0.0)
        reserve.step([optimizer], {} if flag is None else dict.fromkeys(reserve.layers, torch.tensor(flag)))
        return [one.clone() for part in reserve.layers.values() for one in part.tensors()]

    open_, read = ([stepped(reserve, 1.0, None)] for reserve in reserves)
    open_ += [stepped(reserves[0], gradient, flag) for gradient, flag in ((torch.nan, True), (2.0, False))]
    read += [read[0], stepped(reserves[1], 2.0, None)]
    for ours, theirs in zip(open_, read, strict=True):
        assert len(ours) == (4 if kind == "SGD" else 8)
        assert all(map(torch.equal, ours, theirs))
    assert not hasattr(optimizer, "found_inf")


def test_what_the_device_can_skip() -> None:
    """A fused optimizer's step, unless values would begin in it and the weights have begun: their state stays unset."""
    model, masks = layer_of_two_rows()
    (layer,) = masks
    reserve = Reserve(masks)
    fused = optim.SGD(model.parameters(), lr=0.1, momentum=0.9, fused=True)
    plain = optim.SGD(model.parameters(), lr=0.1, fused=True)
    assert reserve.can_skip([fused]) and reserve.can_skip([plain])
    assert not reserve.can_skip([optim.SGD(model.parameters(), lr=0.1)])
    model.weight.grad = torch.ones(2, 3)
    fused.step()
    plain.step()
    assert (reserve.can_skip([fused]), reserve.can_skip([plain])) == (False, True)
    reserve.note(layer, torch.ones(2, 3), 0.0)
    reserve.step([fused])
    assert reserve.can_skip([fused])
    assert reserve.can_skip([]), "nothing moves it"


@pytest.mark.parametrize("name", ["nm", "topkast"])
def test_a_run_begins_with_the_first_weights_of_the_whole_network(name: str) -> None:
    """The trainer's network is masked when it is built. Values outside are those that were drawn, not 0."""
    config = settings(name)
    drawn = {key: value.detach() for key, value in runs.trainer(settings("dense")).model.named_parameters()}
    trainer = runs.trainer(config)
    reserve = trainer.sparse.method.reserve
    assert reserve is not None
    for layer in trainer.masks:
        assert torch.equal(reserve.layers[layer.name].values, drawn[layer.name] * ~layer.mask)
        assert torch.equal(layer.weight.detach(), drawn[layer.name] * layer.mask)


def test_channels_last_blocks_of_rows_and_float64() -> None:
    """Values lie as the weights do, and the same network in another layout learns the same."""
    found = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(4, 6, 3), nn.Flatten(), nn.Linear(24, 5)).double()
        model.to(memory_format=memory_format)  # type: ignore[call-overload]
        optimizer = optim.AdamW(model.parameters(), lr=0.01)
        method = {"name": "topkast", "period": 2, "reserve": 0.3}
        options: dict[str, Any] = {"sparsity": 0.6, "total_steps": 6, "granularity": 2, "split": {"2.weight": 5}}
        sparse = SparseTraining(model, optimizer, method, **options)
        for step in range(6):
            images = torch.randn(3, 4, 4, 4, generator=torch.Generator().manual_seed(step)).double()
            model(images).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            sparse.check()
        reserve = sparse.method.reserve
        assert reserve is not None
        found.append([*(layer.mask for layer in sparse.masks), *(one.values for one in reserve.layers.values())])
    for ours, theirs in zip(*found, strict=True):
        assert ours.shape == theirs.shape
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


class Sharded(optim.Optimizer):
    """Optimizer whose inner one holds a part of the parameters, as ZeroRedundancyOptimizer's does on each rank."""

    def __init__(self, parameters: list[Tensor]) -> None:
        super().__init__(parameters, {})
        self.optim = optim.SGD(parameters[:1], lr=0.1)


@pytest.mark.parametrize("name", ["nm", "topkast"])
def test_optimizers_without_a_step_for_weights_beside_theirs_are_refused(name: str) -> None:
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    before = [parameter.detach().clone() for parameter in model.parameters()]
    options: dict[str, Any] = {"sparsity": 0.5, "total_steps": 9, "structure": "2:4" if name == "nm" else "free"}
    with pytest.raises(UserError) as refused:
        SparseTraining(model, optim.LBFGS(model.parameters()), name, **options)
    assert str(refused.value) == (
        "the method trains inactive weights too, and LBFGS steps along directions of all weights at once: take another "
        "optimizer, or another method"
    )
    with pytest.raises(UserError) as refused:
        SparseTraining(model, Sharded(list(model.parameters())), name, **options)
    assert str(refused.value) == (
        "the method trains inactive weights too, and this optimizer keeps only a part of its state on each rank, which "
        "they need: take one that keeps all of it, or another method"
    )
    for whole in (optim.Muon, optim.Adafactor):
        with pytest.raises(UserError) as refused:
            SparseTraining(model, whole(model.parameters()), name, **options)
        assert str(refused.value) == (
            f"the method trains inactive weights too, apart from their layer, and {whole.__name__} has no step for "
            f"parts of 0.weight: take an optimizer that moves each weight alone, such as SGD or AdamW, or another "
            f"method"
        )
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True))
    SparseTraining(model, optim.SGD(model.parameters(), lr=0.1), name, **options)


ALONE: dict[str, Any] = {
    **{
        name: {}
        for name in (
            "SGD",
            "Adadelta",
            "Adagrad",
            "Adam",
            "AdamW",
            "Adamax",
            "ASGD",
            "NAdam",
            "RAdam",
            "RMSprop",
            "Rprop",
        )
    },
    "SGD nesterov": {"momentum": 0.9, "nesterov": True, "maximize": True, "lr": 0.0},
    "AdamW fused": {"fused": True, "amsgrad": True, "lr": 0.0},
    "Adam tensor": {"lr": torch.tensor(0.0), "foreach": False},
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ALONE)
def test_optimizers_that_move_each_weight_alone_are_taken(name: str, dtype: torch.dtype) -> None:
    """A trial leaves the random numbers, the optimizer's state and its options alone."""
    weight, numbers = nn.Parameter(torch.ones(2, 3, dtype=dtype)), torch.get_rng_state()
    made: optim.Optimizer = getattr(optim, name.split()[0])([weight], **ALONE[name])
    before = copy.deepcopy(made.state_dict())
    assert steps_alone(made, made.param_groups[0], weight)
    assert torch.equal(numbers, torch.get_rng_state()) and torch.equal(weight, torch.ones(2, 3, dtype=dtype))
    assert str(made.state_dict()) == str(before)


class Early(optim.Optimizer):
    """Adagrad with one rate, whose sums are made with the optimizer, as in torch 2.11."""

    def __init__(self, params: Any, lr: float = 1.0, first: float = 3.0) -> None:
        super().__init__(params, {"lr": lr, "first": first})
        for group in self.param_groups:
            for one in group["params"]:
                self.state[one] = {"sum": torch.full_like(one, group["first"])}

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for one in group["params"]:
                total = self.state[one]["sum"].add_(one.grad**2)
                one.sub_(group["lr"] * one.grad / total.sqrt())


def test_state_that_is_made_with_the_optimizer() -> None:
    weight, state = nn.Parameter(torch.ones(4)), dict[str, Any]()
    optimizer = Early([weight], first=5.0)
    assert steps_alone(optimizer, optimizer.param_groups[0], weight)
    beside = nn.Parameter(torch.ones(2))
    beside.grad = torch.full((2,), 2.0)
    step_beside(optimizer, [(beside, optimizer.param_groups[0], state)])
    torch.testing.assert_close(beside.detach(), torch.full((2,), 1 - 2 / 3))
    assert torch.equal(state["sum"], torch.full((2,), 9.0))
    assert torch.equal(optimizer.state[weight]["sum"], torch.full((4,), 5.0))


DAMAGED: dict[str, tuple[str, Any, str]] = {
    "a number for all values": ("values", torch.ones(1), "values is not of its layer's shape"),
    "active units": ("units", torch.arange(947), "units are active"),
    "units of no layer": ("units", torch.tensor([9000]), "units are not rising numbers of the layer's units"),
    "fewer units than moments": ("units", None, "state.momentum_buffer has not one number for each weight that trains"),
    "a moment of another size": (
        "state",
        {"momentum_buffer": torch.ones(3)},
        "state.momentum_buffer has not one number for each weight that trains",
    ),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_state_is_refused_in_a_loop_of_ones_own(case: str) -> None:
    """All is then as it was, and training goes on as if nothing had been loaded."""
    key, value, message = DAMAGED[case]
    models = mlp(), mlp()
    optimizers = [optim.SGD(model.parameters(), lr=0.1, momentum=0.9) for model in models]
    both = [
        SparseTraining(model, one, {"name": "topkast", "period": 2}, sparsity=0.9, total_steps=9)
        for model, one in zip(models, optimizers, strict=True)
    ]
    for seed in range(9):
        for model, one in zip(models, optimizers, strict=True):
            small_mlp.step(model, one, seed=seed)
        if seed == 4:
            state = copy.deepcopy(both[0].state_dict())
            reserve = state["method"]["state"]["reserve"]["0.weight"]
            reserve[key] = reserve[key][:5] if value is None else value
            with pytest.raises(UserError) as refused:
                both[0].load_state_dict(state)
            assert str(refused.value) == (
                f"the state is damaged, or of another version of this method (ValueError: reserve.0.weight.{message})"
            )
    assert all(torch.equal(a, b) for a, b in zip(*(model.parameters() for model in models), strict=True))
