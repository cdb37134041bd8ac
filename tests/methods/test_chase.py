"""Chase worked by hand; channels that die for good under the contract, in residual networks and in the front door."""

from __future__ import annotations

import sys
from fractions import Fraction
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor, nn

from dynsparse import SparseTraining
from dynsparse.config import loading
from dynsparse.errors import UserError
from dynsparse.masks import MaskSet, sparse_layers
from dynsparse.masks.channels import ChannelGroup, Channels, Lines
from dynsparse.methods import Clock
from dynsparse.methods.base import require_method
from dynsparse.methods.chase import Chase, ChaseSettings
from dynsparse.reallocation import Reallocator
from dynsparse.runtime import Worker
from dynsparse.shrinking import compact
from dynsparse.shrinking.channels import channel_groups
from dynsparse.training.building import build_trainer
from pipelines.common.extras import install_command
from tests.methods.stepping import stepped
from tests.methods.test_contract import STEPS, Run
from tests.training.runs import ROOT

SOFT: dict[str, Any] = {"density": {"name": "sigmoid", "start": 0.3, "begin": 0.1, "end": 0.4}, "channel_floor": 0.1}


def chase(**options: Any) -> Chase:
    return ChaseSettings(name="chase", **options).build()


def reallocator_of(model: nn.Module, masks: MaskSet, method: Chase, shape: tuple[int, ...]) -> Reallocator:
    method.couple(channel_groups(model, shape, "chase"), [layer.spec for layer in masks])
    method.prepare(masks)
    return Reallocator(model, masks, method, torch.optim.SGD(model.parameters(), lr=1.0))


def event(reallocator: Reallocator, step: int) -> None:
    clock = Clock(step, 0, steps_per_epoch=100, epochs=1)
    assert reallocator.after_step(clock, reallocator.before_step(clock)) is not None


FIRST = [[0.9, 0], [0.1, 0], [0.5, 0.6], [0, 0.4]]
SECOND = [[0.7, 0.2, 0, 0.45], [0, 0.3, 0.8, 0]]


def test_by_hand() -> None:
    """One of four channels dies: the mean |w| of their writers are .45, .05, .55 and .2, so that 1 is the lowest.

    first .9  0   gradient  0  1     second  .7 .2 0  .45   gradient  0 9 -4 0
          .1  0             9  9              0 .3 .8  0              3 9  0 2
          .5 .6             0  0
           0 .4             5  8
    .1, .2 and .3 die with the channel. A seventh of the other seven is one, .4. Four grow: not where channel 1 was,
    and not in the place of .4, but 5, -4, 3 and 2. The 1 is left.
    """
    model = nn.Sequential(nn.Linear(2, 4, bias=False), nn.ReLU(), nn.Linear(4, 2, bias=False))
    weights = {"0.weight": torch.tensor(FIRST), "2.weight": torch.tensor(SECOND)}
    active = {name: weight.flatten().nonzero().squeeze(1) for name, weight in weights.items()}
    masks = MaskSet(model, sparse_layers(model), active)
    with torch.no_grad():
        for layer in masks:
            layer.weight.copy_(weights[layer.name])
    gradients = [[[0.0, 1], [9, 9], [0, 0], [5, 8]], [[0.0, 9, -4, 0], [3, 9, 0, 2]]]
    for layer, gradient in zip(masks, gradients, strict=True):
        layer.weight.grad = torch.tensor(gradient)
    method = chase(period=1, fraction=0.15, channel_sparsity=0.25, channels_until=0.01)
    event(reallocator_of(model, masks, method, (2,)), 1)
    assert method.channels.dead.tolist() == [False, True, False, False]
    assert [layer.active.tolist() for layer in masks] == [[0, 4, 5, 6], [0, 2, 3, 4, 6, 7]]
    assert method.scalars() == {"channel_sparsity": 0.25}
    assert method.state_dict() == {"dead": {"0": torch.tensor([0b01000000], dtype=torch.uint8)}, "gone": {"0": 0}}
    masks.check()


def group_of(size: int) -> ChannelGroup:
    """Make a group that one layer writes and one reads."""
    numbers = torch.arange(size)
    return ChannelGroup("0", size, [Lines("0.weight", numbers, numbers)], [Lines("2.weight", numbers, numbers)])


