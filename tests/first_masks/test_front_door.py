"""First masks by score in the front door: any model, which is as before; and refusals of one line."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import cross_entropy

from dynsparse import SparseTraining
from dynsparse.errors import UserError
from dynsparse.runtime import Worker
from tests.ranks import run_distributed
from tests.small_mlp import batch, mlp

ALL = ("snip", "grasp", "synflow")


def sparsify(model: nn.Module, masks: Any, **options: Any) -> SparseTraining:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return SparseTraining(model, optimizer, **{"method": "static", "total_steps": 9, "masks": masks, **options})


def scored(model: nn.Module, masks: Any, data: Any = None, **options: Any) -> SparseTraining:
    name = masks if isinstance(masks, str) else masks["name"]
    loss = {} if name == "synflow" else {"loss": cross_entropy}
    return sparsify(model, masks, **{"sparsity": 0.9, "batches": data or [batch()], **loss, **options})


def with_all() -> nn.Module:
    torch.manual_seed(1)
    parts = nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 10)
    return nn.Sequential(*parts)


@pytest.mark.parametrize("masks", ALL)
@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_as_before(masks: str, training: bool) -> None:
    model = with_all().train(training)
    before, storage = copy.deepcopy(model.state_dict()), [one.data_ptr() for one in model.parameters()]
    numbers = torch.get_rng_state()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        sparse = scored(model, masks)
    assert torch.equal(numbers, torch.get_rng_state()) and model.training is training
    assert storage == [one.data_ptr() for one in model.parameters()]
    assert all(one.grad is None and one.requires_grad and one.dtype is torch.float32 for one in model.parameters())
    names = {layer.name for layer in sparse.masks}
    for name, value in model.state_dict().items():
        assert name in names or torch.equal(value, before[name]), name
    for layer in sparse.masks:
        assert torch.equal(layer.weight[layer.mask], before[layer.name][layer.mask])
    assert sparse.masks.active_weights == 118  # 102 of 1,024 and 16 of 160.


class Attentive(nn.Module):
    """Recurrence and attention, whose parameters other modules hold, and two inputs."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.recurrent = nn.LSTM(8, 12, batch_first=True)
        self.attention = nn.MultiheadAttention(12, 2, batch_first=True)
        self.head = nn.Linear(12, 10)

    def forward(self, images: Tensor, scale: Tensor) -> Tensor:
        found = self.recurrent(images.view(-1, 8, 8) * scale)[0]
        output: Tensor = self.head(self.attention(found, found, found, need_weights=False)[0].mean(1))
        return output


@pytest.mark.parametrize("as_mapping", [True, False])
@pytest.mark.parametrize("masks", ["snip", "grasp"])
def test_split_layers_recurrent_layers_and_several_inputs(masks: str, as_mapping: bool) -> None:
    images, labels = batch()
    scale = torch.tensor(2.0)
    inputs = {"images": images, "scale": scale} if as_mapping else (images, scale)
    sparse = scored(Attentive(), masks, [(inputs, labels)], exclude=["head.*"])
    names = [layer.name for layer in sparse.masks]
    assert [f"attention.in_proj_weight.{part}" in names for part in "qkv"] == [True] * 3
    assert "recurrent.weight_hh_l0" in names and "head.weight" not in names
    sparse.check()


def test_more_batches_are_their_mean() -> None:
    """Two equal batches are one; two others are their union, as all have as many samples."""
    (images, labels), (more, others) = batch(0), batch(1)
    union = torch.cat((images, more)), torch.cat((labels, others))
    one, twice, both, joined = (
        [layer.active.tolist() for layer in scored(mlp(), "snip", data).masks]
        for data in ([batch(0)], [batch(0), batch(0)], [batch(0), batch(1)], [union])
    )
    assert one == twice != both == joined


