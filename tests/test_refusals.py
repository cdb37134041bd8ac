"""Refusals of the front door: one line that says what to do, and nothing is changed."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import ref

import numpy as np
import pytest
import torch
import torch.nn.utils.prune
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard

from dynsparse import SparseTraining
from dynsparse.errors import UserError
from dynsparse.keeping.asked import settings_of
from dynsparse.masks.selection import Cut, cuts_fraction
from dynsparse.methods import Clock, Method
from dynsparse.runtime import Worker
from tests.ranks import run_distributed
from tests.small_mlp import ACTIVE, MOVING, WEIGHTS, mlp, nonzero, outside, step


def sparsify(model: nn.Module, method: Any = "static", **options: Any) -> SparseTraining:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return SparseTraining(model, optimizer, method, **{"sparsity": 0.9, "total_steps": 1000, **options})


def refusal(act: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        act()
    assert len(caught.value.lines) == 1, caught.value.lines
    return str(caught.value)


# Layers of every kind.


def with_weight_norm() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nn.Sequential(nn.utils.weight_norm(nn.Linear(4, 4)), nn.Linear(4, 4))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (with_weight_norm, "0.weight is computed by weight_norm: call torch.nn.utils.remove_weight_norm first"),
        (
            lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 3, 3)), nn.Linear(4, 4)),
            "0.weight is parametrized: remove the parametrization",
        ),
        (
            lambda: nn.Sequential(torch.nn.utils.prune.random_unstructured(nn.Linear(4, 4), "weight", 0.5)),
            "0.weight is computed by torch.nn.utils.prune or spectral_norm: call its remove() first",
        ),
        (lambda: nn.Sequential(nn.LazyLinear(4)), "0.weight has no shape yet (a lazy module): run a forward pass"),
        (
            lambda: nn.Sequential(nn.Linear(4, 4).requires_grad_(False), nn.Linear(4, 4)),
            "0.weight is frozen, and its trained weights would be lost: exclude it",
        ),
        (
            lambda: torch.nn.Sequential(nn.Linear(4, 4, device="meta")),
            "0.bias is on the meta device: give the model",
        ),
        (lambda: nn.Sequential(nn.BatchNorm1d(4)), "no weight of the model (Sequential) is to be sparse: it has no"),
    ],
    ids=["weight_norm", "parametrized", "pruned", "lazy", "frozen", "meta", "nothing"],
)
def test_layers_that_cannot_be_kept_sparse(model: Callable[[], nn.Module], message: str) -> None:
    made = model()
    before = [value.clone() for value in made.state_dict().values() if not nn.parameter.is_lazy(value)]
    assert message in refusal(lambda: sparsify(made))
    after = [value for value in made.state_dict().values() if not nn.parameter.is_lazy(value)]
    assert all(a.is_meta or torch.equal(a, b) for a, b in zip(before, after, strict=True))
    if len(made) > 1:  # type: ignore[arg-type]
        assert [layer.name for layer in sparsify(made, exclude=["0.*"]).masks] == ["1.weight"]


@pytest.mark.parametrize(
    ("model", "names"),
    [
        (lambda: nn.LSTM(8, 8), ["weight_ih_l0", "weight_hh_l0"]),
        (
            lambda: nn.GRU(8, 8, bidirectional=True),
            [f"weight_{k}_l0{r}" for r in ("", "_reverse") for k in ("ih", "hh")],
        ),
        (lambda: nn.LSTMCell(8, 8), ["weight_ih", "weight_hh"]),
        (lambda: nn.ConvTranspose2d(4, 4, 3), ["weight"]),
        (lambda: nn.Conv1d(4, 4, 3), ["weight"]),
        (lambda: nn.Bilinear(4, 4, 4), ["weight"]),
        (
            lambda: nn.MultiheadAttention(8, 2),
            [*(f"in_proj_weight.{part}" for part in "qkv"), "out_proj.weight"],
        ),
        (
            lambda: nn.MultiheadAttention(8, 2, kdim=4, vdim=4),
            ["q_proj_weight", "k_proj_weight", "v_proj_weight", "out_proj.weight"],
        ),
    ],
    ids=["lstm", "gru", "cell", "transposed", "conv1d", "bilinear", "attention", "split attention"],
)
def test_layers_of_other_kinds_are_sparse(model: Callable[[], nn.Module], names: list[str]) -> None:
    sparse = sparsify(model(), sparsity=0.75)
    assert [layer.name for layer in sparse.masks] == names
    assert all(layer.sparsity == pytest.approx(0.75, abs=0.01) for layer in sparse.masks)


def test_recurrent_layers_train() -> None:
    torch.manual_seed(0)
    model = nn.LSTM(8, 16, num_layers=2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    sparse = SparseTraining(model, optimizer, MOVING["rigl"], sparsity=0.9, total_steps=8)
    for _ in range(6):
        optimizer.zero_grad()
        model(torch.randn(5, 3, 8))[0].square().mean().backward()
        optimizer.step()
        assert outside(sparse) == 0


def test_a_transformer_at_90_percent_keeps_10_percent() -> None:
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 4, 64), 2, enable_nested_tensor=False)
    sparse = sparsify(model)
    matrices = sum(parameter.numel() for parameter in model.parameters() if parameter.dim() == 2)
    assert nonzero(model.parameters()) == sparse.masks.active_weights
    assert sparse.masks.active_weights / matrices == pytest.approx(0.1, abs=0.001)


class Tied(nn.Module):
    """A head that shares its weight with an embedding."""

    def __init__(self, sparse: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(20, 8, sparse=sparse)
        self.body = nn.Linear(8, 8)
        self.head = nn.Linear(8, 20, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.body(self.embedding(words)))
        return logits


def test_a_head_that_is_tied_to_an_embedding() -> None:
    """One tensor, one mask, under its first name; patterns know both."""
    model = Tied()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    sparse = SparseTraining(model, optimizer, MOVING["rigl"], sparsity=0.9, total_steps=8)
    assert [layer.name for layer in sparse.masks] == ["embedding.weight", "body.weight"]
    for _ in range(4):
        optimizer.zero_grad()
        model(torch.arange(20)).square().mean().backward()
        optimizer.step()
        assert outside(sparse) == 0
    assert [layer.name for layer in sparsify(Tied(), exclude=["head.*"]).masks] == ["body.weight"]
    assert "is an embedding with sparse gradients" in refusal(lambda: sparsify(Tied(sparse=True)))


def sharded(worker: Worker) -> list[str]:
    mesh = init_device_mesh("cpu", (1,))
    messages = [
        refusal(lambda: sparsify(fully_shard(mlp(), mesh=mesh))),
        refusal(lambda: sparsify(FullyShardedDataParallel(mlp(), device_id=torch.device("cpu")))),
    ]
    model = mlp()
    sparsify(model)
    fully_shard(model, mesh=mesh)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    messages.append(refusal(lambda: step(model, optimizer)))
    return messages


def test_sharded_models() -> None:
    ((fsdp2, fsdp1, later),) = run_distributed(sharded, 1)
    assert "0.weight, 2.weight is sharded over ranks (FSDP2, tensor parallelism)" in fsdp2
    assert "the model is sharded by FullyShardedDataParallel" in fsdp1
    assert "0.weight, 2.weight was replaced since SparseTraining was made" in later


def test_scripted_models() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.script(mlp())
    assert "the model is scripted" in refusal(lambda: sparsify(scripted))


# Arguments.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sparsity": {"linear": 0.9}}, "SparseTraining: sparsity: has the kind 'linear'; there are conv and fc"),
        ({"sparsity": 1.0}, "SparseTraining: sparsity: is 1.0; it must be at least 0 and below 1"),
        ({"sparsity": None}, "give sparsity=, the fraction of zeros in each layer, or masks=, one for each layer"),
        ({"granularity": 7}, "SparseTraining: granularity: is 7; input should be 1, 2, 3 or 4"),
        ({"granularity": 2}, "granularity is 2, and no sparse layer is a convolution"),
        ({"on_desync": "Abort"}, "on_desync: is \"Abort\"; input should be 'abort' or 'repair'; did you mean 'abort'?"),
        ({"allocation": "erd"}, "allocation: is \"erd\"; input should be 'erk' or 'uniform'; did you mean 'erk'?"),
        ({"steps_per_epoch": 12.5}, "steps_per_epoch: is 12.5; input should be a valid integer"),
        ({"steps_per_epoch": 0}, "steps_per_epoch: is 0; input should be greater than or equal to 1"),
        ({"steps_per_epoch": {1: 5}}, "steps_per_epoch: the steps of an epoch need an entry for epoch 0, such as {0:"),
        ({"steps_per_epoch": {0: 5, 3: 0}}, "steps_per_epoch: epoch 3 has no steps; an epoch has at least 1"),
        ({"total_steps": 20, "steps": 30}, "steps is 30, and the run ends with total_steps, 20"),
        ({"total_steps": 0}, "total_steps: is 0; input should be greater than or equal to 1"),
        ({"include": "0.*"}, 'include: is "0.*"; input should be a valid list'),
        ({"include": ["nothing.*"]}, "'nothing.*' matches no weight that can be sparse; there are 0.weight, 2.weight"),
        ({"exclude": ["*"]}, "no weight of the model (Sequential) is to be sparse"),
        ({"masks": "other"}, "masks is 'other'; give a bool tensor for each layer, or one of random, magnitude, snip"),
        (
            {"masks": {"0.weight": torch.ones(3)}, "sparsity": None},
            "0.weight is torch.float32 of shape (3,); it must be",
        ),
    ],
)
def test_arguments(options: dict[str, Any], message: str) -> None:
    model = mlp()
    before = nonzero(model.parameters())
    assert message in refusal(lambda: sparsify(model, **options))
    assert nonzero(model.parameters()) == before
    sparsify(model)  # The corrected call is not refused for the one that was.


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (
            "riggl",
            "SparseTraining: method.name: unknown method 'riggl'; there are acdc, chase, chts, deepr, dense, ",
        ),
        ({"name": "rigl", "perod": 2}, "SparseTraining: method.perod: unknown key; did you mean 'period'?"),
        ({"name": "rigl", "fraction": 2}, "method.fraction: is 2; input should be less than or equal to 1"),
        (3, "method is 3; give a name, settings as in a config, or a Method"),
        ("tied", "method tied replaces parameters"),
        ("dense", "method dense keeps every weight, and sparsity is 0.9: set it to 0"),
        ("sparse_momentum", "method sparse_momentum has settings in epochs: give the length of an epoch"),
        ({"name": "set", "stop_epoch": 3}, "method set has settings in epochs"),
        ({"name": "rigl", "period": {0: 10, 3: 20}}, "method rigl has settings in epochs"),
        (
            {"name": "dsr", "target_moves": 5000},
            "method.target_moves is 5,000; the network has 947 active units in all",
        ),
    ],
)
def test_methods(method: Any, message: str) -> None:
    model = mlp()
    assert message in refusal(lambda: sparsify(model, method))
    assert nonzero(model.parameters()) == WEIGHTS
    sparsify(model)


def test_pruning_ends_at_the_sparsity_that_was_asked_for() -> None:
    """The sparsity asked for replaces the method's settings. A run that is too short for it is refused."""
    pruning = {"name": "pruning", "after_epoch": 1, "every_epochs": 1, "iterations": 3}
    for epochs in (4, 9):
        model = mlp()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        sparse = SparseTraining(model, optimizer, pruning, sparsity=0.9, total_steps=epochs * 5, steps_per_epoch=5)
        assert sparse.masks.active_weights == WEIGHTS
        for number in range(epochs * 5):
            step(model, optimizer, seed=number)
            assert outside(sparse) == 0
        assert nonzero(model.parameters()) == ACTIVE
    short = refusal(lambda: sparsify(mlp(), pruning, total_steps=15, steps_per_epoch=5))
    assert "the run has 15 steps, 3 epochs; the last of 3 prunes comes at the end of epoch 3 (counted from 0)" in short
    twice = refusal(lambda: sparsify(mlp(), {**pruning, "target_fc": 0.8}, total_steps=20, steps_per_epoch=5))
    assert "sparsity asks for 0.9 and method.target_fc for 0.8; give one of them" in twice


