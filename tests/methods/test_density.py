"""Methods whose density changes while they train: any rule with any schedule."""

from __future__ import annotations

from typing import Any

import pytest

from dynsparse.errors import UserError
from dynsparse.masks.allocation import uniform
from dynsparse.methods import Aim
from dynsparse.methods.clock import Clock, Schedule
from dynsparse.methods.dynamic import Dynamic, DynamicSettings
from dynsparse.methods.gmp import GmpSettings
from dynsparse.methods.rigl import RiglSettings
from pipelines.common.epochs import EpochTable
from tests.methods.stepping import assert_ranks_agree, stepped
from tests.methods.test_contract import (
    BUSY,
    IN_TURN,
    REGISTRY,
    RESERVED,
    STEPS,
    STRUCTURES,
    Run,
    method_named,
)

NAMES = sorted(name for name, one in REGISTRY.items() if issubclass(one, DynamicSettings) and name not in STRUCTURES)
SCHEDULES: dict[str, dict[str, Any]] = {
    "down from dense": {"name": "cubic", "start": 0.0, "end": 0.5},
    "down": {"name": "sigmoid", "start": 0.3, "begin": 0.1, "end": 0.4},
    "up": {"name": "cubic", "start": 0.95, "end": 0.5},
    "in turn": IN_TURN,
}
"""Their courses end with the test's eight steps, four epochs: half of the run that the clock tells of."""
IMPOSSIBLE = [("chase", "up"), ("chase", "in turn")]
"""Channels that have died leave no room for more weights: `check` and the settings refuse these courses."""


def options_of(name: str, schedule: str) -> dict[str, Any]:
    """Options of a method under a schedule. A method that only prunes has no period where that goes by epochs."""
    only_prunes = issubclass(REGISTRY[name], GmpSettings)
    period = {"period": 100 if schedule == "in turn" else 2} if only_prunes else {}
    return {"density": SCHEDULES[schedule], **period}


def expected(run: Run, clock: Clock, sparsity: float) -> list[int]:
    """Active weights that each layer is to have after the event at a clock."""
    schedule = run.method.settings.density  # type: ignore[attr-defined]
    specs = [layer.spec for layer in run.masks]
    first, last = (uniform(specs, {"conv": share, "fc": share}) for share in (schedule.start, sparsity))
    share = schedule.share(clock.progress, clock.whole_epochs)
    return [round(first[spec.name] + (last[spec.name] - first[spec.name]) * share) * spec.unit_size for spec in specs]


CASES = [(name, schedule) for name in NAMES for schedule in SCHEDULES if (name, schedule) not in IMPOSSIBLE]


