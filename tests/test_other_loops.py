"""The front door in loops that call the optimizer in other ways: outside the masks 0, the budget met, at every step."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from benchmarks.parts.gpu.waits import host_waits
from dynsparse import SparseTraining, later
from dynsparse.errors import UserError
from dynsparse.methods import Method
from dynsparse.methods.rigl import Rigl, RiglSettings
from dynsparse.runtime import Worker
from tests.ranks import run_distributed
from tests.small_mlp import ACTIVE, MOVING, batch, loss_of, mlp, nonzero, outside, state_outside, step

Optimizer = torch.optim.Optimizer

#: Every optimizer of torch for dense gradients. LBFGS makes its gradients itself.
OPTIMIZERS: dict[str, Callable[[Any], Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-2),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01),
    "nadam": lambda p: torch.optim.NAdam(p, lr=0.01),
    "radam": lambda p: torch.optim.RAdam(p, lr=0.01),
    "adamax": lambda p: torch.optim.Adamax(p, lr=0.01),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.01),
    "adadelta": lambda p: torch.optim.Adadelta(p),
    "adafactor": lambda p: torch.optim.Adafactor(p),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.9, centered=True),
    "rprop": lambda p: torch.optim.Rprop(p, lr=0.01),
    "asgd": lambda p: torch.optim.ASGD(p, lr=0.1),
    "lbfgs": lambda p: torch.optim.LBFGS(p, lr=0.1, max_iter=3),
}


def closure_of(model: nn.Module, optimizer: Optimizer, number: int) -> Callable[[], Any]:
    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = loss_of(model, number)
        loss.backward()
        return loss

    return closure


@pytest.mark.parametrize("method", sorted(MOVING))
@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_every_optimizer_of_torch_by_closures(name: str, method: str) -> None:
    """Gradients are made inside the step, as Lightning always does."""
    model = mlp()
    optimizer = OPTIMIZERS[name](model.parameters())
    sparse = SparseTraining(model, optimizer, MOVING[method], sparsity=0.9, total_steps=8)
    for number in range(8):
        optimizer.step(closure_of(model, optimizer, number))
        assert outside(sparse) == 0
        if name not in ("adamax", "rprop"):  # What these divide or multiply by is eps, or a size of step.
            assert state_outside(sparse, optimizer) == 0
        assert sparse.masks.active_weights == ACTIVE
    assert sparse.steps == 8
    assert torch.isfinite(loss_of(model))


@pytest.mark.parametrize("method", sorted(MOVING))
def test_a_closure_is_the_same_as_no_closure(method: str) -> None:
    ends = []
    for with_closure in (False, True):
        model = mlp()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        SparseTraining(model, optimizer, MOVING[method], sparsity=0.9, total_steps=8)
        for number in range(8):
            if with_closure:
                optimizer.step(closure_of(model, optimizer, number))
            else:
                step(model, optimizer, seed=number)
        ends.append(list(model.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


def muon(model: nn.Module) -> list[Optimizer]:
    matrices = [parameter for parameter in model.parameters() if parameter.dim() == 2]
    vectors = [parameter for parameter in model.parameters() if parameter.dim() < 2]
    return [torch.optim.Muon(matrices, lr=0.01), torch.optim.SGD(vectors, lr=0.1)]


@pytest.mark.parametrize("method", sorted(MOVING))
def test_muon_whose_steps_are_dense(method: str) -> None:
    model = mlp()
    optimizers = muon(model)
    sparse = SparseTraining(model, optimizers, MOVING[method], sparsity=0.9, total_steps=8)
    for number in range(8):
        step(model, *optimizers, seed=number)
        assert outside(sparse) == 0
        assert sparse.masks.active_weights == ACTIVE
    assert sparse.steps == 8


def test_an_optimizer_that_moves_what_has_no_gradient_is_noticed(caplog: pytest.LogCaptureFixture) -> None:
    """One of torch's own that is made to: the strays of its first step are counted, and it is relied on no more."""
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparse = SparseTraining(model, optimizer, "static", sparsity=0.9, total_steps=8)

    def with_noise(_optimizer: Optimizer, _args: Any, _kwargs: Any) -> None:
        for parameter in model.parameters():
            assert parameter.grad is not None
            parameter.grad.data.add_(torch.randn_like(parameter))

    optimizer.register_step_pre_hook(with_noise)
    for _ in range(4):
        step(model, optimizer)
        assert outside(sparse) == 0
    assert len(caplog.messages) == 1
    assert "8525 weights outside the masks of 0.weight, 2.weight were not 0 after step 1" in caplog.text


def test_optimizers_for_parts_of_a_model_make_one_step() -> None:
    for order in ((0, 1), (1, 0)):
        model = mlp()
        optimizers = [torch.optim.SGD(model[0].parameters(), lr=0.1), torch.optim.AdamW(model[2].parameters(), lr=0.01)]
        sparse = SparseTraining(model, optimizers, MOVING["rigl"], sparsity=0.9, total_steps=8)
        for number in range(8):
            step(model, *(optimizers[i] for i in order), seed=number)
            assert outside(sparse) == state_outside(sparse, *optimizers) == 0
            assert sparse.steps == number + 1