def test_a_method_of_ones_own_is_given_as_an_object() -> None:
    from dynsparse.methods.set import Set, SetSettings

    class Mine(Set):
        pass

    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    reports: list[Any] = []
    method = Mine(SetSettings(name="set", period=2))  # type: ignore[arg-type]
    sparse = SparseTraining(model, optimizer, method, sparsity=0.9, total_steps=8, on_reallocation=reports.append)
    for number in range(8):
        step(model, optimizer, seed=number)
    assert (len(reports), outside(sparse)) == (3, 0), "not after the last step"
    assert sparse.state_dict()["method"]["name"] == "Mine"


def test_optimizers() -> None:
    model = mlp()
    stranger = torch.optim.SGD(mlp().parameters(), lr=0.1)
    options: dict[str, Any] = {"sparsity": 0.9, "total_steps": 10}
    message = refusal(lambda: SparseTraining(model, stranger, "static", **options))
    assert message == "the optimizer does not hold 0.weight; make it over this model's parameters"
    message = refusal(lambda: SparseTraining(model, object(), "static", **options))  # type: ignore[arg-type]
    assert message == "the optimizer is not a torch.optim.Optimizer and holds none: its steps cannot be seen"
    sparse = sparsify(model)
    assert "the model has a SparseTraining already" in refusal(lambda: sparsify(model))
    assert "the model has a SparseTraining already" in refusal(lambda: sparsify(nn.Sequential(model)))
    sparse.release()
    sparsify(model, masks="random")