def of_ranks(worker: Worker, masks: str) -> list[list[int]]:
    images, labels = batch()
    mine = slice(worker.rank * 64 // worker.world_size, (worker.rank + 1) * 64 // worker.world_size)
    sparse = scored(mlp(), masks, [(images[mine], labels[mine])])
    assert sparse.verify() == []
    return [layer.active.tolist() for layer in sparse.masks]


@pytest.mark.parametrize("masks", ["snip", "grasp"])
def test_ranks_decide_as_one(masks: str) -> None:
    """Two ranks choose what one does: there is no BatchNorm, parts are equal, no score is near the threshold."""
    alone = of_ranks(Worker(), masks)
    assert run_distributed(of_ranks, 2, masks) == [alone, alone]


def test_synflow_in_a_deep_network_that_float32_cannot_hold() -> None:
    """64 layers of 64: the flow grows by about 40 a layer, to 10^100."""
    torch.manual_seed(0)
    deep = nn.Sequential(*(nn.Linear(64, 64, bias=False) for _ in range(64)))
    for layer in deep:
        nn.init.kaiming_normal_(layer.weight)
    ones = torch.ones(1, 64)
    for layer in deep:
        ones = ones @ layer.weight.abs().T
    assert not ones.isfinite().all()
    sparse = scored(deep, {"name": "synflow", "iterations": 10}, [(torch.ones(1, 64), None)], sparsity=0.95)
    sparse.check()
    counts = [layer.active_units for layer in sparse.masks]
    assert sum(counts) == 64 * 205 and min(counts) > 1 and deep(torch.ones(1, 64)).abs().sum().item() > 0


def test_flow_that_float64_cannot_hold_is_refused() -> None:
    model = mlp()
    with torch.no_grad():
        for layer in (model[0], model[2]):
            layer.weight.fill_(1e38)
    deep = nn.Sequential(*model, *(nn.Linear(10, 10, bias=False) for _ in range(8)))
    with torch.no_grad():
        for parameter in deep[3:].parameters():
            parameter.fill_(1e38)
    with pytest.raises(UserError, match=r"masks: synflow: the scores of 0.weight, 2.weight.* are NaN or inf"):
        scored(deep, "synflow")


class Once(torch.autograd.Function):
    """The identity, with a gradient that has none."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return values.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return gradient.clone()


class OnceOnly(nn.Module):
    def forward(self, values: Tensor) -> Tensor:
        found: Tensor = Once.apply(values)  # type: ignore[no-untyped-call]
        return found


def unused() -> nn.Module:
    model = mlp()
    model[0].other = nn.Linear(4, 4)
    return model


def silent() -> nn.Module:
    """A norm that begins at 0 after the first layer, as zero_init_residual makes them."""
    model = with_all()
    nn.init.zeros_(model[1].weight)
    return model


def broken() -> nn.Module:
    model = mlp()
    with torch.no_grad():
        model[0].bias[0] = float("nan")
    return model


@pytest.mark.parametrize(
    ("model", "masks", "options", "words"),
    [
        (unused, "snip", {}, "masks: snip: 0.other.weight gets no gradient from the loss: exclude it"),
        (unused, "synflow", {}, "masks: synflow: nothing flows through 0.other.weight to the outputs: exclude it"),
        (
            silent,
            "snip",
            {},
            "masks: snip: all scores of 0.weight, 4.weight are 0, as before a norm that begins with",
        ),
        (silent, "synflow", {}, "masks: synflow: all scores of 0.weight, 4.weight are 0"),
        (broken, "snip", {}, "masks: snip: the scores of 0.weight, 2.weight are NaN or inf: take other first weights"),
        (
            lambda: nn.Sequential(*mlp(), OnceOnly()),
            "grasp",
            {},
            "masks: grasp: the loss cannot be differentiated twice (a function in it is marked with @once_differ",
        ),
        (
            mlp,
            "snip",
            {"allocation": "erk"},
            "and allocation is erk: leave that out, or set masks={",
        ),
        (
            mlp,
            "snip",
            {"structure": "fan_in"},
            "and structure fan_in leaves no layer another number of weights: set ma",
        ),
        (mlp, "snip", {"method": "gmp"}, "masks is snip, and the method begins with all weights, so that none are cho"),
        (mlp, "snip", {"sparsity": 0.0}, "masks is snip, and the method begins with all weights, so that none are cho"),
        (mlp, "synflow", {"sparsity": 0.0}, "masks is synflow, and the method begins with all weights, so that none"),
        (mlp, "snip", {"method": "dense"}, "masks is 'snip', and this method starts without masks: leave masks= out"),
        (mlp, "snip", {"loss": None}, "masks is snip: give batches=, pairs of inputs and targets, and loss=, which"),
        (
            mlp,
            "snip",
            {"batches": []},
            "batches= has none, or one that is no pair of inputs and targets: give [(inputs",
        ),
        (mlp, "snip", {"batches": 3}, "batches= has none, or one that is no pair of inputs and targets"),
        (mlp, "snip", {"batches": ["ab"]}, "batches= has none, or one that is no pair of inputs and targets"),
        (mlp, "synflow", {"batches": 3}, "batches= has none, or one that is no pair of inputs and targets"),
        (mlp, "snip", {"loss": 3}, "loss= is int; give a function of the model's outputs and targets"),
        (
            mlp,
            "snip",
            {"loss": lambda outputs, targets: cross_entropy(outputs, targets, reduction="none")},
            "masks: snip: the loss is a tensor of shape (64,); it must be a tensor of one number, the batch's mean",
        ),
        (
            mlp,
            "grasp",
            {"loss": lambda outputs, targets: 3.0},
            "masks: grasp: the loss is float; it must be a tensor of one number, the batch's mean",
        ),
        (
            mlp,
            "grasp",
            {"loss": lambda outputs, targets: cross_entropy(outputs, targets).detach()},
            "masks: grasp: the loss follows from no weight, as if it had been detached: let the loss be of the model's",
        ),
        (mlp, "snip", {"batches": [batch()[0]]}, "batches= has none, or one that is no pair of inputs and targets"),
        (
            mlp,
            "synflow",
            {"loss": cross_entropy},
            "loss= has no effect with masks by synflow, which looks at no loss: leave",
        ),
        (mlp, "synflow", {"batches": None}, "masks is synflow: give batches=, of which the shape of the first inputs"),
        (
            mlp,
            "synflow",
            {"batches": [((batch()[0],), 0)]},
            "the inputs of the first batch are tuple: it needs one ten",
        ),
        (
            mlp,
            {"name": "snip", "batches": 2},
            {},
            "masks: batches is for configs; here all of batches= are used: leave",
        ),
        (mlp, {"name": "magnitude"}, {}, "masks is {'name': 'magnitude'}; it has no settings: give 'magnitude'"),
        (mlp, {"name": "snap"}, {}, "unknown masks 'snap'; there are random, magnitude, snip, grasp, synflow"),
    ],
)
def test_refusals_change_nothing(model: Any, masks: Any, options: dict[str, Any], words: str) -> None:
    made = model()
    before = copy.deepcopy(made.state_dict())
    with pytest.raises(UserError) as caught:
        scored(made, masks, **options)
    (line,) = caught.value.lines
    assert words in line
    for name, value in made.state_dict().items():
        assert torch.equal(value, before[name]) or bool(value.isnan().any())


def test_batches_without_scores_are_refused() -> None:
    with pytest.raises(UserError, match=r"^batches= has no effect without masks by score"):
        sparsify(mlp(), "magnitude", sparsity=0.9, batches=[batch()])


def test_a_state_has_its_masks() -> None:
    """Given one, nothing is scored: there need be no batches."""
    model = mlp()
    first = scored(model, "grasp")
    again = mlp()
    again.load_state_dict(model.state_dict())
    second = sparsify(again, "grasp", sparsity=0.9, state=first.state_dict())
    assert all(torch.equal(a.active, b.active) for a, b in zip(first.masks, second.masks, strict=True))