@pytest.mark.parametrize("method", ["rigl", "set", "sparse_momentum"])
def test_optimizers_that_step_in_backward(method: str) -> None:
    model = mlp()
    optimizers = [torch.optim.SGD([parameter], lr=0.1) for parameter in model.parameters()]
    reports: list[Any] = []
    sparse = SparseTraining(
        model, optimizers, MOVING[method], sparsity=0.9, total_steps=9, on_reallocation=reports.append
    )

    def stepping(optimizer: Optimizer) -> Callable[[torch.Tensor], None]:
        def act(_: torch.Tensor) -> None:
            optimizer.step()
            optimizer.zero_grad()

        return act

    for parameter, optimizer in zip(model.parameters(), optimizers, strict=True):
        parameter.register_post_accumulate_grad_hook(stepping(optimizer))
    for number in range(8):
        loss_of(model, number).backward()
        assert (outside(sparse), sparse.steps) == (0, number + 1)
    assert len(reports) == 4
    assert all(dropped > 0 for report in reports for dropped in report.dropped.values())


def test_a_generator_and_a_critic_learn_from_their_own_gradients() -> None:
    """Two optimizers in turn: what the generator's backward leaves in the critic, the critic's optimizer never uses."""
    torch.manual_seed(0)
    model = nn.ModuleDict({"generator": nn.Linear(8, 16, bias=False), "critic": nn.Linear(16, 8, bias=False)})
    optimizers = {name: torch.optim.SGD(part.parameters(), lr=0.1) for name, part in model.items()}
    sparse = SparseTraining(
        model,
        list(optimizers.values()),
        {"name": "sparse_momentum", "period": 3, "momentum": 0.5},
        sparsity=0.5,
        total_steps=100,
    )
    expected = {name: torch.zeros_like(part.weight) for name, part in model.items()}
    for number in range(6):
        noise = torch.randn(4, 8, generator=torch.Generator().manual_seed(number))
        for name in ("critic", "generator"):
            optimizers[name].zero_grad()
            hidden = model["generator"](noise)
            model["critic"](hidden.detach() if name == "critic" else hidden).square().mean().backward()
            gradient = model[name].weight.grad.clone()
            optimizers[name].step()
            expected[name].mul_(0.5).add_(gradient)
        assert sparse.steps == number + 1
        for name, momentum in expected.items():
            assert torch.allclose(sparse.method.momentum[f"{name}.weight"], momentum)  # type: ignore[attr-defined]


@pytest.mark.parametrize("method", ["rigl", "sparse_momentum"])
def test_a_closure_of_the_last_of_several_batches(method: str) -> None:
    """The batches before it were made outside, as Lightning accumulates, and count as much."""
    ends = []
    for with_closure in (False, True):
        model = mlp()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        sparse = SparseTraining(model, optimizer, MOVING[method], sparsity=0.9, total_steps=9)
        for number in range(8):
            optimizer.zero_grad()
            loss_of(model, 2 * number).backward()
            last = loss_of(model, 2 * number + 1)
            if with_closure:
                optimizer.step(last.backward)
            else:
                last.backward()
                optimizer.step()
        assert (sparse.steps, outside(sparse)) == (8, 0)
        ends.append([layer.active for layer in sparse.masks])
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


def other_arguments(worker: Worker, differing: dict[str, list[Any]]) -> str:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    options: dict[str, Any] = {"sparsity": 0.9, "method": "set", "seed": 0}
    options |= {name: values[worker.rank] for name, values in differing.items()}
    SparseTraining(model, optimizer, options.pop("method"), **options, total_steps=8)
    with pytest.raises(UserError) as caught:
        step(model, optimizer)
    return str(caught.value)


@pytest.mark.parametrize(
    "differing",
    [
        {"seed": [0, 1]},
        {"sparsity": [0.9, 0.8]},
        {"method": [{"name": "set", "period": 2}, {"name": "set", "period": 3}]},
    ],
)
def test_ranks_that_are_given_other_arguments(differing: dict[str, list[Any]]) -> None:
    for message in run_distributed(other_arguments, 2, differing):
        assert message.startswith(f"ranks made SparseTraining with different arguments ({', '.join(differing)}); give")


class OwnSettings:
    """Settings as a plain object: its text is its address."""

    def __init__(self) -> None:
        self.fraction = 0.2


class OwnMethod(Method):
    """A method of one's own, with settings of some kind."""

    def __init__(self, settings: object) -> None:
        self.settings = settings


def own_settings(worker: Worker, kind: str) -> int:
    elsewhere = [OwnSettings() for _ in range(1 + worker.rank)]
    settings = {"object": elsewhere[-1], "list": elsewhere[-1:], "set": {f"layer{i}" for i in range(20)}}[kind]
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparse = SparseTraining(model, optimizer, OwnMethod(settings), sparsity=0.9, total_steps=8)
    step(model, optimizer)
    return sparse.steps


@pytest.mark.parametrize("kind", ["object", "list", "set"])
def test_ranks_that_are_given_settings_without_a_text_of_their_own(kind: str) -> None:
    """An object's address and a set's order differ from process to process, and are no difference."""
    assert run_distributed(own_settings, 2, kind) == [1, 1]


@pytest.mark.parametrize("method", ["rigl", "sparse_momentum"])
def test_a_step_that_is_left_out_after_looking_teaches_nothing(method: str) -> None:
    """The gradients are thrown away between `prepare_gradients` and the step, as for a loss that is no number."""
    ends = []
    for spoilt in (False, True):
        model = mlp()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        sparse = SparseTraining(model, optimizer, MOVING[method], sparsity=0.9, total_steps=9)
        for number in range(8):
            if spoilt and number == 3:
                (loss_of(model, 50) * float("nan")).backward()
                sparse.prepare_gradients()
                optimizer.zero_grad()
                optimizer.step()
            step(model, optimizer, seed=number)
        assert (sparse.steps, outside(sparse)) == (8, 0)
        ends.append([layer.active for layer in sparse.masks])
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