# What happens later.


def test_weights_that_are_loaded_without_their_masks() -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparse = SparseTraining(model, optimizer, MOVING["set"], sparsity=0.9, total_steps=100)
    step(model, optimizer)
    model.load_state_dict(mlp().state_dict())
    message = refusal(lambda: step(model, optimizer))
    assert "0.weight, 2.weight has weights outside its mask, 8,525 in all, that were written since step 1" in message
    sparse.apply_masks()
    step(model, optimizer)
    assert outside(sparse) == 0


def test_weights_of_another_time_are_refused_and_with_their_state_taken() -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    method = {"name": "set", "period": 2, "fraction": 0.5, "new_weights": "initial"}
    sparse = SparseTraining(model, optimizer, method, sparsity=0.9, total_steps=100)
    for number in range(4):
        step(model, optimizer, seed=number)
    earlier = copy.deepcopy((model.state_dict(), sparse.state_dict()))
    for number in range(4):
        step(model, optimizer, seed=number)
    now = sparse.state_dict()
    model.load_state_dict(earlier[0])
    assert "has weights outside its mask" in refusal(lambda: step(model, optimizer))
    assert "are not those that this state was saved with" in refusal(lambda: sparse.load_state_dict(now))
    sparse.load_state_dict(earlier[1])
    step(model, optimizer)
    assert (sparse.steps, outside(sparse)) == (5, 0)


