"""The contract that every method keeps, over the registry x granularity x density x optimizer."""

from __future__ import annotations

import copy
import functools
import importlib
import pkgutil
from collections.abc import Sequence
from itertools import product
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from benchmarks.parts.gpu.waits import host_waits
from dynsparse import SparseTraining, methods
from dynsparse.errors import UserError
from dynsparse.masks import MaskSet, SparseLayer, sparse_layers
from dynsparse.masks.allocation import allocated
from dynsparse.masks.granularity import Kind
from dynsparse.masks.optimizer_state import moments
from dynsparse.masks.selection import Cut, cuts_smallest
from dynsparse.masks.structure import n_of_m
from dynsparse.masks.tying import tie
from dynsparse.methods import Aim, AnyMethod, Clock, Method, MethodSettings
from dynsparse.methods.base import in_parts
from dynsparse.methods.dynamic import DynamicSettings, ScopedSettings
from dynsparse.methods.reserved import ReservedSettings
from dynsparse.methods.rigl import Rigl, RiglSettings
from dynsparse.optimizers import AdamWSettings, SgdSettings
from dynsparse.reallocation import Reallocator
from dynsparse.runtime import Worker
from dynsparse.shrinking.channels import channel_groups
from tests.ranks import run_distributed

REGISTRY: dict[str, type[MethodSettings]] = {
    get_args(member.model_fields["name"].annotation)[0]: member for member in get_args(get_args(AnyMethod)[0])
}
IN_TURN = {
    "name": "alternating",
    "warmup_epochs": 1,
    "sparse_epochs": 1,
    "dense_epochs": 1,
    "last_sparse_epoch": 3,
}
ONCE = {**IN_TURN, "last_sparse_epoch": 1}
"""Sparse from the second epoch on: a course that fits into the shortest runs of the tests."""
#: Settings under which a method has something to do in the eight steps of a test: four events, or one a step.
BUSY: dict[str, dict[str, Any]] = {
    "acdc": {"density": ONCE},
    "chase": {"period": 2, "channels_until": 0.4},
    "chts": {"period": 2},
    "deepr": {"eta": 1.0, "temperature": 1e-4},
    "dsr": {"period": 2, "initial_threshold": 0.05, "target_moves": 20},
    "gmp": {"period": 2, "density": {"name": "cubic", "end": 0.5}},
    "granet": {"period": 2, "density": {"name": "cubic", "start": 0.3, "end": 0.5}},
    "mest": {"period": 2},
    "nm": {"period": 2},
    "pruning": {"after_epoch": 0, "every_epochs": 1, "iterations": 4, "target_conv": 0.6, "target_fc": 0.7},
    "rigl": {"period": 2, "until": 1.0},
    "set": {"period": 2, "fraction": 0.2},
    "sparse_momentum": {"period": 2},
    "srigl": {"period": 2, "until": 1.0},
    "topkast": {"period": 2},
}


BASES = (MethodSettings, DynamicSettings, ScopedSettings, ReservedSettings)
STRUCTURES = {"nm": "1:2", "srigl": "fan_in"}
"""Methods that need a structure."""
GRANULARITIES = {"chase": (2, 3, 4), "nm": (4,), "srigl": (2, 3, 4)}
"""Granularities that a method can work with, where not all. A whole filter has no inputs of its own."""
RESERVED = ("nm", "topkast")
"""Methods whose weights have values while they are inactive."""


def structure_of(name: str) -> str:
    return STRUCTURES.get(name, "free")


def sparsity_section(name: str) -> dict[str, Any]:
    """Keys of a config's `sparsity` that a method needs: a structure, and the zeros that N:M leaves."""
    pattern = n_of_m(structure_of(name))
    shares = {} if pattern is None else dict.fromkeys(KINDS, 1 - pattern[0] / pattern[1])
    return {"structure": structure_of(name), **shares}


KINDS: tuple[Kind, ...] = ("conv", "fc")


