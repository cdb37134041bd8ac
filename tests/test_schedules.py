from __future__ import annotations

import math

import pytest
from pydantic import TypeAdapter

from dynsparse.schedules import ConstantLr, CosineLr, LinearLr, LrSettings, PolynomialLr, StepLr, StepTable


def test_the_last_entry_at_or_before_the_epoch_holds() -> None:
    table = StepTable.parse([{0: 0.1}, {30: 0.01}, {60: 0.001}])
    assert [table.at(epoch) for epoch in (0, 29, 30, 59, 60, 1000)] == [0.1, 0.1, 0.01, 0.01, 0.001, 0.001]


def test_three_ways_to_write_a_table() -> None:
    assert StepTable.parse({0: 1, 5: 2}) == StepTable.parse([{0: 1}, {5: 2}]) == StepTable.parse([{0: 1, 5: 2}])
    assert StepTable.parse(3) == StepTable.parse({0: 3})
    assert StepTable.parse(StepTable.parse({0: 1, 5: 2}).as_yaml()) == StepTable.parse({0: 1, 5: 2})


def test_step_table_by_step() -> None:
    schedule = StepLr(table=StepTable(((0, 0.5), (2, 0.05))))
    assert [schedule.at(step, steps_per_epoch=10, total_steps=40) for step in (0, 19, 20, 39)] == [0.5, 0.5, 0.05, 0.05]


def test_warm_up_is_linear_and_never_zero() -> None:
    schedule = StepLr(table=StepTable(((0, 1.0),)), warmup_epochs=0.4)
    assert [schedule.at(step, 10, 40) for step in range(6)] == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1])


def test_cosine_by_its_equation() -> None:
    """Loshchilov & Hutter, eq. 5: final + (peak - final) (1 + cos(pi t / T)) / 2."""
    schedule = CosineLr(name="cosine", peak=1.0, final=0.1)
    for step in (0, 25, 50, 75, 100):
        expected = 0.1 + 0.9 * (1 + math.cos(math.pi * step / 100)) / 2
        assert schedule.at(step, 10, 100) == pytest.approx(expected)
    assert schedule.at(0, 10, 100) == 1.0
    assert schedule.at(100, 10, 100) == pytest.approx(0.1)


def test_cosine_begins_after_the_warm_up() -> None:
    schedule = CosineLr(name="cosine", peak=1.0, warmup_epochs=2)
    values = [schedule.at(step, 10, 120) for step in range(120)]
    assert values[:20] == pytest.approx([(i + 1) / 20 for i in range(20)])
    assert values[20] == 1.0
    assert values[70] == pytest.approx(0.5)
    assert values[20:] == sorted(values[20:], reverse=True)


def test_linear_and_polynomial_by_their_equations() -> None:
    """Each is final + (peak - final) (1 - t / T)^power, of which the line is the first power."""
    line = LinearLr(name="linear", peak=1.0, final=0.2)
    curve = PolynomialLr(name="polynomial", peak=1.0, final=0.2, power=3.0)
    for step in (0, 25, 50, 99, 100, 200):
        left = 1 - min(1, step / 100)
        assert line.at(step, 10, 100) == pytest.approx(0.2 + 0.8 * left)
        assert curve.at(step, 10, 100) == pytest.approx(0.2 + 0.8 * left**3)
    assert PolynomialLr(name="polynomial", peak=1.0).at(50, 10, 100) == pytest.approx(0.25)


def test_constant_after_a_warm_up_in_steps() -> None:
    schedule = ConstantLr(name="constant", peak=0.5, warmup_steps=3)
    assert [schedule.at(step, 10, 100) for step in (0, 1, 2, 3, 99)] == pytest.approx([0.5 / 3, 1 / 3, 0.5, 0.5, 0.5])


@pytest.mark.parametrize("name", ["steps", "cosine", "linear", "polynomial", "constant"])
def test_a_warm_up_is_as_long_in_steps_as_in_epochs(name: str) -> None:
    read = TypeAdapter(LrSettings).validate_python
    of_steps, of_epochs = read({"name": name, "warmup_steps": 15}), read({"name": name, "warmup_epochs": 1.5})
    assert [of_steps.at(step, 10, 40) for step in range(41)] == [of_epochs.at(step, 10, 40) for step in range(41)]
    assert of_steps.at(0, 10, 40) == pytest.approx(0.1 / 15)
    with pytest.raises(ValueError, match=r"warmup_epochs is 1 and warmup_steps is 5; both set the length of the warm"):
        read({"name": name, "warmup_steps": 5, "warmup_epochs": 1})


@pytest.mark.parametrize("kind", [CosineLr, LinearLr, PolynomialLr])
def test_a_rate_that_falls_has_a_lower_end(kind: type[CosineLr | LinearLr | PolynomialLr]) -> None:
    name = kind.__name__.removesuffix("Lr").lower()
    assert kind(name=name, peak=0.1, final=0.1).at(3, 2, 4) == pytest.approx(0.1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"final is 0\.2 and peak is 0\.1; the rate falls: give a lower final"):
        kind(name=name, peak=0.1, final=0.2)  # type: ignore[arg-type]