@pytest.mark.parametrize("method", sorted(MOVING))
@pytest.mark.parametrize("at_construction", [False, True])
def test_a_run_goes_on_from_its_state(method: str, at_construction: bool) -> None:
    def begin(**options: Any) -> tuple[nn.Module, torch.optim.Optimizer, SparseTraining]:
        model = mlp()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        if at_construction and options:
            model.load_state_dict(options.pop("weights"))
            optimizer.load_state_dict(options.pop("moments"))
        made = SparseTraining(model, optimizer, MOVING[method], sparsity=0.9, total_steps=12, **options)
        return model, optimizer, made

    whole, optimizer, sparse = begin()
    for number in range(7):
        step(whole, optimizer, seed=number)
    file = io.BytesIO()
    torch.save([part.state_dict() for part in (whole, optimizer, sparse)], file)
    file.seek(0)
    weights, moments, state = torch.load(file, weights_only=True)
    if at_construction:
        resumed, other, again = begin(weights=weights, moments=moments, state=state)
    else:
        resumed, other, again = begin()
        resumed.load_state_dict(weights)
        other.load_state_dict(moments)
        again.load_state_dict(state)
    for number in range(7, 12):
        step(whole, optimizer, seed=number)
        step(resumed, other, seed=number)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))
    assert again.steps == 12