class GrowByGradient(Method):
    """Exercises what no registered method does yet: drop a fifth, grow where the gradient is largest."""

    def is_due(self, clock: Clock) -> bool:
        return clock.step % 2 == 0

    def drop_cuts(self, scores: Any, clock: Clock) -> list[Cut]:
        return cuts_smallest(scores, [layer.numel() // 5 for layer in scores])

    def grow_scores(self, layer: SparseLayer) -> Tensor:
        assert layer.weight.grad is not None
        gradient = layer.weight.grad.abs().reshape(layer.spec.units, layer.spec.unit_size)
        return gradient.mean(1)


def settings_named(name: str, sparsity: float, **options: Any) -> MethodSettings:
    """Settings under which something happens, of a run that is to end with this sparsity."""
    settings = REGISTRY[name](name=name, **{**BUSY.get(name, {}), **options})
    return settings.knowing(Aim({"conv": sparsity, "fc": sparsity}))


def method_named(name: str, sparsity: float = 0.5, **options: Any) -> Method:
    return GrowByGradient() if name == "(by gradient)" else settings_named(name, sparsity, **options).build()


STEPS = 8


class Run:
    """A small convolutional network under one method, with its own data; on several ranks each has its share."""

    def __init__(
        self,
        name: str,
        granularity: Any,
        sparsity: float,
        optimizer: str,
        worker: Worker | None = None,
        structure: str | None = None,
        exclude: Sequence[str] = (),
        **options: Any,
    ) -> None:
        torch.manual_seed(3)
        self.model = self.network()
        structure = structure or structure_of(name)
        specs = sparse_layers(self.model, granularity=granularity, structure=structure, exclude=exclude)
        settings = settings_named(name, sparsity, **options) if name in REGISTRY else None
        starts = settings.starts if settings else "sparse"
        first = dict.fromkeys(KINDS, 0.0 if starts == "dense" else sparsity)
        counts = allocated("uniform", specs, settings.first_sparsity(first) if settings else first)
        if starts == "tied":
            for spec in specs:
                tie(self.model, spec, counts[spec.name], seed=5, rescale_gradient=True)
            specs = []
        self.masks = MaskSet(self.model, specs, dict(counts), seed=5, apply=False)
        if optimizer == "sgd":
            self.optimizer = SgdSettings(weight_decay=1e-2).build(self.model.parameters(), lr=0.1)
        else:
            self.optimizer = AdamWSettings(name="adamw").build(self.model.parameters(), lr=1e-2)
        self.method = method_named(name, sparsity, **options)
        if self.method.wants_channels:
            self.method.couple(channel_groups(self.model, (2, 6, 6), name), specs)
        self.method.prepare(self.masks)
        self.masks.apply_to_weights()
        self.reallocator = Reallocator(self.model, self.masks, self.method, self.optimizer, seed=11)
        self.worker = worker or Worker()
        self.parallel = DistributedDataParallel(self.model) if worker else self.model
        self.events = self.moved = 0
        self.active_gradients = False

    def network(self) -> nn.Module:
        """Build a network for 2 x 6 x 6 images."""
        return nn.Sequential(
            nn.Conv2d(2, 6, 3, padding=1, bias=False),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.Conv2d(6, 8, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(8 * 9, 5),
        )

    def step(self, number: int) -> None:
        generator = torch.Generator().manual_seed(number * 100 + self.worker.rank)
        images = torch.randn(8, 2, 6, 6, generator=generator)
        labels = torch.randint(5, (8,), generator=generator)
        nn.functional.cross_entropy(self.parallel(images), labels).backward()
        clock = Clock(number, (number - 1) // 2, steps_per_epoch=2, epochs=STEPS)  # The first half of a run.
        if self.active_gradients and not self.reallocator.wants_whole_gradients(clock):
            self.masks.mask_gradients()
        seen = self.reallocator.before_step(clock)
        self.optimizer.step()
        self.optimizer.zero_grad()
        report = self.reallocator.after_step(clock, seen)
        if report is not None:
            self.events += 1
            self.moved += sum(report.dropped.values())

    def save(self) -> dict[str, Any]:
        parts = {"model": self.model, "masks": self.masks, "optimizer": self.optimizer, "method": self.method}
        return {name: copy.deepcopy(part.state_dict()) for name, part in parts.items()}

    def load(self, saved: dict[str, Any]) -> None:
        self.model.load_state_dict(saved["model"])
        self.masks.load_state_dict(saved["masks"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.method.load_state_dict(saved["method"])


def assert_zero_outside(run: Run) -> None:
    for layer in run.masks:
        outside = ~layer.mask
        assert not layer.weight.detach()[outside].any(), layer.name
        for key, moment in moments(run.optimizer, layer):
            assert not moment[outside].any(), f"{layer.name} {key}"


NAMES = [*sorted(REGISTRY), "(by gradient)"]
SETTINGS = list(product([1, 2, 3, 4], [0.0, 0.5, 0.9], ["sgd", "adamw"]))
SHORT = [(4, 0.0, "sgd"), (4, 0.5, "adamw"), (4, 0.9, "sgd"), (2, 0.0, "adamw"), (2, 0.5, "sgd"), (2, 0.9, "adamw")]
"""Kernel rows and filters (3, 1) are units as slices and single weights are (2, 4)."""
CASES = [
    pytest.param(name, *settings, marks=[] if settings in SHORT else pytest.mark.slow)
    for name in NAMES
    for settings in SETTINGS
    if settings[0] in GRANULARITIES.get(name, (1, 2, 3, 4))
]


def assert_same(a: Run, b: Run) -> None:
    """Weights, masks, optimizer and method state, to the bit."""
    for ours, theirs in zip(_leaves(a.save()), _leaves(b.save()), strict=True):
        assert torch.equal(ours, theirs) if isinstance(ours, Tensor) else ours == theirs


def _leaves(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [leaf for item in value.values() for leaf in _leaves(item)]
    return [leaf for item in value for leaf in _leaves(item)] if isinstance(value, list) else [value]


@pytest.mark.parametrize(("name", "granularity", "sparsity", "optimizer"), CASES)
def test_contract(name: str, granularity: int, sparsity: float, optimizer: str) -> None:
    """Budget, zero outside the mask, determinism, resume."""
    run, twin = (Run(name, granularity, sparsity, optimizer) for _ in range(2))
    largest_unit = max((layer.spec.unit_size for layer in run.masks), default=1)
    rows = sum(layer.spec.shape[0] * layer.spec.unit_size for layer in run.masks)
    changes = name == "pruning" or run.method.settings.density is not None if name in BUSY else False
    for number in range(1, STEPS + 1):
        before = run.masks.active_weights
        run.step(number)
        twin.step(number)
        if number == STEPS // 2 + 1:  # In mid-epoch, one step after an event.
            resumed = Run(name, granularity, sparsity, optimizer)
            resumed.load(run.save())
        elif number > STEPS // 2 + 1:
            resumed.step(number)
        assert abs(run.masks.active_weights - run.masks.budget) < largest_unit
        lost = before - run.masks.active_weights
        assert changes or abs(lost) < largest_unit or (name == "srigl" and 0 <= lost < rows)
        run.masks.check()
        assert_zero_outside(run)
    assert_same(run, twin)
    assert_same(run, resumed)
    if name in BUSY:
        assert run.events == {"deepr": STEPS, "acdc": 1}.get(name, 4)
        assert (run.moved > 0) == (sparsity > 0 or name == "pruning"), "in a full network nothing can move"
    if changes:
        target = 0.65 if name == "pruning" else sparsity
        assert abs(run.masks.sparsity - target) < 0.05 + largest_unit / run.masks.weights


@pytest.mark.parametrize("density", [0.01, 0.1, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("pruning", "tied")])
def test_layers_that_do_not_trade_keep_their_budgets(name: str, density: float) -> None:
    """Budgets hold at any density up to 1, whatever moves; where the density changes it ends at what was asked for."""
    run = Run(name, 4, 1 - density, "sgd")
    before = [layer.active_units for layer in run.masks]
    for number in range(1, STEPS + 1):
        run.step(number)
        now = [layer.active_units for layer in run.masks]
        if run.method.trades or name == "srigl":
            assert sum(now) <= run.masks.weights
        elif not hasattr(run.method, "settings") or getattr(run.method.settings, "density", None) is None:
            assert now == before
    specs = [layer.spec for layer in run.masks]
    asked = allocated("uniform", specs, dict.fromkeys(KINDS, (1 - density) * (name != "dense")))
    if run.method.trades:
        assert sum(now) == sum(asked.values())
    elif name != "srigl":
        assert now == list(asked.values())


@pytest.mark.parametrize("name", NAMES)
def test_gradients_outside_the_masks_are_wanted_or_do_not_matter(name: str) -> None:
    """A run with gradients of active weights alone on all other steps is the same."""
    run, twin = Run(name, 4, 0.5, "sgd"), Run(name, 4, 0.5, "sgd")
    twin.active_gradients = True
    for number in range(1, STEPS + 1):
        run.step(number)
        twin.step(number)
    assert_same(run, twin)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("deepr", "tied")])
def test_a_step_that_the_device_skips_leaves_nothing_learnt(name: str, optimizer: str) -> None:
    """Methods name all that they learn: with a flag set, their state has the bits of before. Nobody waits.

    DeepR moves weights in each step, and tied networks have no masks.
    """
    run = Run(name, 4, 0.5, optimizer)
    run.step(1)
    clock = Clock(3, 1, steps_per_epoch=2, epochs=STEPS)
    assert not run.reallocator.acts_at(clock)
    before = run.save()
    for layer in run.masks:
        layer.weight.grad = torch.full_like(layer.weight, torch.nan)
    with host_waits(torch.device("cpu")) as waits:
        seen = run.reallocator.look(clock, run.masks)
        run.reallocator.learn(seen, run.masks, unless=torch.tensor(True))
        run.reallocator.after_step(clock, seen)
    assert waits == []
    for ours, theirs in zip(_leaves(run.save()), _leaves(before), strict=True):
        assert torch.equal(ours, theirs) if isinstance(ours, Tensor) else ours == theirs


def test_a_flag_that_is_not_set_changes_nothing() -> None:
    for name in ("sparse_momentum", "topkast"):
        run, twin = (Run(name, 4, 0.5, "adamw") for _ in range(2))
        run.step(1)
        twin.step(1)
        clock = Clock(3, 1, steps_per_epoch=2, epochs=STEPS)
        for one, unless in ((run, torch.tensor(False)), (twin, None)):
            for layer in one.masks:
                layer.weight.grad = torch.ones_like(layer.weight)
            seen = one.reallocator.look(clock, one.masks)
            one.reallocator.learn(seen, one.masks, unless=unless)
            one.reallocator.after_step(clock, seen)
        assert_same(run, twin)


class Learning(Method):
    """Keeps the last gradient of each layer, in a new tensor each time."""

    def prepare(self, masks: MaskSet) -> None:
        self.last = {layer.name: torch.zeros_like(layer.weight) for layer in masks}

    def observe(self, layer: SparseLayer, gradient: Tensor) -> None:
        self.last[layer.name] = gradient


class Named(Learning):
    def learnt(self, layer: SparseLayer) -> Sequence[Tensor]:
        return [self.last[layer.name]]


class LearningMore(Named):
    def observe(self, layer: SparseLayer, gradient: Tensor) -> None:
        super().observe(layer, gradient)


class NamedAnew(LearningMore):
    def learnt(self, layer: SparseLayer) -> Sequence[Tensor]:
        return super().learnt(layer)


def test_names_hold_for_the_observe_that_they_were_written_for() -> None:
    assert [kind().names_learnt for kind in (Learning, Named, LearningMore, NamedAnew)] == [False, True, False, True]


def test_what_is_named_may_be_other_tensors_each_time() -> None:
    model = nn.Linear(3, 2, bias=False)
    masks = MaskSet(model, sparse_layers(model), {"weight": 3}, seed=1)
    method = Named()
    method.prepare(masks)
    reallocator = Reallocator(model, masks, method)
    for value, flag, expected in ((2.0, None, 2.0), (torch.nan, True, 2.0), (5.0, False, 5.0)):
        model.weight.grad = torch.full((2, 3), value)
        seen = reallocator.look(Clock(1, 0), masks)
        reallocator.learn(seen, masks, unless=None if flag is None else torch.tensor(flag))
        assert torch.equal(method.last["weight"], torch.full((2, 3), expected))


@pytest.mark.parametrize("name", sorted(set(BUSY) - {"pruning", *RESERVED}))
def test_new_weights_may_begin_as_the_first_did(name: str) -> None:
    """`new_weights: initial`: what grows is not 0, stays in the mask, and resumes."""
    run = Run(name, 4, 0.5, "sgd", new_weights="initial")
    for number in range(1, STEPS + 1):
        run.step(number)
        run.masks.check()
        assert_zero_outside(run)
    assert run.moved > 0
    assert all(bool(layer.values().ne(0).all()) for layer in run.masks)


def on_a_rank(worker: Worker, name: str, every: int) -> list[dict[str, Any]]:
    states = []
    possible = [one for one in SETTINGS if one[0] in GRANULARITIES.get(name, (1, 2, 3, 4))]
    for settings in possible[::every]:
        run = Run(name, *settings, worker=worker)
        for number in range(1, STEPS + 1):
            run.step(number)
        saved = run.save()
        # BatchNorm statistics are each rank's own.
        saved["model"] = {key: value for key, value in saved["model"].items() if "running" not in key}
        states.append(saved)
    return states


@pytest.mark.parametrize("every", [5, pytest.param(1, marks=pytest.mark.slow)], ids=["some settings", "all settings"])
@pytest.mark.parametrize("name", NAMES)
def test_ranks_agree(name: str, every: int) -> None:
    """Two ranks with different samples hold the same weights, masks, optimizer and method state, to the bit."""
    for ours, theirs in zip(*run_distributed(on_a_rank, 2, name, every), strict=True):
        for a, b in zip(_leaves(ours), _leaves(theirs), strict=True):
            assert torch.equal(a, b) if isinstance(a, Tensor) else a == b


def test_every_method_is_in_the_registry() -> None:
    """Each settings class in a file of dynsparse/methods/ can be named in a config."""
    found: set[type] = set()
    for module in pkgutil.iter_modules(methods.__path__):
        members = vars(importlib.import_module(f"dynsparse.methods.{module.name}")).values()
        found |= {m for m in members if isinstance(m, type) and issubclass(m, MethodSettings) and m not in BASES}
    assert found == set(REGISTRY.values())
    assert {"dense", "dsr", "static"} <= set(REGISTRY)


def test_growth_by_score_takes_the_largest_free() -> None:
    """One layer 1 x 8, worked by hand.

    weights   .5  .4  .3  .2  .1   0   0   0    drop a fifth of five: the .1 at position 4
    gradient   9   9   9   9   9   1  -3   2    the largest free is |-3| at position 6;
                                                position 4 has a larger one, but was dropped just now
    """
    model = nn.Linear(8, 1, bias=False)
    masks = MaskSet(model, sparse_layers(model), {"weight": 8})
    layer = masks.layers[0]
    masks.set_active(layer, torch.arange(5))
    masks.budget = 5
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[0.5, 0.4, 0.3, 0.2, 0.1, 0, 0, 0]]))
    layer.weight.grad = torch.tensor([[9.0, 9, 9, 9, 9, 1, -3, 2]])
    reallocator = Reallocator(model, masks, GrowByGradient(), torch.optim.SGD(model.parameters(), lr=1.0))
    seen = reallocator.before_step(Clock(2, 0))
    reallocator(Clock(2, 0), seen)
    assert layer.active.tolist() == [0, 1, 2, 3, 6]


class NamedLate(Named):
    """Names tensors of some number, shape and dtype at first, and others once it has observed."""

    def __init__(self, first: Sequence[Tensor]) -> None:
        self.first = first

    def prepare(self, masks: MaskSet) -> None:
        self.last: dict[str, Tensor] = {}

    def observe(self, layer: SparseLayer, gradient: Tensor) -> None:
        self.last[layer.name] = gradient

    def learnt(self, layer: SparseLayer) -> Sequence[Tensor]:
        return [self.last[layer.name]] if layer.name in self.last else self.first


@pytest.mark.parametrize("flag", [None, torch.tensor(False)], ids=["known", "open"])
@pytest.mark.parametrize("first", [[], [torch.zeros(3, 2)], [torch.zeros(2, 3).double()]], ids=len)
def test_what_is_named_keeps_its_number_shapes_and_dtypes(first: list[Tensor], flag: Tensor | None) -> None:
    """A device could not give it its bits back."""
    model = nn.Linear(3, 2, bias=False)
    masks = MaskSet(model, sparse_layers(model), {"weight": 3}, seed=1)
    method = NamedLate(first)
    method.prepare(masks)
    reallocator = Reallocator(model, masks, method)
    model.weight.grad = torch.ones(2, 3)
    seen = reallocator.look(Clock(1, 0), masks)
    with pytest.raises(UserError) as raised:
        reallocator.learn(seen, masks, unless=flag)
    assert str(raised.value) == (
        "learnt of NamedLate names other tensors of weight after observe than before: give it as many, of the same "
        "shapes and dtypes, from prepare on"
    )


class Relative(GrowByGradient):
    """Drops by a share of all weights, which is 0/0 in a layer of zeros."""

    def drop_scores(self, layer: SparseLayer) -> Tensor:
        values = layer.values().abs()
        return values / values.sum()


@pytest.mark.parametrize("value", [0.0, torch.nan])
def test_scores_that_are_nan_are_told_from_weights_that_are(value: float) -> None:
    model = nn.Linear(8, 4, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    sparse = SparseTraining(model, optimizer, Relative(), sparsity=0.5, total_steps=4)
    masks = sparse.state_dict()["masks"]
    with torch.no_grad():
        model.weight[sparse.masks.layers[0].mask] = value
    model(torch.ones(1, 8)).sum().backward()
    optimizer.step()
    model(torch.ones(1, 8)).sum().backward()
    with pytest.raises(UserError) as raised:
        optimizer.step()
    assert str(raised.value) == (
        "weight has weights that are NaN at step 2: training has diverged; lower the learning rate, or resume from an "
        "earlier checkpoint"
        if value
        else "drop_scores of Relative gives NaN for weight at step 2, or other scores than for the plan, and its "
        "weights are numbers: let it return the same numbers each time"
    )
    assert str(sparse.state_dict()["masks"]) == str(masks), "nothing has moved"


@pytest.mark.parametrize("name", sorted(BUSY))
def test_weights_that_are_nan_end_an_event_by_any_method(name: str) -> None:
    run = Run(name, 4, 0.5, "sgd")

    def train() -> None:
        for number in range(1, STEPS + 1):
            with torch.no_grad():
                for layer in run.masks:
                    layer.put_(layer.weight, layer.active[:1], torch.full((1,), torch.nan))
            run.step(number)

    with pytest.raises(UserError, match=r"^0\.weight has weights that are NaN at step \d: training has diverged"):
        train()


class Recording(GrowByGradient):
    """Grows by gradient, and keeps a record as well: the number of gradients of each layer."""

    def __init__(self) -> None:
        self.seen: dict[str, int] = {}
        self.known: list[int] = []

    def observe(self, layer: SparseLayer, gradient: Tensor) -> None:
        self.seen[layer.name] = self.seen.get(layer.name, 0) + 1

    def grow_scores(self, layer: SparseLayer) -> Tensor:
        self.known.append(self.seen.get(layer.name, 0))
        return super().grow_scores(layer)


class ByRecord(Recording):
    """Grows by its record of the last gradient alone."""

    @property
    def grows_by_gradient(self) -> bool:
        return False

    def observe(self, layer: SparseLayer, gradient: Tensor) -> None:
        super().observe(layer, gradient)
        self.last = gradient

    def grow_scores(self, layer: SparseLayer) -> Tensor:
        self.known.append(self.seen[layer.name])
        return layer.unit_means(self.last.abs())


@pytest.mark.parametrize(("kind", "known"), [(GrowByGradient, None), (Recording, 1), (ByRecord, 2)])
def test_growth_sees_whole_gradients_beside_a_record(kind: type[Method], known: int | None) -> None:
    """The largest gradients outside the mask grow. What was observed is of the steps before, or of this one too."""
    torch.manual_seed(0)
    model, method = nn.Linear(8, 4, bias=False), kind()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    sparse = SparseTraining(model, optimizer, method, sparsity=0.5, total_steps=4)
    (layer,) = sparse.masks
    for _ in range(2):
        free = layer.inactive.view(-1).clone()
        optimizer.zero_grad()
        model(torch.randn(8, 8)).square().mean().backward()
        largest = (layer.weight.grad.abs().view(-1) * free).topk(3).indices  # type: ignore[union-attr]
        optimizer.step()
    grown = (free & layer.mask.view(-1)).nonzero().squeeze(1)
    assert grown.tolist() == largest.sort().values.tolist()
    assert known is None or method.known == [known]  # type: ignore[attr-defined]


def test_a_rule_works_in_parts_only_as_far_as_it_says_so() -> None:
    """An override that is not marked, what wraps one, and soft draws get whole layers."""
    marked = {name for name in REGISTRY if method_named(name).works_in_parts}
    assert marked == {"acdc", "dsr", "gmp", "granet", "pruning", "rigl", "set", "srigl"}  # The last has a structure.

    class Sorting(Rigl):
        def cuts_of(self, scores: Sequence[Tensor], fraction: float) -> Sequence[Cut]:
            return super().cuts_of(scores, fraction)

    class Soft(Rigl):
        def soft_drop_at(self, clock: Clock) -> int:
            return 2

    class Wrapping(Rigl):
        @functools.wraps(Rigl.drop_cuts)
        def drop_cuts(self, scores: Sequence[Tensor], clock: Clock) -> Sequence[Cut]:
            return super().drop_cuts(scores, clock)

    class Marking(Rigl):
        @in_parts
        def drop_cuts(self, scores: Sequence[Tensor], clock: Clock) -> Sequence[Cut]:
            return super().drop_cuts(scores, clock)

    settings = RiglSettings(name="rigl")
    found = [kind(settings).works_in_parts for kind in (Sorting, Soft, Wrapping, Marking)]
    assert found == [False, False, False, True]
    assert not Rigl(RiglSettings(name="rigl", soft_drop=2)).works_in_parts
    assert not Rigl(RiglSettings(name="rigl", soft_growth=2)).works_in_parts