@pytest.mark.parametrize("granularity", [4, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("name", "schedule"), CASES)
def test_the_density_follows_its_schedule(name: str, schedule: str, granularity: int) -> None:
    """Layer by layer, or of all together where layers trade; exact, zero outside the masks, and resumed to the bit."""
    events = 0
    for number, run in stepped(name, granularity, 0.8, **options_of(name, schedule)):
        if run.events > events:
            events = run.events
            counts = expected(run, Clock(number, (number - 1) // 2, steps_per_epoch=2, epochs=STEPS), 0.8)
            if not run.method.trades:
                assert [layer.active_weights for layer in run.masks] == counts
            assert run.masks.budget == sum(counts)
    assert run.method.is_settled(Clock(STEPS, 3, steps_per_epoch=2, epochs=STEPS))
    assert abs(run.masks.sparsity - 0.8) < 0.02


@pytest.mark.parametrize("schedule", ["up", pytest.param("in turn", marks=pytest.mark.slow)])
def test_ranks_agree(schedule: str) -> None:
    assert_ranks_agree([(name, options_of(name, course)) for name, course in CASES if course == schedule])


def due(settings: DynamicSettings, schedule: Schedule) -> list[int]:
    method = settings.build()
    return [step for step in range(1, schedule.total_steps + 1) if method.is_due(schedule.clock(step))]


def test_events_of_the_density_come_with_the_period_and_go_on_where_the_rule_rests() -> None:
    """RigL rests from half of the run on; the density changes until it has its final value, and not after."""
    course = {"name": "cubic", "begin": 0.2, "end": 0.7}
    settings = RiglSettings(name="rigl", period=10, until=0.5, density=course)
    assert due(settings, Schedule(100, 10)) == [10, 20, 30, 40, 50, 60, 70]
    assert due(RiglSettings(name="rigl", period=10, until=0.1, density=course), Schedule(100, 10)) == [
        *[30, 40, 50, 60, 70]
    ], "the density begins to change after step 20"


LENGTHS: list[tuple[Any, Any]] = [
    (10, 10),
    ({0: 50, 7: 5}, 10),  # Events of the longer period end long before the first of the shorter one.
    ({0: 5, 7: 50}, 10),
    (9, EpochTable(((0, 40), (6, 4)))),  # Later epochs are done in fewer steps.
    (9, EpochTable(((0, 4), (6, 40)))),
    (30, EpochTable(((0, 40), (6, 4)))),
]
"""Periods and lengths of epochs."""
ENDS = [0.5, 0.61, 0.7, 0.73, 0.8]


@pytest.mark.parametrize(("period", "lengths"), LENGTHS)
@pytest.mark.parametrize("end", ENDS)
def test_the_last_event_finds_the_final_density(period: Any, lengths: Any, end: float) -> None:
    """No change of the density comes after the last event, whatever periods and epochs last; or the run is refused."""
    table = lengths if isinstance(lengths, EpochTable) else EpochTable.of(lengths)
    schedule = Schedule(table.before(10), table)
    settings = GmpSettings(name="gmp", period=period, density={"name": "cubic", "end": end})  # type: ignore[arg-type]
    last = schedule.clock(due(settings, schedule)[-1])
    if period == 30:  # Longer than the last epochs: when the last event comes cannot be told from the last step.
        with pytest.raises(UserError, match="has not its final value"):
            settings.build().check_length(schedule.clock(schedule.total_steps))
    else:
        settings.build().check_length(schedule.clock(schedule.total_steps))
        assert settings.density.share(last.progress, last.whole_epochs) == 1


@pytest.mark.parametrize(("period", "lengths"), [*LENGTHS, ({0: 4, 6: 3}, 10), (20, 22)])
@pytest.mark.parametrize("end", ENDS)
def test_an_epoch_is_settled_only_after_an_event_at_the_final_density(period: Any, lengths: Any, end: float) -> None:
    """The density may end between two events: the network is denser until the second."""
    table = lengths if isinstance(lengths, EpochTable) else EpochTable.of(lengths)
    schedule = Schedule(table.before(10), table)
    settings = GmpSettings(name="gmp", period=period, density={"name": "steps", "start": 0.5, "at": [end]})  # type: ignore[arg-type]
    events, method, settled = due(settings, schedule), settings.build(), list[bool]()
    for epoch in range(1, 11):
        now = table.before(epoch)
        latest = max((step for step in events if step <= now), default=0)
        is_final = latest > 0 and settings.density.is_final(schedule.clock(latest).progress, 0)
        settled.append(method.is_settled(schedule.clock(now)))
        assert is_final or not settled[-1]
    if period != 30:
        assert settled[-1]


@pytest.mark.parametrize("name", ["set", "dsr", "deepr", "rigl", "granet"])
def test_a_rule_that_rests_exchanges_nothing_while_the_density_falls(name: str) -> None:
    """`stop_epoch: 2` ends the exchange after four steps; the density goes on to the end of the test."""
    run = Run(name, 4, 0.8, "sgd", stop_epoch=2, period=2, density={"name": "cubic", "start": 0.3, "end": 0.5})
    for number in range(1, STEPS + 1):
        before = [set(layer.active.tolist()) for layer in run.masks]
        events = run.events
        run.step(number)
        after = [set(layer.active.tolist()) for layer in run.masks]
        if number > 4:
            assert all(now <= then for now, then in zip(after, before, strict=True)), "nothing grows"
            assert run.events == events + (number % 2 == 0)
    assert abs(run.masks.sparsity - 0.8) < 0.02


def test_phases_begin_with_an_epoch_whatever_the_period() -> None:
    course = {"name": "alternating", "warmup_epochs": 2, "sparse_epochs": 1, "dense_epochs": 2, "last_sparse_epoch": 8}
    settings = RiglSettings(name="rigl", period=1000, density=course)
    assert due(settings, Schedule(100, 10)) == [20, 30, 50, 60, 80], "sparse: epochs 2, 5, and from 8 on"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"density": {"name": "cubic", "end": 1.0}, "period": 30}, "has not its final value when the run ends"),
        ({"density": {"name": "cubic", "end": 0.95}, "period": 30}, "has not its final value when the run ends"),
        (
            {"density": {"name": "alternating", "warmup_epochs": 9, "last_sparse_epoch": 10}},
            "has not its final value when the run ends",
        ),
    ],
)
def test_a_run_that_ends_before_its_density(options: dict[str, Any], message: str) -> None:
    settings = RiglSettings(name="rigl", **options)
    with pytest.raises(UserError, match=message):
        settings.build().check_length(Schedule(100, 10).clock(100))
    early = {**options["density"], **({"end": 0.9} if "end" in options["density"] else {"last_sparse_epoch": 9})}
    RiglSettings(name="rigl", **{**options, "density": early}).build().check_length(Schedule(100, 10).clock(100))


def test_a_density_without_an_aim() -> None:
    method = RiglSettings(name="rigl", density={"name": "cubic"}).build()
    with pytest.raises(UserError, match="and no sparsity is given to end with: give one"):
        method.check([], {})
    aimed = RiglSettings(name="rigl", density={"name": "cubic"}).knowing(Aim({"conv": 0.5, "fc": 0.5})).build()
    assert isinstance(aimed, Dynamic)
    aimed.check([], {})


def test_all_dynamic_methods_are_tried() -> None:
    assert set(NAMES) <= set(BUSY)


@pytest.mark.parametrize("name", sorted(set(BUSY) - {"acdc", "gmp", "pruning"}))
def test_nothing_grows_after_the_last_step_that_would_not_train(name: str) -> None:
    """The last event of DeepR takes out what has crossed 0, and that of a reserve brings in what has trained."""
    method = method_named(name)
    schedule = Schedule(total_steps=8, steps_per_epoch=2)
    assert method.is_due(schedule.clock(2))
    assert method.is_due(schedule.clock(8)) == (name in ("deepr", *RESERVED))
    assert not schedule.clock(7).ends_run
    assert Schedule(total_steps=7, steps_per_epoch=2).clock(7).ends_run, "in mid-epoch"


def test_a_density_comes_to_its_end_in_the_last_step_and_nothing_moves_besides() -> None:
    method = method_named("set", density={"name": "cubic", "start": 0.2, "end": 1.0})
    last = Schedule(total_steps=8, steps_per_epoch=2).clock(8)
    assert method.is_due(last) and not method.exchanges(last)