def test_a_sparse_network_gets_no_new_masks_unasked() -> None:
    """Loaded from a checkpoint, then made sparse anew: most trained weights would be lost."""
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    state = SparseTraining(model, optimizer, MOVING["set"], sparsity=0.9, total_steps=100).state_dict()
    loaded = mlp()
    loaded.load_state_dict(model.state_dict())
    assert "0.weight is sparse already, 7,373 of its 8,192 weights are 0" in refusal(lambda: sparsify(loaded))
    assert nonzero(loaded.parameters()) == ACTIVE
    kept = sparsify(loaded, masks={f"{i}.weight": loaded[i].weight != 0 for i in (0, 2)}, sparsity=None)
    assert kept.masks.active_weights == nonzero(loaded.parameters()) == ACTIVE
    kept.release()
    sparsify(loaded, MOVING["set"], state=state).release()
    assert nonzero(loaded.parameters()) == ACTIVE
    sparsify(loaded, masks="random", seed=1)
    assert nonzero(loaded.parameters()) < ACTIVE


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "static"}, "the state is of method set, this is static"),
        ({"sparsity": 0.5}, "the state was made with sparsity {'conv': 0.9, 'fc': 0.9}, this has"),
        ({"exclude": ["2.*"]}, "sparse layers differ in shape, granularity or presence: 2.weight"),
    ],
)
@pytest.mark.parametrize("at_construction", [False, True])
def test_states_of_other_runs(options: dict[str, Any], message: str, at_construction: bool) -> None:
    model = mlp()
    made = sparsify(model, MOVING["set"])
    state = made.state_dict()
    made.release()
    full = mlp()
    settings = {"method": MOVING["set"], **options}
    if at_construction:
        assert message in refusal(lambda: sparsify(full, **settings, state=state))
        assert nonzero(full.parameters()) == WEIGHTS
        assert "it lacks masks, method, sparsity, steps, weights" in refusal(lambda: sparsify(full, state={}))
        return
    sparse = sparsify(full, **settings)
    before = copy.deepcopy(sparse.state_dict())
    assert message in refusal(lambda: sparse.load_state_dict(state))
    after = sparse.state_dict()
    assert {k: v for k, v in before.items() if k != "masks"} == {k: v for k, v in after.items() if k != "masks"}
    for name, layer in before["masks"]["layers"].items():
        assert torch.equal(layer["mask"], after["masks"]["layers"][name]["mask"])


def test_a_state_for_other_weights_is_taken_if_asked() -> None:
    model, other = mlp(), mlp()
    state = sparsify(model, MOVING["set"]).state_dict()
    sparse = sparsify(other, MOVING["set"], seed=5)
    with torch.no_grad():
        other[0].weight.add_(1)
    sparse.load_state_dict(state, strict=False)
    assert outside(sparse) == 0
    assert sparse.state_dict()["weights"] != state["weights"]


def test_a_layer_that_is_replaced() -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    SparseTraining(model, optimizer, "static", sparsity=0.9, total_steps=10)
    step(model, optimizer)
    model[2] = nn.Linear(128, 10)
    replaced = "2.weight was replaced since SparseTraining was made"
    assert replaced in refusal(lambda: step(model, optimizer))
    assert replaced in refusal(lambda: step(model, torch.optim.SGD(model.parameters(), lr=0.1)))
    assert replaced in refusal(lambda: step(model, torch.optim.SGD(model[2].parameters(), lr=0.1)))