def test_gradients_that_are_replaced_after_looking_are_no_new_ones() -> None:
    ends = []
    for replace in (False, True):
        model = mlp()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        sparse = SparseTraining(model, optimizer, MOVING["rigl"], sparsity=0.9, total_steps=9)
        for number in range(8):
            optimizer.zero_grad()
            loss_of(model, number).backward()
            sparse.prepare_gradients()
            if replace:
                for parameter in model.parameters():
                    parameter.grad = parameter.grad * 1.0  # type: ignore[operator]
            optimizer.step()
        ends.append([layer.active for layer in sparse.masks])
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


def test_free_positions_without_a_number_grow_last_and_active_ones_never() -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    sparse = SparseTraining(model, optimizer, MOVING["rigl"], sparsity=0.9, total_steps=9)
    for number in range(4):
        loss_of(model, number).backward()
        for layer in sparse.masks:
            layer.weight.grad[~layer.mask] = float("nan")  # type: ignore[index]
        optimizer.step()
        optimizer.zero_grad()
        for layer in sparse.masks:
            assert layer.active.unique().numel() == layer.active_units == int(layer.mask.sum())
    assert sparse.masks.active_weights == ACTIVE


def test_optimizers_of_which_a_scaler_skips_one() -> None:
    """Gradients that were masked before a reallocation are masked by the new masks too. Each iteration counts."""
    model = mlp()
    optimizers = [torch.optim.SGD(model[i].parameters(), lr=0.1, momentum=0.9) for i in (0, 2)]
    sparse = SparseTraining(model, optimizers, {"name": "set", "period": 1}, sparsity=0.9, total_steps=20)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    for number in range(16):
        for optimizer in optimizers:
            optimizer.zero_grad()
        scaler.scale(loss_of(model, number)).backward()
        if number % 5 == 2:
            model[2].weight.grad[0] = float("inf")
        for optimizer in optimizers if number % 2 else reversed(optimizers):
            scaler.step(optimizer)
            assert outside(sparse) == 0
        scaler.update()
        assert state_outside(sparse, *optimizers) == 0
    assert sparse.steps == 16


def test_two_steps_from_one_backward() -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparse = SparseTraining(model, optimizer, {"name": "set", "period": 1}, sparsity=0.9, total_steps=20)
    for number in range(4):
        optimizer.zero_grad()
        loss_of(model, number).backward()
        for _ in range(2):
            optimizer.step()
            assert outside(sparse) == 0


def test_a_layer_rests_where_layers_trade() -> None:
    """Other layers do not drop the weights that it would have taken up."""

    class Trading(Rigl):
        @property
        def trades(self) -> bool:
            return True

    model = Branches()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    method = Trading(RiglSettings(name="rigl", period=1, fraction=1.0, until=1.0))  # type: ignore[arg-type]
    sparse = SparseTraining(model, optimizer, method, sparsity=0.3, total_steps=9)
    budget = sparse.masks.active_weights
    spare = sparse.masks.layers[2].active.tolist()
    for _ in range(4):
        optimizer.zero_grad()
        model(torch.randn(8, 64), False).square().mean().backward()
        optimizer.step()
        assert (outside(sparse), sparse.masks.active_weights) == (0, budget)
    assert sparse.masks.layers[2].active.tolist() == spare


def test_another_default_device() -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    inputs = [batch(number) for number in range(4)]
    with torch.device("meta"):
        sparse = SparseTraining(model, optimizer, MOVING["rigl"], sparsity=0.9, total_steps=9)
        for images, labels in inputs:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images), labels).backward()
            sparse.prepare_gradients()
            optimizer.step()
        sparse.load_state_dict(sparse.state_dict())
    assert (sparse.steps, outside(sparse)) == (4, 0)


def test_gradients_that_are_expanded() -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparse = SparseTraining(model, optimizer, MOVING["rigl"], sparsity=0.9, total_steps=9)
    for number in range(4):
        for parameter in model.parameters():
            parameter.grad = torch.ones(1).expand(parameter.shape)
        optimizer.step()
        assert (outside(sparse), sparse.steps) == (0, number + 1)


@pytest.mark.parametrize("method", sorted(MOVING))
def test_a_layer_that_is_frozen_later_stays_as_it_is(method: str) -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    settings = {**MOVING[method], "new_weights": "initial"}
    sparse = SparseTraining(model, optimizer, settings, sparsity=0.9, total_steps=20)
    for number in range(4):
        step(model, optimizer, seed=number)
    model[0].requires_grad_(False)
    optimizer.zero_grad()
    before = model[0].weight.detach().clone()
    for number in range(4, 10):
        step(model, optimizer, seed=number)
    assert torch.equal(model[0].weight, before)
    assert (outside(sparse), sparse.steps) == (0, 10)


def test_weights_written_behind_the_version_counter_are_found(caplog: pytest.LogCaptureFixture) -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparse = SparseTraining(model, optimizer, "static", sparsity=0.9, total_steps=100)
    for number in range(5):
        step(model, optimizer, seed=number)
    model[0].weight.data.copy_(torch.full((128, 64), 0.5))
    for number in range(5, 12):
        step(model, optimizer, seed=number)
    assert outside(sparse) == 0
    assert "7373 weights outside the masks of 0.weight were not 0 after step 10" in caplog.text


