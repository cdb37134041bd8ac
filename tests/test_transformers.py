"""Attention's packed query, key and value in a loop of one's own: three layers that share one parameter."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear
from torch.nn.parallel import DistributedDataParallel

from dynsparse import SparseTraining
from dynsparse.distributed.allreduce import ActiveAllReduce
from dynsparse.distributed.digest import active_digest, mask_digest, weight_digest
from dynsparse.errors import UserError
from dynsparse.masks.optimizer_state import moments
from dynsparse.masks.structure import n_of_m
from dynsparse.runtime import Worker
from tests.methods.test_contract import BUSY, REGISTRY, structure_of
from tests.models.tiny_vit import SHAPE, attention, vit_tiny
from tests.ranks import run_distributed

METHODS = sorted(set(REGISTRY) - {"dense", "tied"})
TARGETS = ("target_conv", "target_fc")
"""Settings of pruning that `sparsity` gives here."""
WIDTH = 12


class Packed(nn.Module):
    """Query, key and value from one weight [3 E, E], whose gradient is the sum of those of its parts."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.head = nn.Linear(WIDTH, 4)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (linear(x, part) for part in self.parts())
        return self.head((q @ k.mT / WIDTH**0.5).softmax(-1) @ v).mean(1)

    def parts(self) -> tuple[Tensor, ...]:
        return self.qkv.weight.chunk(3)


class Parts(nn.Module):
    def __init__(self, whole: Tensor) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Parameter(part.detach().clone()) for part in whole.chunk(3))


class Separate(Packed):
    """Makes the same from three parameters, under the names that the packed one's layers have."""

    def __init__(self, packed: Packed) -> None:
        super().__init__()
        self.qkv = nn.Module()
        self.qkv.weight = Parts(packed.qkv.weight)
        self.head.load_state_dict(packed.head.state_dict())

    def parts(self) -> tuple[Tensor, ...]:
        return self.qkv.weight.q, self.qkv.weight.k, self.qkv.weight.v


def method(name: str) -> dict[str, Any]:
    if name == "chase":  # The channels of attention alone have no groups.
        return {"name": name, "period": 2, "channel_sparsity": 0}
    return {"name": name, **{key: value for key, value in BUSY.get(name, {}).items() if key not in TARGETS}}


def sparse(model: nn.Module, name: str, optimizer: torch.optim.Optimizer, **options: Any) -> SparseTraining:
    usual = {"sparsity": 0.6, "total_steps": 9, "structure": structure_of(name)}
    if n_of_m(structure_of(name)):  # The ViT's first convolution has three inputs.
        usual |= {"sparsity": 0.5, "exclude": ["conv_proj.weight"] if hasattr(model, "conv_proj") else []}
    usual |= {"steps_per_epoch": 2} if name in ("pruning", "acdc") else {}
    return SparseTraining(model, optimizer, method(name), **(usual | options))


def optimizer_of(model: nn.Module, kind: str) -> torch.optim.Optimizer:
    if kind == "sgd":
        return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
    return torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)


@pytest.mark.parametrize("kind", [pytest.param("sgd", marks=pytest.mark.slow), "adamw"])
@pytest.mark.parametrize("name", METHODS)
def test_parts_train_as_parameters_of_their_own(name: str, kind: str) -> None:
    """Masks, weights and moments are those of three parameters, to the bit: budgets, plans and seeds are a layer's."""
    torch.manual_seed(0)
    packed = Packed()
    separate = Separate(packed)
    models = (packed, separate)
    optimizers = [optimizer_of(model, kind) for model in models]
    options = {} if name in ("pruning", "nm") else {"allocation": "erk"}
    runs = [
        sparse(packed, name, optimizers[0], split={"qkv.weight": 3}, **options),
        sparse(separate, name, optimizers[1], include=["qkv.*", "head.weight"], **options),
    ]
    assert {layer.name for layer in runs[0].masks} == {*(f"qkv.weight.{part}" for part in "qkv"), "head.weight"}
    for _ in range(8):
        x, y = torch.randn(6, 5, WIDTH), torch.randint(4, (6,))
        for model, optimizer in zip(models, optimizers, strict=True):
            optimizer.zero_grad()
            cross_entropy(model(x), y).backward()
            optimizer.step()
        for run in runs:
            run.check()
    assert torch.equal(packed.qkv.weight, torch.cat(separate.parts()))
    first, second = ({layer.name: layer for layer in run.masks} for run in runs)
    for layer_name, layer in first.items():
        assert torch.equal(layer.mask, second[layer_name].mask)
        ours, theirs = (dict(moments(one, by[layer_name])) for one, by in zip(optimizers, (first, second), strict=True))
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
        assert all(not moment[~layer.mask].any() for moment in ours.values())