def test_a_copy_that_is_trained() -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparse = SparseTraining(model, optimizer, "static", sparsity=0.9, total_steps=10)
    step(model, optimizer)
    copied, its_optimizer = copy.deepcopy((model, optimizer))
    assert "the optimizer steps over a deep copy of a sparse model" in refusal(lambda: step(copied, its_optimizer))
    another = SparseTraining(copied, its_optimizer, "static", sparsity=0.9, total_steps=10, state=sparse.state_dict())
    step(copied, its_optimizer)
    assert (outside(sparse), outside(another), another.steps) == (0, 0, 2)
    part = copy.deepcopy(model[0])
    assert "deep copy" in refusal(lambda: part_step(part))


def test_a_copy_of_a_copy_that_is_trained() -> None:
    model = mlp()
    sparsify(model)
    copied = copy.deepcopy(copy.deepcopy(model))
    assert "deep copy" in refusal(lambda: step(copied, torch.optim.SGD(copied.parameters(), lr=0.1)))


def test_two_on_one_module_and_nobody_keeps_them() -> None:
    """The object that keeps a model sparse lives as long as the model."""
    model = nn.LSTM(8, 8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for pattern in ("weight_ih*", "weight_hh*"):
        SparseTraining(model, optimizer, "static", sparsity=0.9, total_steps=10, include=[pattern])
    gc.collect()
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(3, 2, 8))[0].square().sum().backward()
        optimizer.step()
    assert [int(parameter.count_nonzero()) for parameter in model.parameters() if parameter.dim() == 2] == [26, 26]


def test_a_module_that_is_replaced_around_its_weight() -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    SparseTraining(model, optimizer, "static", sparsity=0.9, total_steps=10)
    for i in (0, 2):
        another = nn.Linear(model[i].in_features, model[i].out_features)
        another.weight, another.bias = model[i].weight, model[i].bias
        model[i] = another
    gc.collect()
    for number in range(3):
        step(model, optimizer, seed=number)
    assert nonzero(model.parameters()) == ACTIVE


def test_a_method_object_is_of_one_model() -> None:
    method = settings_of(MOVING["set"]).build()
    first = sparsify(mlp(), method)
    assert "the Set given is another model's already" in refusal(lambda: sparsify(mlp(), method))
    first.release()
    sparsify(mlp(), method)


def test_methods_are_told_apart_by_identity() -> None:
    """Dataclasses compare by their fields, and have no hash unless they are asked for one."""

    @dataclass
    class Rule(Method):
        fraction: float = 0.2

        def is_due(self, clock: Clock) -> bool:
            return True

        def drop_cuts(self, scores: Sequence[Tensor], clock: Clock) -> Sequence[Cut]:
            return cuts_fraction(scores, self.fraction)

    @dataclass(unsafe_hash=True)
    class Hashable(Rule):
        pass

    for kind in (Rule, Hashable):
        used = kind()
        kept = [sparsify(mlp(), method) for method in (used, kind())]
        assert "is another model's already" in refusal(lambda used=used: sparsify(mlp(), used))  # type: ignore[misc]
        kept[0].release()
        sparsify(mlp(), used)


def test_damaged_states() -> None:
    model = mlp()
    sparse = sparsify(model, MOVING["dsr"])
    for part, value in (("masks", {}), ("masks", {"layers": 3}), ("method", {"name": "dsr", "state": {}})):
        state = {**sparse.state_dict(), part: value}
        assert "the state is damaged" in refusal(lambda state=state: sparse.load_state_dict(state))  # type: ignore[misc]
    assert outside(sparse) == 0


def test_an_allocation_that_would_not_apply() -> None:
    pruning = {"name": "pruning", "after_epoch": 0}
    message = refusal(lambda: sparsify(mlp(), pruning, steps_per_epoch=10, allocation="erk"))
    assert "allocation is 'erk', and this method starts from a dense network" in message