def test_optimizers_for_parts_that_are_made_anew() -> None:
    model = mlp()
    optimizers = [torch.optim.SGD(model[i].parameters(), lr=0.1) for i in (0, 2)]
    sparse = SparseTraining(model, optimizers, MOVING["set"], sparsity=0.9, total_steps=16)
    for number in range(8):
        if number == 4:
            optimizers = [torch.optim.AdamW(model[i].parameters(), lr=0.01) for i in (0, 2)]
        step(model, *optimizers, seed=number)
        assert (sparse.steps, outside(sparse), state_outside(sparse, *optimizers)) == (number + 1, 0, 0)


def test_a_second_optimizer_over_the_same_weights() -> None:
    """One that the front door was not told of: seen, masked, cleared, and each step of either counts."""
    model = mlp()
    first, second = (torch.optim.AdamW(model.parameters(), lr=0.01) for _ in range(2))
    sparse = SparseTraining(model, first, MOVING["set"], sparsity=0.9, total_steps=16)
    for number in range(8):
        step(model, first, seed=number)
        assert outside(sparse) == 0
        step(model, second, seed=number)
        assert outside(sparse) == state_outside(sparse, first, second) == 0
    assert sparse.steps == 16


def test_a_step_inside_a_step_counts_once() -> None:
    """A step that raised before changes nothing about that."""

    class Outer(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            return super().step(closure)

    model = mlp()
    optimizer = Outer(model.parameters(), lr=0.1)
    sparse = SparseTraining(model, optimizer, MOVING["rigl"], sparsity=0.9, total_steps=6)

    def fails() -> float:
        raise ArithmeticError

    with pytest.raises(ArithmeticError):
        optimizer.step(fails)
    for number in range(6):
        step(model, optimizer, seed=number)
        assert (sparse.steps, outside(sparse)) == (number + 1, 0)


class Sam(torch.optim.Optimizer):
    """Sharpness-aware minimisation (Foret et al. 2021) around an optimizer that makes the steps."""

    def __init__(self, parameters: Any, inner: type[Optimizer], rho: float = 0.05, **options: Any) -> None:
        super().__init__(parameters, {"rho": rho, **options})
        self.base_optimizer = inner(self.param_groups, **options)
        self.param_groups = self.base_optimizer.param_groups

    @torch.no_grad()
    def climb(self) -> None:
        parameters = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.stack([p.grad.norm() for p in parameters]).norm()
        for p in parameters:
            self.state[p]["before"] = p.clone()
            p.add_(p.grad, alpha=0.05 / float(norm))
        self.zero_grad()

    @torch.no_grad()
    def descend(self) -> None:
        for p, state in self.state.items():
            if "before" in state:
                p.copy_(state["before"])
        self.base_optimizer.step()
        self.zero_grad()

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.climb()
        with torch.enable_grad():
            closure()
        self.descend()


@pytest.mark.parametrize("by_closure", [False, True])
@pytest.mark.parametrize("method", sorted(MOVING))
def test_sam_whose_inner_optimizer_steps(method: str, by_closure: bool) -> None:
    model = mlp()
    optimizer = Sam(model.parameters(), torch.optim.SGD, lr=0.1, momentum=0.9)
    sparse = SparseTraining(model, optimizer, MOVING[method], sparsity=0.9, total_steps=8)
    for number in range(8):
        loss_of(model, number).backward()
        if by_closure:
            optimizer.step(lambda number=number: loss_of(model, number).backward())
        else:
            optimizer.climb()
            loss_of(model, number).backward()
            optimizer.descend()
        assert outside(sparse) == 0
        assert state_outside(sparse, optimizer.base_optimizer) == 0
        assert sparse.steps == number + 1


def with_zero(worker: Worker, method: str) -> tuple[int, list[Any]]:
    parallel = DistributedDataParallel(mlp())
    optimizer = ZeroRedundancyOptimizer(parallel.parameters(), torch.optim.AdamW, lr=0.01)
    sparse = SparseTraining(parallel, optimizer, MOVING[method], sparsity=0.9, total_steps=8)
    worst = 0
    for number in range(8):
        step(parallel, optimizer, seed=10 * number + worker.rank)
        worst = max(worst, outside(sparse), state_outside(sparse, optimizer.optim))
    assert sparse.steps == 8
    return worst, [layer.active.tolist() for layer in sparse.masks]


@pytest.mark.parametrize("method", ["rigl", "set"])
def test_zero_redundancy_optimizer_on_two_ranks(method: str) -> None:
    (worst, first), (worst_too, second) = run_distributed(with_zero, 2, method)
    assert worst == worst_too == 0
    assert first == second


@pytest.mark.parametrize("prepare", [False, True], ids=["", "prepared"])
@pytest.mark.parametrize("fused", [False, True], ids=["", "fused"])
@pytest.mark.parametrize("method", ["rigl", "sparse_momentum"])
def test_steps_that_a_scaler_skips(method: str, fused: bool, prepare: bool) -> None:
    """They do not count, nothing is learnt from them, and the step after them is as any other."""
    model = mlp()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, fused=fused)
    reports: list[Any] = []
    sparse = SparseTraining(
        model, optimizer, MOVING[method], sparsity=0.9, total_steps=12, on_reallocation=reports.append
    )
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for number in range(12):
        optimizer.zero_grad(set_to_none=number % 4 != 0)
        scaler.scale(loss_of(model, number)).backward()
        if number in (3, 6):
            model[0].weight.grad[0] = float("inf")
        if prepare and number != 4:  # Once a step that was not prepared follows one that was skipped.
            scaler.unscale_(optimizer)
            sparse.prepare_gradients()
        scaler.step(optimizer)
        scaler.update()
        assert outside(sparse) == 0
    assert sparse.steps == 10
    assert [report.step for report in reports] == [2, 4, 6, 8, 10]
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())
    for momentum in getattr(sparse.method, "momentum", {}).values():
        assert torch.isfinite(momentum).all()
        assert 0 < momentum.abs().max() < 1  # of gradients, not of gradients times the scale