def test_the_account_goes_on_in_a_network_without_the_dead() -> None:
    """Channels 1 and 3 of four are dead, and 1 is taken out: one of three is dead, and two are lost in all."""
    channels = Channels([group_of(4)])
    channels.dead = torch.tensor([False, True, False, True])
    state = channels.state_after({"0.weight": torch.tensor([0, 2, 3])})
    assert state["gone"] == {"0": 1}
    smaller = (
        [Lines("0.weight", torch.arange(3), torch.arange(3))],
        [Lines("2.weight", torch.arange(3), torch.arange(3))],
    )
    after = Channels([ChannelGroup("0", 3, *smaller)])
    after.load_state_dict(state)
    assert after.dead.tolist() == [False, False, True]
    assert (after.lost, after.first_sizes) == (channels.lost, channels.first_sizes) == (2, [4])
    assert after.state_after({})["gone"] == {"0": 1}, "nothing more has gone"
    with pytest.raises(ValueError, match="other groups"):
        Channels([group_of(30)]).load_state_dict(state)


def test_a_part_of_each_group_stays() -> None:
    """8 of 8 + 8 channels are to die. All of the first group are weakest, of which 8 (1 - 1/2) 1/4 = 1 stays."""
    model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    diagonal, last_column = range(0, 64, 9), range(7, 63, 8)
    active = {"0.weight": range(0, 24, 3), "2.weight": sorted({*diagonal, *last_column}), "4.weight": range(8)}
    units = {name: torch.tensor(list(numbers)) for name, numbers in active.items()}
    masks = MaskSet(model, sparse_layers(model), units)
    first, second, _ = masks
    with torch.no_grad():
        first.weight.fill_(0.001)[7] = 0.002
        second.weight.fill_(0.5)[3] = 0.1
    masks.apply_to_weights()
    for layer in masks:
        layer.weight.grad = torch.ones_like(layer.weight)
    method = chase(period=1, channel_sparsity=0.5, channel_floor=0.25, channels_until=0.01)
    event(reallocator_of(model, masks, method, (3,)), 1)
    dead = dict(
        zip([g.name for g in method.channels.groups], method.channels.by_group(method.channels.dead), strict=True)
    )
    assert dead["0"].nonzero().flatten().tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert dead["2"].nonzero().flatten().tolist() == [3]
    masks.check()


def test_the_number_of_dead_channels_goes_by_the_cubic() -> None:
    """40 of 100 after half of the run: 1 - 0.8^3 = 0.488 of them at a tenth, 1 - 0.5^3 = 0.875 at a quarter."""
    method = chase(channels_until=0.5)
    model = nn.Sequential(nn.Linear(2, 100), nn.ReLU(), nn.Linear(100, 2))
    method.couple(channel_groups(model, (2,), "chase"), sparse_layers(model))
    assert [method._goal(progress) for progress in (0, 0.1, 0.25, 0.5, 0.9)] == [0, 20, 35, 40, 40]
    assert method.notes == ["chase: 40 of 100 channels are to die by the end"]


@pytest.mark.parametrize("options", [{}, {"scope": "layer"}, SOFT], ids=["global", "layer", "soft bound"])
def test_dead_channels_stay_dead(options: dict[str, Any]) -> None:
    """No weight of a dead channel is active at any step, through resumes; as many are dead as are to be."""
    dead = torch.zeros(14, dtype=torch.bool)
    for number, run in stepped("chase", 4, 0.8, **options):
        method = run.method
        assert isinstance(method, Chase)
        assert not (dead & ~method.channels.dead).any()
        dead = method.channels.dead.clone()
        for layer in run.masks:
            closed = method.closed(layer)
            assert closed is None or not closed[layer.active].any()
        if number % 2 == 0 and options is not SOFT:  # There a denser network has no room yet.
            assert int(dead.sum()) == method._goal(number / (2 * STEPS))
    assert int(dead.sum()) == round(0.4 * 14)


WIDTHS = st.lists(st.integers(1, 12), min_size=3, max_size=5)