def test_pruning_does_not_begin_with_a_pruned_network() -> None:
    pruning = {"name": "pruning", "after_epoch": 0}
    model = mlp()
    sparsify(model).release()
    message = refusal(lambda: sparsify(model, pruning, steps_per_epoch=10))
    assert "0.weight is sparse already" in message
    message = refusal(lambda: sparsify(model, masks=sparsify(model, masks="random").masks))
    assert "sparsity= has no effect with a MaskSet as masks=" in message


def test_a_network_does_not_become_sparser_by_new_masks_unasked() -> None:
    """Masks of the same seed would take just the weights that the first ones made inactive."""
    model = mlp()
    sparsify(model, sparsity=0.4).release()
    assert "0.weight is sparse already" in refusal(lambda: sparsify(model, sparsity=0.9))


def test_copies_are_free_when_the_original_is() -> None:
    model = mlp()
    sparse = sparsify(model)
    copied = copy.deepcopy(model)
    optimizer = torch.optim.SGD(copied.parameters(), lr=0.1)
    assert "deep copy" in refusal(lambda: step(copied, optimizer))
    sparse.release()
    step(copied, optimizer)


def test_masks_of_a_model_that_is_kept_already() -> None:
    model = mlp()
    sparse = sparsify(model)
    assert "has a SparseTraining already" in refusal(lambda: sparsify(model, masks=sparse.masks, sparsity=None))
    sparse.release()
    again = sparsify(model, MOVING["rigl"], masks=sparse.masks, sparsity=None)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for number in range(4):
        step(model, optimizer, seed=number)
    assert (again.steps, outside(again), sparse.steps) == (4, 0, 0)


def part_step(part: nn.Module) -> None:
    part(torch.randn(2, 64)).sum().backward()
    torch.optim.SGD(part.parameters(), lr=0.1).step()


def test_the_object_itself_cannot_be_copied_but_the_model_can() -> None:
    model = mlp()
    sparse = sparsify(model)
    for act in (copy.copy, copy.deepcopy, pickle.dumps):
        message = refusal(lambda act=act: act(sparse))  # type: ignore[misc]
        assert "cannot be copied or pickled: save its state_dict(), and give that as state= to a new one" in message
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    read = torch.load(file, weights_only=False)
    assert nonzero(read.parameters()) == ACTIVE


def test_dense_optimizer_state_is_cut() -> None:
    """Adam's moments of a dense run would move weights outside the masks."""
    dense = mlp()
    its_optimizer = torch.optim.AdamW(dense.parameters(), lr=0.01)
    step(dense, its_optimizer)
    model = mlp()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    sparse = SparseTraining(model, optimizer, "static", sparsity=0.9, total_steps=10)
    for _ in range(5):
        optimizer.load_state_dict(its_optimizer.state_dict())
        step(model, optimizer)
        assert outside(sparse) == 0


# What is said.


def test_a_run_that_moves_nothing_is_said(caplog: pytest.LogCaptureFixture) -> None:
    sparsify(mlp(), {"name": "rigl", "period": 100_000})
    assert "method rigl will move nothing in the 1000 steps to come: see its period" in caplog.text


def test_trained_weights_that_random_masks_cut_are_said(caplog: pytest.LogCaptureFixture) -> None:
    model = mlp()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    step(model, optimizer)
    SparseTraining(model, optimizer, "static", sparsity=0.9, total_steps=10)
    assert "the optimizer has stepped over these weights already, and the masks are drawn at random" in caplog.text


def test_a_run_that_goes_on_beyond_its_end_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    SparseTraining(model, optimizer, "static", sparsity=0.9, total_steps=2)
    for _ in range(5):
        step(model, optimizer)
    assert [line for line in caplog.messages if "beyond" in line] == [
        "step 3 goes beyond total_steps=2: schedules are at their end; total_steps counts optimizer steps"
    ]


