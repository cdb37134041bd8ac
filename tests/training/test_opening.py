"""Words of a run at its first step."""

from __future__ import annotations

from typing import Any

import pytest

from dynsparse.training.opening import idle
from tests.training import runs


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({}, None),
        ({"train": {"penalty": {"group_lasso": True}}}, "train.penalty.group_lasso has no effect while train.penalty."),
        ({"train": {"penalty": {"group_lasso": True, "l1": 1e-5}}}, None),
        ({"log": {"project": "mine"}}, "log.project is mine, and neither log.wandb nor log.mlflow is true: nothing is"),
        ({"log": {"project": "mine", "mlflow": True}}, None),
        (
            {"train": {"epochs": 10, "evaluate_every_epochs": 5, "early_stop": {"patience": 3}}},
            "train.early_stop.patience is 3, and the run has 2 evaluations: it cannot end early",
        ),
        ({"train": {"epochs": 4, "early_stop": {"patience": 3}}}, "train.early_stop.patience is 3, and the run has 4"),
        ({"train": {"epochs": 5, "early_stop": {"patience": 3}}}, None),
    ],
)
def test_options_that_do_nothing_are_told(options: dict[str, Any], line: str | None) -> None:
    found = list(idle(runs.config(**options)))
    assert [one[: len(line or "")] for one in found] == ([] if line is None else [line])


def test_a_run_says_so(caplog: pytest.LogCaptureFixture) -> None:
    runs.trainer(runs.config(log={"project": "mine"}, train={"epochs": 1})).fit()
    assert "nothing is tracked" in caplog.text