def images(n: int, rank: int = 0) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(rank)
    return [
        (torch.randn(4, *SHAPE, generator=generator), torch.randint(4, (4,), generator=generator)) for _ in range(n)
    ]


def vit(**options: Any) -> nn.Module:
    torch.manual_seed(0)
    model = vit_tiny(**options)
    nn.init.normal_(model.heads.head.weight)  # type: ignore[union-attr] # torchvision begins with 0
    return model


def train(model: nn.Module, optimizer: torch.optim.Optimizer, batches: list[tuple[Tensor, Tensor]]) -> None:
    for x, y in batches:
        optimizer.zero_grad()
        cross_entropy(model(x), y).backward()
        optimizer.step()


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in ("dsr", "rigl", "deepr", "topkast") else pytest.mark.slow)
        for name in METHODS
    ],
)
def test_a_vit_by_every_method_resumes_exactly(name: str) -> None:
    """Stopped in the middle and continued with `state=`, it ends with the same bits."""
    data, ends = images(8), []
    for stop in (None, 3):
        model = vit()
        optimizer = optimizer_of(model, "adamw")
        run = sparse(model, name, optimizer)
        budgets = {layer.name: layer.active_weights for layer in run.masks}
        train(model, optimizer, data[:stop])
        if stop is not None:
            saved = copy.deepcopy((model.state_dict(), optimizer.state_dict(), run.state_dict()))
            model = vit()
            model.load_state_dict(saved[0])
            optimizer = optimizer_of(model, "adamw")
            optimizer.load_state_dict(saved[1])
            run = sparse(model, name, optimizer, state=saved[2])
            train(model, optimizer, data[stop:])
        run.check()
        if not run.method.trades and name not in ("pruning", "gmp", "srigl"):
            assert {layer.name: layer.active_weights for layer in run.masks} == budgets
        ends.append((mask_digest(run.masks), weight_digest(model, run.masks), active_digest(run.masks)))
    assert ends[0] == ends[1]


def test_query_key_and_value_have_budgets_and_names_of_their_own() -> None:
    model = vit()
    name = f"{attention(0)}.in_proj_weight"
    run = sparse(model, "rigl", optimizer_of(model, "sgd"), include=["encoder.*"], exclude=[f"{name}.k"])
    layers = {layer.name: layer for layer in run.masks}
    assert f"{name}.q" in layers and f"{name}.k" not in layers and name not in layers
    weight = dict(model.named_parameters())[name]
    zeros = [int((part == 0).sum()) for part in weight.detach().chunk(3)]
    assert zeros == [1024 - layers[f"{name}.q"].active_weights, 0, 1024 - layers[f"{name}.v"].active_weights]
    train(model, optimizer_of(model, "sgd"), images(1))  # of another optimizer: its step is seen too
    run.check()
    assert layers[f"{name}.v"].weight.data_ptr() == weight[64:].data_ptr()