def test_a_first_reallocation_that_moves_nothing_is_said(caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    model = nn.Linear(8, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    total = np.int64(20)
    SparseTraining(model, optimizer, {"name": "set", "period": 2}, sparsity=0.9, total_steps=total)  # type: ignore[arg-type]
    for _ in range(8):
        model(torch.randn(4, 8)).square().mean().backward()
        optimizer.step()
    said = [line for line in caplog.messages if "moved no weight" in line]
    assert len(said) == 1
    assert "after step 2 moved no weight: what set asks of a layer rounds to none, or none has free places" in said[0]


def test_a_model_of_inference_mode() -> None:
    with torch.inference_mode():
        model = mlp()
    assert "was made in inference mode" in refusal(lambda: sparsify(model))


def test_filters_without_weights_are_said(caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    sparse = sparsify(nn.Sequential(nn.Conv2d(32, 32, 3, groups=32)), {"name": "rigl", "period": 10})
    dead = sum(not layer.mask[i].any() for layer in sparse.masks for i in range(32))
    assert dead > 5
    assert f"{dead} of the 32 filters of 0.weight have no weight" in caplog.text


def test_what_stays_dense_is_said(caplog: pytest.LogCaptureFixture) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.linear = nn.Embedding(50, 8), nn.Linear(8, 8)
            self.mixing = nn.Parameter(torch.randn(8, 8))

    sparsify(Model())
    assert "mixing, words.weight stays dense; name it in include=" in caplog.text
    caplog.clear()
    assert [layer.name for layer in sparsify(Model(), include=["mixing", "linear.*"]).masks] == [
        "mixing",
        "linear.weight",
    ]
    sparsify(Model(), exclude=["words.*", "mixing"])
    assert caplog.text == ""


def test_kinds_that_are_to_be_dense_have_no_mask() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8 * 16, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for method in MOVING.values():
        settings = {**method, "target_moves": 10} if method["name"] == "dsr" else method
        sparse = SparseTraining(model, optimizer, settings, sparsity={"conv": 0.9}, total_steps=4, masks="random")
        assert [layer.name for layer in sparse.masks] == ["0.weight"]
        for _ in range(4):
            optimizer.zero_grad()
            model(torch.randn(4, 3, 6, 6)).square().mean().backward()
            optimizer.step()
        assert int(model[2].weight.count_nonzero()) == 1280
        sparse.release()


@pytest.mark.parametrize("state", ["run.pt", Path("run.pt"), [1]])
@pytest.mark.parametrize("sparsity", [0.9, None])
def test_a_state_that_is_the_path_of_one(state: Any, sparsity: float | None) -> None:
    told = f"state is a {type(state).__name__}, and not what state_dict() has returned: of a file, what torch.load"
    assert told in refusal(lambda: sparsify(mlp(), state=state, sparsity=sparsity))
    assert told in refusal(lambda: sparsify(mlp()).load_state_dict(state))


@pytest.mark.parametrize("method", [None, {"state": {}}, {"name": "set"}])
def test_a_state_without_its_method(method: Any) -> None:
    state = {**sparsify(mlp()).state_dict(), "method": method}
    assert "the state is damaged: its method has no name, or no state" in refusal(lambda: sparsify(mlp(), state=state))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_cast_of_weights_with_others_in_reserve(dtype: torch.dtype) -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    SparseTraining(model, optimizer, {"name": "topkast"}, sparsity=0.9, total_steps=10)
    step(model, optimizer)
    model.to(dtype)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    told = "0.weight, 2.weight has another dtype since SparseTraining was made, and this method keeps inactive weights"
    assert told in refusal(optimizer.step)


def test_a_model_that_nobody_holds_is_freed() -> None:
    model = mlp()
    sparse = sparsify(model, MOVING["set"])
    held = [ref(one) for one in (model, sparse, *model.parameters())]
    del model, sparse
    gc.collect()
    assert [one() for one in held] == [None] * len(held)
