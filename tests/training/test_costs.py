"""FLOPs and the share of weights ever active, as runs report them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dynsparse.runtime import Worker
from dynsparse.training.callbacks.closing import closing_text
from dynsparse.training.callbacks.metrics_file import MetricsFile
from dynsparse.training.callbacks.tensorboard import TensorBoard
from dynsparse.training.progress import Progress
from tests.ranks import run_distributed
from tests.training import runs

DENSE = 2 * (36 * 24 + 24 * 12 + 12 * 10)
"""FLOPs of one image through the dense network of `runs.BASE`: all of its layers are linear and may be sparse."""
STEPS, IMAGES = 16, 12


def sparse(active: int) -> int:
    return 2 * active


@pytest.mark.parametrize(
    ("method", "whole"),
    [
        ({"name": "static"}, 0),
        ({"name": "set", "period": 3}, 0),
        ({"name": "rigl", "period": 3}, 3),  # Steps 3, 6 and 9; the 12th ends three quarters of the run.
        ({"name": "sparse_momentum", "period": 3}, STEPS),
    ],
    ids=lambda value: value["name"] if isinstance(value, dict) else "",
)
def test_training_is_counted_by_the_rule_of_its_method(method: dict[str, Any], whole: int) -> None:
    summary = runs.trainer(runs.config(method=method)).fit()
    f = sparse(summary.active_weights)
    assert (summary.dense_flops, summary.inference_flops) == (DENSE, f)
    assert summary.training_flops == IMAGES * ((STEPS - whole) * 3 * f + whole * (2 * f + DENSE))
    assert summary.training_flops_of_dense == summary.training_flops / (IMAGES * STEPS * 3 * DENSE)
    assert summary.ever_active is not None and summary.ever_active >= summary.active_weights / (DENSE // 2)
    assert (summary.ever_active == summary.active_weights / (DENSE // 2)) == (method["name"] == "static")


@pytest.mark.parametrize("method", ["dense", "tied"])
def test_a_network_with_all_weights_in_use_costs_as_much_as_a_dense_one(method: str) -> None:
    summary = runs.trainer(runs.config(method={"name": method})).fit()
    assert summary.inference_flops_of_dense == summary.training_flops_of_dense == 1.0
    assert summary.ever_active == (1.0 if method == "dense" else None)


def test_pruning_is_counted_as_it_gets_sparser() -> None:
    """Eight dense steps, then eight at a fifth of the weights."""
    pruning = {"name": "pruning", "after_epoch": 0, "every_epochs": 1, "iterations": 1, "target_fc": 0.8}
    summary = runs.trainer(runs.config(method=pruning, start={"weights_from": "unread"})).fit()
    f = sparse(summary.active_weights)
    assert summary.training_flops == IMAGES * 8 * 3 * (DENSE + f)
    assert summary.ever_active == 1.0


def counted(worker: Worker) -> Progress:
    trainer = runs.trainer(runs.config(method={"name": "rigl", "period": 3}), worker)
    trainer.fit()
    return trainer.progress


def test_as_much_on_any_number_of_workers() -> None:
    one, two = counted(Worker()), run_distributed(counted, 2)
    assert one.training_flops > 0
    assert {(each.training_flops, each.dense_training_flops) for each in two} == {
        (one.training_flops, one.dense_training_flops)
    }


def test_layers_that_trade_change_what_inference_costs(tmp_path: Path) -> None:
    """A convolution's weights are used at each position, those of the linear layer once."""
    settings = runs.config(
        model={"name": "small_cnn", "channels": [4, 6]},
        sparsity={"conv": 0.5, "fc": 0.5},
        data={"shape": [3, 8, 8]},
        method={"name": "dsr", "period": 2, "initial_threshold": 0.05, "target_moves": 20},
    )
    trainer = runs.trainer(settings, observers=[MetricsFile(tmp_path / "metrics.jsonl"), TensorBoard(tmp_path)])
    summary = trainer.fit()
    per_weight = {"conv1.weight": 2 * 64, "conv2.weight": 2 * 16, "fc.weight": 2}
    lines = runs.metrics(tmp_path)
    epochs = [line for line in lines if line["kind"] == "epoch"]
    for line in epochs:
        flops = {name: layer["active"] * per_weight[name] for name, layer in line["layers"].items()}
        assert {name: layer["flops"] for name, layer in line["layers"].items()} == flops
        assert line["inference_flops_of_dense"] == sum(flops.values()) / summary.dense_flops
        weights = {name: layer["active"] / (1 - layer["sparsity"]) for name, layer in line["layers"].items()}
        found = sum(layer["explored"] * weights[name] for name, layer in line["layers"].items())
        assert line["ever_active"] == pytest.approx(found / sum(weights.values()), rel=1e-12)
    assert epochs[-1]["training_flops_of_dense"] == summary.training_flops_of_dense
    assert epochs[-1]["ever_active"] == summary.ever_active
    events = EventAccumulator(str(tmp_path)).Reload()
    moves = {0, *(line["step"] for line in lines)}
    assert {event.step for event in events.Scalars("flops/inference_of_dense")} == moves
    assert events.Scalars("sparsity/ever_active")[-1].value == pytest.approx(summary.ever_active, rel=1e-6)
    assert len({event.value for event in events.Scalars("flops/inference_of_dense")}) > 2, "it changes in the run"
    shown = closing_text(summary, tmp_path, tensorboard=False)
    assert f"FLOPs of inference, x of dense {summary.inference_flops_of_dense:.3f}" in " ".join(shown.split())