def test_a_step_that_is_left_open_counts_unread() -> None:
    """Step 5 is skipped by a flag of the optimizer: it counts, no weight moves, and nobody reads the flag."""
    model = mlp()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, fused=True)
    sparse = SparseTraining(model, optimizer, {"name": "rigl", "period": 6, "until": 1.0}, sparsity=0.9, total_steps=8)
    for number in range(1, 8):
        optimizer.zero_grad()
        loss_of(model, number).backward()
        before = [parameter.detach().clone() for parameter in model.parameters()]
        if number != 6:
            sparse.leave_open()
            optimizer.found_inf = torch.tensor(float(number == 5))  # type: ignore[attr-defined]
        with host_waits(torch.device("cpu")) as waits:
            optimizer.step()
        vars(optimizer).pop("found_inf", None)
        assert sparse.needs_outcome(number) == (number == 6)
        assert (waits == []) == (number in (4, 5)), "strays are counted in the first steps, at the event and after it"
        assert all(map(torch.equal, before, model.parameters())) == (number == 5)
        assert sparse.steps == number


def record_of(sparse: SparseTraining, number: int) -> list[torch.Tensor]:
    """Tensors of what the method has learnt of a layer: its momentum, or its reserve."""
    layer = sparse.masks.layers[number]
    reserve = sparse.method.reserve
    return [one.clone() for one in (reserve.layers[layer.name].tensors() if reserve else sparse.method.learnt(layer))]


@pytest.mark.parametrize("kind", ["SGD", "AdamW"])
@pytest.mark.parametrize("method", ["sparse_momentum", "topkast"])
def test_each_optimizer_of_a_step_that_is_left_open_has_a_flag_of_its_own(method: str, kind: str) -> None:
    """Step 4 is skipped by the first one alone, so the method learns of the second layer alone."""
    models = mlp(), mlp()
    options: dict[str, Any] = {"lr": 0.01, "fused": True, **({"momentum": 0.9} if kind == "SGD" else {})}
    both = [[getattr(torch.optim, kind)(model[place].parameters(), **options) for place in (0, 2)] for model in models]
    settings = {"name": method, "period": 6}
    found = [
        SparseTraining(model, optimizers, settings, sparsity=0.9, total_steps=8)
        for model, optimizers in zip(models, both, strict=True)
    ]
    for number in range(1, 6):
        before = record_of(found[0], 0)
        for sparse, model, optimizers in zip(found, models, both, strict=True):
            model.zero_grad()
            loss_of(model, number).backward()
            if sparse is found[0]:
                sparse.leave_open()
                optimizers[0].found_inf = torch.tensor(float(number == 4))
                optimizers[1].found_inf = torch.tensor(0.0)
            with host_waits(torch.device("cpu")) as waits:
                for optimizer in optimizers:
                    optimizer.step()
                    vars(optimizer).pop("found_inf", None)
            assert waits == [] or number <= 3, "strays are counted in the first steps"
        if number == 4:
            assert all(map(torch.equal, record_of(found[0], 0), before))
            assert all(map(torch.equal, record_of(found[0], 1), record_of(found[1], 1)))
            assert not all(map(torch.equal, record_of(found[0], 0), record_of(found[1], 0)))
        elif number < 4:
            assert all(map(torch.equal, record_of(found[0], 0), record_of(found[1], 0)))
    assert found[0].steps == 5


@pytest.mark.parametrize("method", ["rigl", "topkast", "deepr"])
def test_a_step_that_something_depends_on_cannot_be_left_open(method: str) -> None:
    """A reallocation is due in step 2, no fused optimizer skips for the reserve, and the last acts in each step."""
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, fused=method == "rigl")
    sparse = SparseTraining(model, optimizer, MOVING.get(method, method), sparsity=0.9, total_steps=8)
    if method == "rigl":
        sparse.leave_open()
        step(model, optimizer)
    with pytest.raises(UserError) as raised:
        sparse.leave_open()
    assert str(raised.value) == (
        f"step {sparse.steps + 1} was left open, and masks or the method depend on whether it is made: read that where "
        f"needs_outcome() says so, and make the step or call skip_step()"
    )


@pytest.mark.parametrize("fused", [(False,), (True, False)])
def test_a_step_is_left_open_only_for_optimizers_that_can_skip_it(fused: tuple[bool, ...]) -> None:
    model = mlp()
    parts = [model.parameters()] if len(fused) == 1 else [model[0].parameters(), model[2].parameters()]
    optimizers = [torch.optim.AdamW(part, lr=0.01, fused=one) for part, one in zip(parts, fused, strict=True)]
    sparse = SparseTraining(model, optimizers, "static", sparsity=0.9, total_steps=8)
    with pytest.raises(UserError) as raised:
        sparse.leave_open()
    assert str(raised.value) == (
        "step 1 was left open, and AdamW cannot skip a step on the device: make it with fused=True where it has that, "
        "or leave out leave_open()"
    )