@settings(deadline=None, max_examples=40)
@given(
    widths=WIDTHS,
    densities=st.lists(st.sampled_from([0.05, 0.3, 0.6, 0.9, 1.0]), min_size=4, max_size=4),
    share=st.sampled_from([0.3, 0.6, 0.95]),
    floor=st.sampled_from([0.0, 0.5, 1.0]),
    scope=st.sampled_from(["global", "layer"]),
    seed=st.integers(0, 1000),
)
def test_budgets_are_exact_whatever_dies(
    widths: list[int], densities: list[float], share: float, floor: float, scope: Any, seed: int
) -> None:
    """No weight is lost at any width and density, and no layer or group loses its last."""
    torch.manual_seed(seed)
    model = nn.Sequential(*(nn.Linear(a, b) for a, b in pairwise(widths)))
    specs = sparse_layers(model)
    counts = {spec.name: max(1, round(one * spec.units)) for spec, one in zip(specs, densities, strict=False)}
    masks = MaskSet(model, specs, counts, seed=seed)
    method = chase(period=1, channel_sparsity=share, channel_floor=floor, channels_until=0.02, scope=scope)
    reallocator = reallocator_of(model, masks, method, (widths[0],))
    for step in range(1, 4):
        for layer in masks:
            with torch.no_grad():
                layer.weight.copy_(torch.randn(layer.spec.shape))
            layer.weight.grad = torch.randn(layer.spec.shape)
        masks.apply_to_weights()
        event(reallocator, step)
        masks.check()
        assert masks.active_weights == sum(counts.values())
        assert scope == "global" or {layer.name: layer.active_units for layer in masks} == counts
        for layer in masks:
            closed = method.closed(layer)
            assert closed is None or not closed[layer.active].any()
    kept = [int((~dead).sum()) for dead in method.channels.by_group(method.channels.dead)]
    least = (1 - Fraction(str(share))) * Fraction(str(floor))
    assert all(n >= max(1, int(least * group.size)) for n, group in zip(kept, method.channels.groups, strict=True))


