"""Clipping works on the gradients that the optimizer uses, the same on every rank, and is logged."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.utils import clip_grad_norm_, clip_grad_value_

from dynsparse.config.schema import RunConfig
from dynsparse.distributed import sync
from dynsparse.runtime import Worker
from dynsparse.training.callbacks.records import epoch_record
from dynsparse.training.checkpoint.agreement import first_problem
from dynsparse.training.trainer import Trainer
from tests.ranks import run_distributed
from tests.training import runs
from tests.training.test_loop import CNN, Recorder
from tests.training.test_resume import assert_same, state_after

EVERY_STEP = {"every_steps": 1, "progress": "none"}


def used(settings: RunConfig) -> tuple[Trainer, list[torch.Tensor]]:
    """A trainer after one step, and the gradients that its optimizer used."""
    trainer = runs.trainer(settings)
    seen: list[torch.Tensor] = []

    def note(optimizer: Any, *_: Any) -> None:
        seen.extend(parameter.grad.clone() for parameter in trainer.model.parameters())  # type: ignore[union-attr]

    trainer.optimizer.register_step_pre_hook(note)
    trainer.train_step(next(trainer.data.train.epoch()))
    return trainer, seen


@pytest.mark.parametrize(
    ("train", "whole"),
    [({}, False), ({"micro_batches": 3}, False), ({"penalty": {"l1": 0.01}}, False), ({}, True)],
    ids=["plain", "micro-batches", "penalty", "a step whose method looks at whole gradients"],
)
def test_gradients_are_those_that_torch_clips(train: dict[str, Any], whole: bool) -> None:
    """They agree to the bit, after masks and penalties, by the norm of all gradients together."""
    method = {"name": "rigl", "period": 1} if whole else {"name": "static"}

    def settings(**clip: float) -> RunConfig:
        return runs.config(model=CNN, method=method, train={**train, "clip": clip})

    _, plain = used(settings())
    twins = [torch.nn.Parameter(torch.zeros_like(gradient)) for gradient in plain]
    for twin, gradient in zip(twins, plain, strict=True):
        twin.grad = gradient.clone()
    found = clip_grad_norm_(twins, 0.05)
    assert found > 0.05
    trainer, clipped = used(settings(norm=0.05))
    assert trainer.run.gradient_norms.read().latest == float(found)
    assert all(torch.equal(a, twin.grad) for a, twin in zip(clipped, twins, strict=True))  # type: ignore[arg-type]
    clip_grad_value_(twins, 0.001)
    _, clipped = used(settings(norm=0.05, value=0.001))
    assert max(float(gradient.abs().max()) for gradient in clipped) == pytest.approx(0.001)
    assert all(torch.equal(a, twin.grad) for a, twin in zip(clipped, twins, strict=True))  # type: ignore[arg-type]


def test_limits_out_of_reach_change_nothing() -> None:
    plain = runs.trainer(runs.config(model=CNN)).fit()
    clipped = runs.trainer(runs.config(model=CNN, train={"clip": {"norm": 1e9, "value": 1e9}})).fit()
    assert clipped.weight_digest == plain.weight_digest
    assert (
        runs.trainer(runs.config(model=CNN, train={"clip": {"norm": 0.1}})).fit().weight_digest != plain.weight_digest
    )


def test_the_norm_of_an_epoch_is_logged() -> None:
    recorder = Recorder()
    runs.trainer(runs.config(train={"clip": {"norm": 1.0}}, log=EVERY_STEP), observers=[recorder]).fit()
    for epoch in range(2):
        norms = [report.gradient_norm for report in recorder.steps[8 * epoch : 8 * epoch + 8]]
        assert None not in norms
        line = epoch_record(recorder.epochs[epoch])
        assert line["gradient_norm"] == pytest.approx(sum(norms) / 8)  # type: ignore[arg-type]
        assert line["gradient_norm_max"] == max(norms)  # type: ignore[type-var]
    off = Recorder()
    runs.trainer(runs.config(log=EVERY_STEP), observers=[off]).fit()
    assert {report.gradient_norm for report in off.steps} == {None}
    assert "gradient_norm" not in epoch_record(off.epochs[0])


def norms_and_states(worker: Worker, settings: RunConfig) -> tuple[list[Any], Any, Any]:
    """The norms that a rank found, and the last states of a whole run and of one stopped in mid-epoch and resumed."""
    trainer = runs.trainer(settings, worker)
    norms = []
    step = trainer.train_step

    def noting(batches: Any) -> torch.Tensor:
        loss = step(batches)
        norms.append(trainer.run.gradient_norms.read().latest)
        return loss

    trainer.train_step = noting  # type: ignore[method-assign]
    trainer.fit()
    whole = state_after(worker, settings, None, None)
    mine = state_after(worker, settings, None, 11)
    half = sync.from_rank_0(lambda: mine)
    half["progress"]["seconds"] = 0.0
    return norms, whole, state_after(worker, settings, half, None)


@pytest.mark.parametrize(
    ("ranks", "sections"),
    [
        (2, {"train": {"precision": "fp16", "micro_batches": 2}, "distributed": {"gradients": "active"}}),
        pytest.param(3, {"method": {"name": "rigl", "period": 3}}, marks=pytest.mark.slow),
    ],
    ids=["fp16, micro-batches, active gradients", "3 ranks, whole gradients"],
)
def test_all_ranks_find_the_same_norm_and_a_resumed_run_too(ranks: int, sections: dict[str, Any]) -> None:
    train = {"clip": {"norm": 0.3, "value": 0.05}, **sections.get("train", {})}
    results = run_distributed(norms_and_states, ranks, runs.config(**{**sections, "train": train}))
    norms, whole, resumed = results[0]
    assert len(norms) == 16
    assert max(norm for norm in norms if norm is not None) > 0.3
    assert all(other[0] == norms for other in results)
    assert_same(resumed, whole)


@pytest.mark.parametrize("damaged", [torch.zeros(3, dtype=torch.float64), torch.zeros(4)])
def test_damaged_norms_in_a_checkpoint_are_named(damaged: torch.Tensor) -> None:
    trainer = runs.trainer(runs.config())
    state = trainer.run.save([trainer.run.of_this_rank()])
    assert first_problem(state) is None
    assert "gradient_norms is torch.float" in str(first_problem({**state, "gradient_norms": damaged}))
    older = {key: value for key, value in state.items() if key != "gradient_norms"}
    assert first_problem(older) is None
    trainer.load(older)