def test_a_step_stays_open_where_an_optimizer_rests() -> None:
    """The second one steps in every other round: a round without it ends when the next one begins.

    All six steps count, though the first optimizer skips the fifth.
    """
    model = mlp()
    optimizers = [torch.optim.AdamW(model[place].parameters(), lr=0.01, fused=True) for place in (0, 2)]
    sparse = SparseTraining(model, optimizers, "static", sparsity=0.9, total_steps=20)
    for number in range(1, 7):
        model.zero_grad()
        loss_of(model, number).backward()
        sparse.leave_open()
        for optimizer in optimizers if number % 2 else optimizers[:1]:
            optimizer.found_inf = torch.tensor(float(number == 5))
            optimizer.step()
            del optimizer.found_inf
        assert sparse.steps == (number if number % 2 else number - 1)
    step(model, *optimizers)
    assert sparse.steps == 7


def test_a_step_that_needs_its_outcome_is_found_where_an_optimizer_rests() -> None:
    """Step 2 needs it. When it is left open, step 1 is not over for all that is known, and needs none."""
    model = mlp()
    optimizers = [torch.optim.AdamW(model[place].parameters(), lr=0.01, fused=True) for place in (0, 2)]
    sparse = SparseTraining(model, optimizers, MOVING["set"], sparsity=0.9, total_steps=20)
    for number in range(1, 3):
        model.zero_grad()
        loss_of(model, number).backward()
        sparse.leave_open()
        if number == 1:
            optimizers[0].step()
    with pytest.raises(UserError, match=r"^step 2 was left open, and masks or the method depend"):
        optimizers[0].step()