def test_the_whole_name_stands_for_all_three() -> None:
    names = [f"in_proj_weight.{part}" for part in "qkv"]
    for options in ({"include": ["in_proj_weight"]}, {"exclude": ["out_proj.*"]}):
        model = nn.MultiheadAttention(8, 2)
        assert [layer.name for layer in sparse(model, "set", optimizer_of(model, "sgd"), **options).masks] == names
    mask = torch.rand(24, 8) < 0.5
    model = nn.MultiheadAttention(8, 2)
    run = sparse(model, "set", optimizer_of(model, "sgd"), sparsity=None, masks={"in_proj_weight": mask})
    assert torch.equal(torch.cat([layer.mask for layer in run.masks]), mask)


def test_one_part_keeps_it_whole() -> None:
    model = nn.MultiheadAttention(8, 2)
    run = sparse(model, "set", optimizer_of(model, "sgd"), split={"in_proj_weight": 1})
    assert [layer.name for layer in run.masks] == ["in_proj_weight", "out_proj.weight"]


def test_an_average_of_weights_gets_the_masks() -> None:
    model = vit()
    optimizer = optimizer_of(model, "sgd")
    run = sparse(model, "rigl", optimizer)
    average = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.5))
    for batch in images(4):
        train(model, optimizer, [batch])
        average.update_parameters(model)
    run.apply_masks(average)
    theirs = dict(average.module.named_parameters())
    for layer in run.masks:
        assert not layer.part(theirs[layer.spec.parameter])[~layer.mask].any()


def test_writing_outside_one_part_is_seen() -> None:
    model = vit()
    optimizer = optimizer_of(model, "sgd")
    run = sparse(model, "static", optimizer)
    name = f"{attention(1)}.in_proj_weight"
    layer = next(layer for layer in run.masks if layer.name == f"{name}.v")
    with torch.no_grad():
        layer.weight[~layer.mask] = 1.0
    assert run.masks.strays() == {f"{name}.v": layer.spec.weights - layer.active_weights}
    with pytest.raises(UserError, match=rf"{name}\.v has weights outside its mask"):
        train(model, optimizer, images(1))


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ({"in_proj_weight": 5}, "sparsity.split: in_proj_weight has 24 rows, which 5 equal parts do not make up"),
        ({"in_prj_weight": 3}, "sparsity.split: 'in_prj_weight' matches no weight that can be sparse"),
        ({"in_proj_weight": 0}, "split.in_proj_weight: is 0; input should be greater than or equal to 1"),
    ],
)
def test_bad_splits_are_refused(split: dict[str, int], message: str) -> None:
    model = nn.MultiheadAttention(8, 2)
    with pytest.raises(UserError) as caught:
        sparse(model, "static", optimizer_of(model, "sgd"), split=split)
    (line,) = caught.value.lines
    assert message in line


def on_ranks(worker: Worker, active: bool, exclude: list[str]) -> list[Any]:
    model = vit()
    parallel = DistributedDataParallel(model)
    optimizer = optimizer_of(model, "sgd")
    run = sparse(parallel, "rigl", optimizer, exclude=exclude, mask_in_backward=not active)
    hook = ActiveAllReduce(run.masks, active=False)
    hook.register(parallel)
    for batch in images(5, worker.rank):
        hook.active = active and not run.wants_whole_gradients
        train(parallel, optimizer, [batch])
    assert run.verify() == []
    return [mask_digest(run.masks), weight_digest(model, run.masks), hook.bytes_sent]


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_agree_and_active_gradients_are_those_of_all(ranks: int) -> None:
    """The first block's `k` is dense, so that its weight travels in three pieces."""
    exclude = [f"{attention(0)}.in_proj_weight.k"]
    dense, active = (run_distributed(on_ranks, ranks, sends, exclude) for sends in (False, True))
    assert all(one[:2] == many[0][:2] for many in (dense, active) for one in many)
    assert active[0][2] < dense[0][2]
    if ranks == 2:  # With more the order of sums differs.
        assert active[0][:2] == dense[0][:2]
