"""The forecast of how much a run explores, and a period chosen by it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import pytest
import torch
from torch import nn

from dynsparse import SparseTraining
from dynsparse.cli import train
from dynsparse.config import loading
from dynsparse.errors import UserError
from dynsparse.methods.clock import Clock
from dynsparse.methods.dynamic import DynamicSettings
from dynsparse.methods.exploration import Forecast, explored, longest_period
from dynsparse.methods.set import SetSettings
from dynsparse.runtime import Worker
from tests.methods.test_contract import REGISTRY, Run
from tests.ranks import run_distributed
from tests.training import runs
from tests.training.test_resume import assert_same, state_after

OPTIMIZERS: WeakKeyDictionary[SparseTraining, torch.optim.Optimizer] = WeakKeyDictionary()


def training(method: Any, steps: int, sparsity: float = 0.9, **options: Any) -> SparseTraining:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 100), nn.ReLU(), nn.Linear(100, 30), nn.ReLU(), nn.Linear(30, 5))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    sparse = SparseTraining(model, optimizer, method, sparsity=sparsity, total_steps=steps, **options)
    OPTIMIZERS[sparse] = optimizer
    return sparse


def trained(sparse: SparseTraining) -> float:
    """Train to the end. Returns the measured share of weights that were ever active."""
    optimizer = OPTIMIZERS[sparse]
    target = torch.randn(40, 5)
    for _ in range(sparse._asked.total_steps):
        images = torch.randn(16, 40)
        optimizer.zero_grad()
        nn.functional.cross_entropy(sparse.model(images), (images @ target).argmax(1)).backward()
        optimizer.step()
    assert sparse.masks.ever_active is not None
    return sparse.masks.ever_active


def test_two_events_worked_by_hand() -> None:
    """6 of 10 units are free; 2 grow, twice: 4 + 2 + 4/3. A full layer stays full, and no more grow than are free."""
    moves = [(np.array([4.0, 3.0, 1.0]), np.array([2.0, 1.0, 9.0]))] * 2
    found = explored(np.array([10.0, 3.0, 5.0]), np.array([4.0, 3.0, 1.0]), moves)
    assert found == pytest.approx([4 + 2 + 4 / 3, 3, 5])


def test_the_forecast_of_a_run_worked_by_hand() -> None:
    """One layer of 10 weights, 4 active; half of them move after steps 3 and 6."""
    model = nn.Linear(10, 1, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    asked = {"name": "set", "period": 3, "fraction": 0.5}
    sparse = SparseTraining(model, optimizer, asked, sparsity=0.6, total_steps=8)
    assert sparse.method.forecast == Forecast(pytest.approx((4 + 2 + 4 / 3) / 10), 2, "random")
    assert str(sparse.method.forecast) == "explores about 73 % of the sparse weights in 2 events"


@pytest.mark.parametrize(
    ("method", "steps", "within"),
    [
        pytest.param({"name": "set", "period": 2, "fraction": 0.1}, 600, 0.02, marks=pytest.mark.slow),
        ({"name": "set", "period": 10, "fraction": 0.1, "density": {"name": "cubic", "start": 0.8}}, 400, 0.02),
        pytest.param({"name": "mest", "period": 3, "fraction": 0.2}, 600, 0.02, marks=pytest.mark.slow),
        ({"name": "dsr", "period": 4, "scaling": False}, 600, 0.1),
    ],
)
def test_forecasts_of_random_growth_are_measured(method: dict[str, Any], steps: int, within: float) -> None:
    sparse = training(method, steps)
    foreseen = sparse.method.forecast
    assert foreseen is not None and foreseen.basis == ("unsure" if method["name"] == "dsr" else "random")
    measured = trained(sparse)
    assert measured == pytest.approx(foreseen.share, rel=within)
    assert 0.3 < measured < 0.98


@pytest.mark.parametrize("name", ["rigl", "granet", "sparse_momentum", "chts"])
def test_growth_by_scores_is_an_estimate_and_says_so(name: str) -> None:
    sparse = training({"name": name, "period": 5, "fraction": 0.3}, 300)
    assert sparse.method.forecast is not None
    said = str(sparse.method.forecast)
    assert said.startswith("explores up to about ")
    assert said.endswith("(as if growth were random; scores return to the same places)")
    assert trained(sparse) < sparse.method.forecast.share


NM = {"name": "nm", "criterion": "gradient"}
OF_ONE_DENSITY: dict[str, dict[str, Any]] = {
    **{name: {} for name, kind in REGISTRY.items() if issubclass(kind, DynamicSettings)},
    "nm by gradient": {"criterion": "gradient"},
}
del OF_ONE_DENSITY["gmp"], OF_ONE_DENSITY["acdc"], OF_ONE_DENSITY["granet"]  # They change the density.


def fixed_fraction(run: Run, clock: Clock) -> float | None:
    """The fraction of its active units that `drop_cuts` takes in each layer, whatever the scores; None: it depends."""
    shares = []
    for seed in range(2):
        generator = torch.Generator().manual_seed(seed)
        scores = [(torch.rand(layer.active_units, generator=generator) + seed).double() for layer in run.masks]
        cuts = run.method.drop_cuts(scores, clock)
        shares += [cut.count / one.numel() for cut, one in zip(cuts, scores, strict=True)]
    return shares[0] if shares[0] and max(shares) - min(shares) < 0.02 else None


def test_a_method_that_takes_a_fixed_fraction_forecasts_it() -> None:
    clock, found = Clock(2, 0, steps_per_epoch=2, epochs=1000), set()
    for case, options in OF_ONE_DENSITY.items():
        run = Run(case.partition(" ")[0], 4, 0.5, "sgd", **options)
        run.step(1)  # Some methods learn scores.
        if (fraction := fixed_fraction(run, clock)) is not None:
            found.add(case)
            assert run.method.moved_share(clock) == pytest.approx(fraction, abs=0.02), case  # type: ignore[attr-defined]
    assert found >= {"chts", "mest", "nm by gradient", "rigl", "set", "sparse_momentum", "srigl"}


def test_nm_by_gradient_explores_as_rigl_does_under_the_same_structure() -> None:
    shared = {"period": 5, "fraction": 0.2}
    nm, rigl = (training({**one, **shared}, 300, 0.5, structure="1:2") for one in (NM, {"name": "rigl"}))
    assert nm.method.forecast == rigl.method.forecast
    assert str(nm.method.forecast).startswith("explores up to about ")
    chosen = training({**NM, "exploration": 0.7}, 300, 0.5, structure="1:2").method.forecast
    assert chosen is not None and chosen.period is not None and 0.7 <= chosen.share < 0.8


def test_a_period_is_chosen_that_explores_as_much() -> None:
    sparse = training({"name": "set", "fraction": 0.1, "exploration": 0.6}, 1000)
    foreseen = sparse.method.forecast
    assert foreseen is not None and foreseen.period is not None and 0.6 <= foreseen.share < 0.65
    assert str(foreseen).endswith(f" in {1000 // foreseen.period:,} events, one every {foreseen.period} steps")
    longer = training({"name": "set", "fraction": 0.1, "period": foreseen.period + 1}, 1000).method.forecast
    assert longer is not None and longer.share < 0.6
    assert trained(sparse) == pytest.approx(foreseen.share, rel=0.02)


@pytest.mark.parametrize(("end", "period"), [(0.98, 33), (0.995, 30)])
def test_the_density_has_its_final_value_with_the_period_chosen(end: float, period: int) -> None:
    """The last event of a period of 33 is in step 297 of 300: late enough for 0.98 of the run, too early for 0.995."""
    density = {"name": "cubic", "start": 0.5, "end": end}
    sparse = training({"name": "set", "fraction": 0.5, "exploration": 0.8, "density": density}, 300)
    foreseen = sparse.method.forecast
    assert foreseen is not None and foreseen.period == period and 0.8 <= foreseen.share < 0.84
    trained(sparse)
    assert sparse.masks.sparsity == pytest.approx(0.9, abs=1e-3)


def test_the_search_halves_and_bisects() -> None:
    asked: list[int] = []

    def reached(period: int) -> float:
        asked.append(period)
        return 10 / period

    assert longest_period(reached, 0.5, 100) == 20
    assert asked[:4] == [100, 50, 25, 12] and len(asked) < 10


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (
            {"name": "set", "exploration": 0.9, "fraction": 0.01},
            (
                "method.exploration is 0.9, and at most 0.147 of the weights can be explored, with an event after "
                "every step: ask for less, train longer, or move more in each event"
            ),
        ),
        (
            {"name": "set", "exploration": 0.5, "period": 7},
            (
                "SparseTraining: method: exploration is 0.5, which chooses the period, and period is given too: leave "
                "one out"
            ),
        ),
        (
            {"name": "deepr", "exploration": 0.5},
            (
                "method.exploration is 0.5, and nobody can tell how much method deepr will explore: leave it out, and "
                "say period"
            ),
        ),
        (
            SetSettings(name="set", exploration=0.5).build(),
            (
                "method.exploration chooses the period by the sparsity, which this method does not know: give "
                "sparsity=, and the method's settings in place of a Method"
            ),
        ),
        ({"name": "static", "exploration": 0.5}, "SparseTraining: method.exploration: unknown key"),
        (
            {"name": "set", "exploration": 0.05},
            (
                "method.exploration is 0.05, and the run begins with 0.1 of the sparse weights active, so that no "
                "period follows from it: ask for more, or leave it out, and say period"
            ),
        ),
        (
            {"name": "gmp", "exploration": 0.9},
            (
                "method.exploration is 0.9, and the run begins with 1 of the sparse weights active, so that no period "
                "follows from it: leave it out, and say period"
            ),
        ),
        (
            {"name": "granet", "exploration": 0.3},
            "method.exploration is 0.3, and the run begins with 0.5 of the sparse weights active, so that no period",
        ),
    ],
)
def test_what_cannot_be_explored_is_refused(method: Any, message: str) -> None:
    with pytest.raises(UserError) as refused:
        training(method, 50)
    (line,) = refused.value.lines
    assert line.startswith(message)


ITOP = {"name": "set", "exploration": 0.55, "fraction": 0.2}


def test_masks_of_another_run_leave_no_sparsity_to_forecast_from() -> None:
    with pytest.raises(UserError) as refused:
        runs.config(method=ITOP, start={"masks_from": "runs/a"})
    assert refused.value.lines == (
        (
            "config: method.exploration chooses the period by the sparsity, which start.masks_from leaves to its "
            "masks: give method.period, or the sparsity in place of masks"
        ),
    )


def test_a_run_says_what_it_explores(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = runs.write_config(tmp_path, settings := runs.config(method=ITOP, name="a", runs=str(tmp_path / "runs")))
    assert loading.load(path) == settings, "the period that is written is no second one"
    assert train.main(["--config", str(path)]) == 0
    said = capsys.readouterr().out
    line = re.search(
        r"^explores about (\d+) % of the sparse weights in (\d+) events, one every (\d+) steps$", said, re.MULTILINE
    )
    assert line is not None
    summary = runs.summary(settings.folder)
    assert 0.55 <= summary["ever_active_forecast"] < 0.7
    assert summary["ever_active"] == pytest.approx(summary["ever_active_forecast"], rel=0.05)
    assert line[1] == f"{100 * summary['ever_active_forecast']:.0f}" and int(line[2]) == summary["reallocations"]
    both = f"{100 * summary['ever_active']:.2f} %, forecast {100 * summary['ever_active_forecast']:.2f} %"
    assert re.search(rf"^weights ever active +{both}$", said, re.MULTILINE)
    assert train.main(["--config", str(path), "--dry-run"]) == 0
    dry = capsys.readouterr().out
    assert re.search(
        r"^explores about 55 % .* steps, at 1,000 steps an epoch, as the data are not looked at$", dry, re.MULTILINE
    )
    assert train.main(["--config", str(path), "--dry-run", "method.fraction=0.0001", "method.exploration=0.99"]) == 0
    assert (
        "note: at 1,000 steps an epoch, as the data are not looked at: method.exploration is" in capsys.readouterr().out
    )
    assert train.main(["--config", str(path), "--dry-run", "method={name: deepr}"]) == 0
    line_of_deepr = (
        "no forecast of how much of the sparse weights deepr explores: what an event moves is not known before"
    )
    assert f"\n{line_of_deepr}, at 1,000 steps" in capsys.readouterr().out
    assert train.main(["--config", str(path), "--check", "name=b", "method.exploration=0.999"]) == 2
    assert "method.exploration is 0.999, and at most " in capsys.readouterr().err


def reached(worker: Worker, stop: int | None) -> Any:
    """State at the end of a run with a chosen period, which is resumed at the step `stop`."""
    settings = runs.config(method=ITOP)
    saved = None if stop is None else state_after(worker, settings, None, stop)
    if saved is not None:
        saved["progress"]["seconds"] = 0.0
    return state_after(worker, settings, saved, None)["weights"]


def test_a_resumed_run_chooses_the_same_period() -> None:
    assert_same(reached(Worker(), 7), whole := reached(Worker(), None))
    first, second = run_distributed(reached, 2, None)
    assert_same(first, second)
    assert {name: part.numel() for name, part in first.items()} == {name: part.numel() for name, part in whole.items()}