def test_strays_are_read_a_step_later_where_the_host_does_not_wait(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every tenth step is looked at. Strays of step 10 are masked after step 11, on a processor at once."""
    for is_far, masked_after in ((False, 10), (True, 11)):
        monkeypatch.setattr(later, "is_far", lambda device, far=is_far: far)
        caplog.clear()
        model = mlp()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        sparse = SparseTraining(model, optimizer, "static", sparsity=0.9, total_steps=12)
        for number in range(1, 13):
            if number == 10:
                weight = sparse.masks.layers[0].weight
                weight.data[~sparse.masks.layers[0].mask] = 1.0
            step(model, optimizer)
            assert (outside(sparse) > 0) == (10 <= number < masked_after)
        assert len(caplog.messages) == 1
        assert "weights outside the masks of 0.weight were not 0 after step 10" in caplog.text


@pytest.mark.parametrize("method", ["rigl", "sparse_momentum"])
def test_scaled_gradients_grow_what_plain_ones_do(method: str) -> None:
    ends = []
    for scale in (1.0, 2.0**10):
        model = mlp()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, fused=True)
        sparse = SparseTraining(model, optimizer, MOVING[method], sparsity=0.9, total_steps=8)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        for number in range(8):
            optimizer.zero_grad()
            scaler.scale(loss_of(model, number)).backward()
            scaler.step(optimizer)
            scaler.update()
        ends.append([layer.active for layer in sparse.masks])
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


@pytest.mark.parametrize("method", ["rigl", "set", "sparse_momentum"])
def test_clipping_after_looking_is_no_new_gradient(method: str) -> None:
    """RigL grows by the gradients that `prepare_gradients` saw, though clipping has written to them since."""
    ends = []
    for clip in (False, True):
        model = mlp()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        sparse = SparseTraining(model, optimizer, MOVING[method], sparsity=0.9, total_steps=8)
        for number in range(8):
            optimizer.zero_grad()
            loss_of(model, number).backward()
            sparse.prepare_gradients()
            if clip:
                nn.utils.clip_grad_norm_(model.parameters(), 1e9)  # Writes, changes nothing.
            optimizer.step()
        ends.append([layer.active for layer in sparse.masks])
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


def test_what_a_loop_writes_after_it_masked_is_masked_again() -> None:
    """A loop that masks on its own adds noise to its gradients later: nothing is learnt outside the masks."""
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    sparse = SparseTraining(model, optimizer, "static", sparsity=0.9, total_steps=8, mask_in_backward=False)
    for number in range(3):
        optimizer.zero_grad()
        loss_of(model, number).backward()
        sparse.masks.mask_gradients()
        sparse.prepare_gradients()
        for layer in sparse.masks:
            layer.weight.grad.add_(1.0)
        optimizer.step()
        assert outside(sparse) == 0
        assert state_outside(sparse, optimizer) == 0


def test_norms_are_those_of_the_active_weights() -> None:
    """The loop clips and knows nothing of masks; on these steps nobody needs whole gradients."""
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparse = SparseTraining(model, optimizer, {"name": "rigl", "period": 4}, sparsity=0.9, total_steps=8)
    for number in range(3):
        loss_of(model, number).backward()
        loss_of(model, number + 100).backward()  # accumulates
        assert all(layer.weight.grad[~layer.mask].abs().max() == 0 for layer in sparse.masks)
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)


@pytest.mark.parametrize("method", sorted(MOVING))
def test_accumulated_gradients_are_those_of_a_larger_batch(method: str) -> None:
    ends = []
    for parts in (1, 4):
        model = mlp().double()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        sparse = SparseTraining(model, optimizer, MOVING[method], sparsity=0.9, total_steps=4)
        generator = torch.Generator().manual_seed(1)
        for _ in range(4):
            images = torch.randn(64, 64, generator=generator, dtype=torch.float64)
            labels = torch.randint(10, (64,), generator=generator)
            optimizer.zero_grad()
            for x, y in zip(images.chunk(parts), labels.chunk(parts), strict=True):
                (nn.functional.cross_entropy(model(x), y) / parts).backward()
            optimizer.step()
        assert (sparse.steps, outside(sparse)) == (4, 0)
        ends.append([layer.active for layer in sparse.masks])
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


def test_a_step_without_gradients_does_not_count() -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparse = SparseTraining(model, optimizer, MOVING["set"], sparsity=0.9, total_steps=4)
    optimizer.step()
    assert sparse.steps == 0
    step(model, optimizer)
    assert sparse.steps == 1


@pytest.mark.parametrize("wrapped", ["plain", "compile", "parallel", "compiled part"])
def test_wrappers_change_nothing(wrapped: str) -> None:
    """The masks, the names and the saved state are those of the plain model."""
    wrap: dict[str, Callable[[nn.Sequential], nn.Module]] = {
        "plain": lambda model: model,
        "compile": lambda model: torch.compile(model, backend="eager"),  # type: ignore[dict-item, return-value]
        "parallel": lambda model: DataParallel(model),
        "compiled part": lambda model: nn.Sequential(torch.compile(model[0], backend="eager"), *model[1:]),
    }
    plain = mlp()
    reference = SparseTraining(
        plain, torch.optim.SGD(plain.parameters(), lr=0.1), MOVING["rigl"], sparsity=0.9, total_steps=8
    )
    model = wrap[wrapped](mlp())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparse = SparseTraining(model, optimizer, MOVING["rigl"], sparsity=0.9, total_steps=8, include=["0.weight", "2.*"])
    assert [layer.name for layer in sparse.masks] == ["0.weight", "2.weight"]
    for ours, theirs in zip(sparse.masks, reference.masks, strict=True):
        assert torch.equal(ours.active, theirs.active)
    for number in range(4):
        step(model, optimizer, seed=number)
        assert outside(sparse) == 0
    plain.load_state_dict(
        {name.replace("_orig_mod.", "").removeprefix("module."): value for name, value in model.state_dict().items()}
    )
    reference.load_state_dict(sparse.state_dict())
    assert outside(reference) == 0
    assert reference.steps == 4


def test_wrapping_after_construction() -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparse = SparseTraining(model, optimizer, MOVING["set"], sparsity=0.9, total_steps=8)
    model[0] = torch.compile(model[0], backend="eager")  # type: ignore[assignment]
    for number in range(4):
        step(DataParallel(model), optimizer, seed=number)
    assert (sparse.steps, outside(sparse)) == (4, 0)


@pytest.mark.parametrize("average", ["plain", "deep copy"])
def test_an_average_of_weights(average: str) -> None:
    """It holds the union of all masks; `apply_masks` cuts it to those of now, whatever wraps it."""
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparse = SparseTraining(model, optimizer, MOVING["set"], sparsity=0.9, total_steps=20)
    ema: nn.Module
    if average == "plain":
        ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    else:
        ema = copy.deepcopy(model)
    for number in range(20):
        step(model, optimizer, seed=number)
        if isinstance(ema, AveragedModel):
            ema.update_parameters(model)
        else:
            with torch.no_grad():
                for mean, weight in zip(ema.parameters(), model.parameters(), strict=True):
                    mean.lerp_(weight, 0.1)
    assert nonzero(ema.parameters()) > 1.1 * ACTIVE
    sparse.apply_masks(nn.Sequential(ema))
    assert nonzero(ema.parameters()) <= ACTIVE
    assert nonzero(model.parameters()) <= ACTIVE
    with pytest.raises(UserError, match="the model is not a copy of the sparse one"):
        sparse.apply_masks(nn.Linear(3, 3))


def test_an_average_is_kept_in_the_masks_by_two_lines() -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    sparse = SparseTraining(
        model, optimizer, MOVING["set"], sparsity=0.9, total_steps=20, on_reallocation=lambda _: sparse.apply_masks(ema)
    )
    sparse.apply_masks(ema)
    for number in range(20):
        step(model, optimizer, seed=number)
        ema.update_parameters(model)
        assert nonzero(ema.parameters()) <= ACTIVE


def without_a_cpu_backend(worker: Worker, method: str) -> list[Any]:
    """Train with a group that takes no CPU tensors, like that of `init_process_group("nccl")`."""
    store = dist.distributed_c10d._get_default_store()
    dist.destroy_process_group()
    dist.init_process_group(
        "cuda:gloo", store=dist.PrefixStore("again", store), rank=worker.rank, world_size=worker.world_size
    )
    with pytest.raises(RuntimeError):
        dist.all_reduce(torch.zeros(1))
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparse = SparseTraining(model, optimizer, MOVING[method], sparsity=0.9, total_steps=8)
    for number in range(8):
        step(model, optimizer, seed=number)
    assert sparse.verify() == []
    return [layer.active.tolist() for layer in sparse.masks]


@pytest.mark.parametrize("method", ["rigl", "set"])
def test_a_group_that_takes_no_cpu_tensors(method: str) -> None:
    first, second = run_distributed(without_a_cpu_backend, 2, method)
    assert first == second


def two_models(worker: Worker, on_desync: str) -> list[Any]:
    """Each rank trains a model of its own."""
    groups = [dist.new_group([rank]) for rank in range(worker.world_size)]
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparse = SparseTraining(
        model,
        optimizer,
        MOVING["set"],
        sparsity=0.9,
        total_steps=8,
        seed=worker.rank,
        process_group=groups[worker.rank],
        on_desync=on_desync,  # type: ignore[arg-type]
    )
    for number in range(8 - 2 * worker.rank):
        step(model, optimizer, seed=10 * worker.rank + number)
    assert outside(sparse) == 0
    return [sparse.steps, [layer.active.tolist() for layer in sparse.masks]]


@pytest.mark.parametrize("on_desync", ["abort", "repair"])
def test_independent_models_in_one_process_group(on_desync: str) -> None:
    first, second = run_distributed(two_models, 2, on_desync)
    assert (first[0], second[0]) == (8, 6)
    assert first[1] != second[1]


class Branches(nn.Module):
    """Two heads of which one may be left out."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head, self.spare = nn.Linear(64, 64), nn.Linear(64, 10), nn.Linear(64, 10)

    def forward(self, images: torch.Tensor, spare: bool) -> torch.Tensor:
        hidden = self.body(images).relu()
        return self.head(hidden) + (self.spare(hidden) if spare else 0)


def with_an_unused_layer(worker: Worker, spare: bool) -> list[Any]:
    """One rank, or all of them, see no gradient of a layer in the step of an event."""
    model = Branches()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparse = SparseTraining(model, optimizer, {"name": "rigl", "period": 1}, sparsity=0.9, total_steps=4)
    before = [layer.active.tolist() for layer in sparse.masks]
    optimizer.zero_grad()
    model(torch.randn(8, 64), spare and worker.rank == 1).square().mean().backward()
    for layer in sparse.masks:  # As a loop does that averages the gradients that it has.
        if layer.weight.grad is not None and layer.name != "spare.weight":
            dist.all_reduce(layer.weight.grad)
    for parameter in (model.body.bias, model.head.bias, model.spare.weight, model.spare.bias):
        if parameter.grad is not None:
            parameter.grad.zero_()
    optimizer.step()
    return [before, [layer.active.tolist() for layer in sparse.masks], [layer.name for layer in sparse.masks]]


@pytest.mark.parametrize("spare", [False, True], ids=["on all ranks", "on one rank"])
def test_a_layer_without_a_gradient_rests(spare: bool) -> None:
    (before, first, names), (_, second, _) = run_distributed(with_an_unused_layer, 2, spare)
    assert names == ["body.weight", "head.weight", "spare.weight"]
    assert first == second
    assert [a == b for a, b in zip(before, first, strict=True)] == [False, False, True]


def test_a_layer_without_a_gradient_is_said(caplog: pytest.LogCaptureFixture) -> None:
    model = Branches()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    SparseTraining(model, optimizer, {"name": "rigl", "period": 1}, sparsity=0.9, total_steps=4)
    model(torch.randn(8, 64), False).square().mean().backward()
    optimizer.step()
    assert "no gradient reached spare.weight in step 1: its weights stay where they are" in caplog.text


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_model_that_is_cast_after_construction(dtype: torch.dtype) -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparse = SparseTraining(model, optimizer, MOVING["sparse_momentum"], sparsity=0.9, total_steps=8)
    model.to(dtype)
    for number in range(4):
        optimizer.zero_grad()
        model(torch.randn(8, 64, generator=torch.Generator().manual_seed(number)).to(dtype)).square().mean().backward()
        optimizer.step()
        assert outside(sparse) == 0
    assert sparse.steps == 4


@pytest.mark.gpu
def test_a_model_that_moves_to_another_device_after_construction() -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    sparse = SparseTraining(model, optimizer, MOVING["sparse_momentum"], sparsity=0.9, total_steps=8)
    model.to("cuda")
    for _ in range(4):
        optimizer.zero_grad()
        model(torch.randn(8, 64, device="cuda")).square().mean().backward()
        optimizer.step()
    assert (sparse.steps, sum(sparse.masks.strays().values())) == (4, 0)
    assert sparse.masks.active_weights == ACTIVE


@pytest.mark.parametrize(
    "method", ["set", *(pytest.param(name, marks=pytest.mark.slow) for name in ("rigl", "sparse_momentum"))]
)
def test_weights_that_grow_late_move_as_others_do_under_adam(method: str) -> None:
    """Adam moves each weight by the rate under constant gradients.

    Begun with a second moment of 0, one that grows after a thousand steps would move by 6.5 times the rate.
    """
    rate, late = 1e-3, 1000
    torch.manual_seed(0)
    model = nn.Linear(64, 128, bias=False)
    slopes = torch.randn(128, 64)
    if method == "set":  # It grows at random: how large a gradient is to be expected is the others' mean.
        slopes.sign_()
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0)
    settings = {**MOVING[method], "period": late}
    sparse = SparseTraining(model, optimizer, settings, sparsity=0.9, total_steps=4 * late)
    largest = 0.0
    for _ in range(late + 60):
        before = model.weight.detach().clone()
        optimizer.zero_grad()
        (model.weight * slopes).sum().backward()
        optimizer.step()
        if sparse.steps > late:
            largest = max(largest, float((model.weight.detach() - before).abs().max()) / rate)
    assert 0.9 < largest < 1.05