class Residual(nn.Module):
    """A stem, two blocks whose outputs are added, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1, bias=False)
        self.inner = nn.ModuleList(nn.Conv2d(8, 12, 3, padding=1, bias=False) for _ in range(2))
        self.norms = nn.ModuleList(nn.BatchNorm2d(12) for _ in range(2))
        self.outer = nn.ModuleList(nn.Conv2d(12, 8, 3, padding=1, bias=False) for _ in range(2))
        self.fc = nn.Linear(8, 4)

    def forward(self, images: Tensor) -> Tensor:
        images = self.stem(images)
        for inner, norm, outer in zip(self.inner, self.norms, self.outer, strict=True):
            images = images + outer(torch.relu(norm(inner(images))))
        logits: Tensor = self.fc(images.mean((2, 3)))
        return logits


SHAPE = (1, 6, 6)


def trained(model: nn.Module, steps: int = 10, **options: Any) -> SparseTraining:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    method = {"name": "chase", "period": 1, "channels_until": 0.5, **options.pop("method", {})}
    run = SparseTraining(model, optimizer, method, sparsity=0.8, total_steps=10, input_shape=SHAPE, **options)
    for number in range(steps):
        torch.manual_seed(number)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(torch.randn(8, *SHAPE)), torch.randint(4, (8,))).backward()
        optimizer.step()
    run.check()
    return run


@pytest.mark.parametrize(("residual", "candidates"), [(False, 24), (True, 32)])
def test_shortcuts_lose_channels_where_told(residual: bool, candidates: int, caplog: pytest.LogCaptureFixture) -> None:
    """Then compact takes out those that died, and the network computes the same."""
    torch.manual_seed(1)
    model = Residual()
    caplog.set_level("INFO")
    run = trained(model, method={"residual": residual})
    method = run.method
    assert isinstance(method, Chase)
    stay = "" if residual else "; 8 that several layers write stay"
    assert f"chase: {round(0.4 * candidates)} of {candidates} channels are to die by the end{stay}" in caplog.messages
    assert int(method.channels.dead.sum()) == round(0.4 * candidates)
    groups = method.channels.by_group(method.channels.dead)
    left = {group.name: int((~dead).sum()) for group, dead in zip(method.channels.groups, groups, strict=True)}
    compact(model.eval(), SHAPE)
    for name, one in left.items():
        assert model.get_parameter(f"{name}.weight").shape[0] <= one


def test_channels_of_dense_layers_stay() -> None:
    model = Residual()
    run = trained(model, exclude=["inner.1.weight"])
    assert isinstance(run.method, Chase)
    assert run.method.notes == [
        "chase: 5 of 12 channels are to die by the end; 20 that dense layers use stay",
    ]


def test_a_resumed_loop_knows_its_dead() -> None:
    run = trained(Residual(), steps=6)
    twin = Residual()
    twin.load_state_dict(run.model.state_dict())
    saved = run.state_dict()
    again = SparseTraining(
        twin,
        torch.optim.SGD(twin.parameters(), lr=0.05, momentum=0.9),
        {"name": "chase", "period": 1, "channels_until": 0.5},
        sparsity=0.8,
        total_steps=10,
        input_shape=SHAPE,
        state=saved,
    )
    assert isinstance(again.method, Chase) and isinstance(run.method, Chase)
    assert again.method.channels.dead.equal(run.method.channels.dead)
    assert again.method.channels.dead.any()
    name, flags = next(iter(saved["method"]["state"]["dead"].items()))
    for damaged in ({}, {name: torch.ones_like(flags).fill_(255)}, {name: flags.float()}):
        dead = {**saved["method"]["state"]["dead"], **damaged} if damaged else {}
        state = {**saved["method"]["state"], "dead": dead}
        with pytest.raises(UserError, match=r"the state is damaged, or of another version of this method .*dead"):
            again.load_state_dict({**saved, "method": {"name": "chase", "state": state}})
    for count in (-1, 0.0, True):
        state = {**saved["method"]["state"], "gone": {**saved["method"]["state"]["gone"], name: count}}
        with pytest.raises(UserError, match=r"the state is damaged, or of another version of this method .*gone"):
            again.load_state_dict({**saved, "method": {"name": "chase", "state": state}})


def refused(match: str, model: nn.Module | None = None, **options: Any) -> None:
    model = Residual() if model is None else model
    before = {name: value.clone() for name, value in model.state_dict().items()}
    method = options.pop("method", {"name": "chase", "period": 1})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(UserError) as error:
        SparseTraining(
            model, optimizer, method, **{"sparsity": 0.8, "total_steps": 10, "input_shape": SHAPE, **options}
        )
    assert str(error.value) == match
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())
    assert model.training


def test_what_the_front_door_refuses() -> None:
    refused(
        "method chase takes channels out: give input_shape=, the shape of one input without the batch, such as "
        "(3, 224, 224), with which the model is traced",
        input_shape=None,
    )
    refused(
        "input_shape= is for methods that take channels out, and method rigl does not: leave it out",
        method={"name": "rigl", "period": 1},
    )
    refused(
        "method chase lets channels die whose writers and readers are all sparse layers, and there are none: make more "
        "layers sparse, or channel_sparsity to 0",
        include=["fc.weight"],
    )
    refused(
        "method chase lets channels die whose writers and readers are all sparse layers, and there are none but 8 that "
        "several layers write: set residual to true, or channel_sparsity to 0",
        model=Sum(),
    )
    refused(
        "method.density starts with 0.9 zeros, and sparsity.conv is 0.8: a soft bound lets layers hold more than in "
        "the end: lower density.start",
        method={"name": "chase", "period": 1, "density": {"name": "cubic", "start": 0.9}},
    )
    refused(
        "method.channels_until is 0.8, and the 10 steps of the run may have no reallocation between it and "
        "method.until, 1: shorten method.period, 3, or let channels_until be earlier",
        method={"name": "chase", "period": 3},
    )
    refused(
        "method.channels_until is 0.5, and the 10 steps of the run may have no reallocation between it and "
        "method.stop_epoch, as a share of the run, 0.4: shorten method.period, 1, or let channels_until be earlier",
        method={"name": "chase", "period": 1, "channels_until": 0.5, "stop_epoch": 4},
        steps_per_epoch=1,
    )


class Sum(Residual):
    """The sum of two convolutions, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.norms, self.outer = (nn.ModuleList() for _ in range(3))
        self.more = nn.Conv2d(1, 8, 3, padding=1, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.fc((self.stem(images) + self.more(images)).mean((2, 3)))
        return logits


class LooksAtValues(Residual):
    """A network whose way depends on its inputs."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images if images.sum() > 0 else -images)


def test_a_model_that_cannot_be_followed_is_refused() -> None:
    with pytest.raises(UserError, match="method chase must know which channels go together: torch-pruning cannot"):
        trained(LooksAtValues())


def test_torch_pruning_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    refused(f"method chase needs torch_pruning, which is not installed; {install_command('export')}, or make setup")


@pytest.mark.parametrize(
    ("granularity", "structure", "options", "message"),
    [
        (
            1,
            "free",
            {},
            "takes out inputs as well, and sparsity.granularity 1 moves whole filters: set it to 4, 3 or 2",
        ),
        (
            4,
            "fan_in",
            {"scope": "layer"},
            "sparsity.structure fan_in keeps the number of each row: set the structure to",
        ),
        (
            4,
            "free",
            {"soft_drop": 3, "scope": "layer"},
            "method.soft_drop is 3, and method chase drops dead channels first, by no draw",
        ),
    ],
)
def test_layers_that_it_cannot_work_on(granularity: Any, structure: str, options: dict[str, Any], message: str) -> None:
    specs = sparse_layers(Residual(), granularity=granularity, structure=structure)
    with pytest.raises(UserError, match=message):
        require_method(chase(**options), "chase", specs, {spec.name: 1 for spec in specs})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channel_sparsity": 0, "residual": True}, "residual has no effect with channel_sparsity 0, where no channel"),
        ({"channels_until": 0.9, "until": 0.75}, "channels_until is 0.9, and weights move until 0.75: let the last"),
        (
            {"density": {"name": "alternating"}},
            "density is alternating, and chase has a soft bound, which only falls: take cubic, sigmoid or steps",
        ),
        ({"channel_sparsity": 1}, "less than 1"),
    ],
)
def test_settings_that_contradict(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        chase(**options)


def test_without_channels_it_is_rigl() -> None:
    method = chase(channel_sparsity=0)
    assert not method.wants_channels
    assert method.decision_bytes == 0
    assert method.notes == []


def test_a_layer_that_rests_keeps_its_channels() -> None:
    """No gradient reaches the first layer: its channels live, those of the second die."""
    run = Run("chase", 4, 0.8, "sgd", channels_until=0.1)
    for layer in run.masks:
        layer.parameter.requires_grad_(layer is not run.masks.layers[0])
    run.step(1)
    run.step(2)
    assert isinstance(run.method, Chase)
    dead = {
        group.name: int(one.sum())
        for group, one in zip(
            run.method.channels.groups, run.method.channels.by_group(run.method.channels.dead), strict=True
        )
    }
    assert dead["0"] == 0
    assert dead["3"] == 6
    run.masks.check()


def test_the_digits_network_loses_channels_and_compact_takes_exactly_those_out() -> None:
    overrides = ["train={epochs: 3, global_batch_size: 64, lr: {name: constant, peak: 0.1}}", "method.period=10"]
    trainer = build_trainer(loading.load(ROOT / "configs/digits_chase.yaml", overrides), Worker())
    summary = trainer.fit()
    trainer.sparse.check()
    method = trainer.sparse.method
    assert isinstance(method, Chase)
    assert int(method.channels.dead.sum()) == round(0.4 * 112)
    assert summary.sparsity == pytest.approx(0.9, abs=1e-4)
    names = [f"{group.name}.weight" for group in method.channels.groups]
    groups = method.channels.by_group(method.channels.dead)
    left = {name: int((~dead).sum()) for name, dead in zip(names, groups, strict=True)}
    model = trainer.model.eval()
    found = compact(model, (1, 8, 8))
    assert {name: model.get_parameter(name).shape[0] for name in names} == left
    assert set(found.left_alone.values()) == set()
