"""The options of training, each seen to do what it says."""

from __future__ import annotations

import shutil
from typing import Any

import pytest
import torch
from torch import nn

from dynsparse.errors import StopRequested
from dynsparse.masks.optimizer_state import moments
from dynsparse.runtime import Worker
from dynsparse.training.callbacks import Callback, EpochReport, ReallocationReport, StepReport, Summary
from dynsparse.training.trainer import Trainer
from tests.ranks import run_distributed
from tests.training import runs

CNN = {"name": "small_cnn", "channels": [6, 8]}


class Recorder(Callback):
    def __init__(self) -> None:
        self.steps: list[StepReport] = []
        self.epochs: list[EpochReport] = []
        self.reallocations: list[ReallocationReport] = []
        self.summary: Summary | None = None

    def on_step(self, report: StepReport) -> None:
        self.steps.append(report)

    def on_epoch(self, report: EpochReport) -> None:
        self.epochs.append(report)

    def on_reallocation(self, report: ReallocationReport) -> None:
        self.reallocations.append(report)

    def on_end(self, summary: Summary) -> None:
        self.summary = summary


def assert_zero_outside(trainer: Trainer) -> None:
    for layer in trainer.masks:
        outside = ~layer.mask
        assert not layer.weight.detach()[outside].any()
        for _, moment in moments(trainer.optimizer, layer):
            assert not moment[outside].any()


@pytest.mark.parametrize(
    "train",
    [
        {},
        {"optimizer": {"name": "adamw", "weight_decay": 0.05}, "lr": {"name": "steps", "table": 0.01}},
        {"optimizer": {"name": "sgd", "nesterov": False, "momentum": 0.0}, "lr": {"name": "steps", "table": 0.3}},
        {"precision": "bf16"},
        {"channels_last": True},
        {"label_smoothing": 0.1},
        {"mixing": {"mixup_alpha": 0.4, "cutmix_alpha": 1.0}},
        {"loss": "bce", "optimizer": {"name": "adamw"}, "lr": {"name": "steps", "table": 0.01}},
        {"micro_batches": 3},
        {"clip": {"norm": 0.5, "value": 0.1}},
        {"optimizer": {"name": "lamb"}, "parameters": {"decay_norms_and_biases": False}},
        {"lr": {"name": "cosine", "peak": 0.05, "warmup_epochs": 1}},
    ],
    ids=str,
)
def test_options_train_and_keep_the_invariants(train: dict[str, Any]) -> None:
    recorder = Recorder()
    settings = runs.config(model=CNN, data={"samples": 240}, train={"epochs": 3, **train})
    trainer = runs.trainer(settings, observers=[recorder])
    step = trainer.train_step

    def checked(micro_batches: Any) -> torch.Tensor:
        loss = step(micro_batches)
        assert_zero_outside(trainer)
        trainer.masks.check_budget()
        return loss

    trainer.train_step = checked  # type: ignore[method-assign]
    summary = trainer.fit()
    trainer.masks.check()
    first, *_, last = recorder.epochs
    assert last.train_loss < first.train_loss - 0.1
    assert summary.reallocations == len(recorder.reallocations) == 59 // 3  # Not after the last step.
    assert summary.active_weights == trainer.masks.budget
    assert [report.step for report in recorder.steps] == list(range(4, 61, 4))


@pytest.mark.slow  # test_compile.py says it of smaller networks.
@pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="torch.compile needs a C++ compiler")
def test_compile_gives_the_same_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """Same masks; losses within float32 rounding over 16 steps. No recompilation after a reallocation."""
    import torch._dynamo

    torch._dynamo.reset()
    compiled = 0

    def count(*arguments: Any, **options: Any) -> Any:
        nonlocal compiled
        compiled += 1
        return original(*arguments, **options)

    from torch._inductor import compile_fx

    original = compile_fx.compile_fx
    monkeypatch.setattr(compile_fx, "compile_fx", count)
    results = []
    for compile_ in (False, True):
        recorder = Recorder()
        settings = runs.config(model=CNN, train={"epochs": 2, "compile": compile_})
        results.append((runs.trainer(settings, observers=[recorder]).fit(), recorder))
    (plain, plain_reports), (fast, fast_reports) = results
    assert compiled > 0
    assert compiled <= 2, "one graph for training, one for evaluation"
    for a, b in zip(plain_reports.epochs, fast_reports.epochs, strict=True):
        assert a.train_loss == pytest.approx(b.train_loss, abs=1e-4)
    assert plain.active_weights == fast.active_weights
    assert plain.reallocations == fast.reallocations


def test_layouts_of_gradients_are_checked_before_the_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients are there when it is checked: fused optimizers would add each to another weight."""
    checked: list[tuple[int, bool]] = []
    trainer = runs.trainer(runs.config(model=CNN, method={"name": "static"}))

    def note(parameters: Any) -> None:
        checked.append((trainer.progress.step, all(parameter.grad is not None for parameter in parameters)))

    monkeypatch.setattr("dynsparse.training.engine.check_layouts", note)
    trainer.fit()
    assert (0, True) in checked


def test_micro_batches_equal_the_whole_batch() -> None:
    """Accumulation changes rounding alone, without BatchNorm, which sees the size of a batch."""
    outcomes = []
    for parts in (1, 2, 6):
        model = {"name": "mnist_mlp", "hidden": [24, 12], "batch_norm": False}
        trainer = runs.trainer(runs.config(model=model, method={"name": "static"}, train={"micro_batches": parts}))
        trainer.fit()
        outcomes.append(nn.utils.parameters_to_vector(trainer.model.parameters()))
    assert torch.allclose(outcomes[0], outcomes[1], atol=1e-5)
    assert torch.allclose(outcomes[0], outcomes[2], atol=1e-5)


def weights_after(worker: Worker, settings: Any) -> torch.Tensor:
    trainer = runs.trainer(settings, worker)
    trainer.fit()
    return nn.utils.parameters_to_vector(trainer.model.parameters()).detach()


def test_workers_share_the_batch() -> None:
    """1 to 4 workers train the same network without BatchNorm, but for rounding: 12 samples in 8 parts too."""
    model = {"name": "mnist_mlp", "hidden": [24, 12], "batch_norm": False}
    settings = runs.config(model=model, method={"name": "static"}, train={"micro_batches": 2})
    alone = weights_after(Worker(), settings)
    for workers in (2, 3, 4):
        results = run_distributed(weights_after, workers, settings)
        assert all(torch.equal(result, results[0]) for result in results)
        assert torch.allclose(results[0], alone, atol=1e-5)


def test_two_runs_are_the_same_and_seeds_differ() -> None:
    def digests(seed: int) -> tuple[str, str]:
        summary = runs.trainer(runs.config(seed=seed)).fit()
        return summary.mask_digest, summary.weight_digest

    assert digests(1) == digests(1)
    assert digests(1) != digests(2)


def test_the_learning_rate_reaches_the_optimizer() -> None:
    recorder = Recorder()
    table = {"name": "steps", "table": {0: 0.1, 1: 0.01}, "warmup_epochs": 0.5}
    settings = runs.config(train={"epochs": 2, "lr": table}, log={"every_steps": 1, "progress": "none"})
    runs.trainer(settings, observers=[recorder]).fit()
    # 8 steps an epoch, the first 4 of them warming up.
    assert [report.lr for report in recorder.steps] == pytest.approx([0.025, 0.05, 0.075] + [0.1] * 5 + [0.01] * 8)


@pytest.mark.parametrize("when", [0, 1, 8, 11])
def test_stopping_on_request(when: int) -> None:
    recorder = Recorder()
    trainer = runs.trainer(runs.config(), observers=[recorder])
    trainer.stop_requested = lambda: trainer.progress.step == when
    with pytest.raises(StopRequested):
        trainer.fit()
    assert recorder.summary is not None
    assert (recorder.summary.status, recorder.summary.steps) == ("stopped", when)


def test_training_metrics_are_those_of_the_batches() -> None:
    """Mean loss and accuracy over an epoch, recomputed by hand from the logits of each batch."""
    recorder = Recorder()
    trainer = runs.trainer(runs.config(train={"epochs": 1}), observers=[recorder])
    trainer.settle = lambda: None  # type: ignore[method-assign]
    logits: list[torch.Tensor] = []
    labels: list[torch.Tensor] = []
    trainer.model.register_forward_hook(
        lambda module, _, output: logits.append(output.detach()) if module.training else None
    )
    step = trainer.train_step

    def remember(batches: Any) -> torch.Tensor:
        labels.extend(target for _, target in batches)
        return step(batches)

    trainer.train_step = remember  # type: ignore[method-assign]
    trainer.fit()
    every_logit, every_label = torch.cat(logits), torch.cat(labels)
    assert len(every_label) == 96
    loss = nn.functional.cross_entropy(every_logit, every_label)
    assert recorder.epochs[0].train_loss == pytest.approx(float(loss), rel=1e-5)
    right = int((every_logit.argmax(1) == every_label).sum())
    assert recorder.epochs[0].train_top1 == pytest.approx(100 * right / 96)


def test_observers_change_nothing() -> None:
    watched = runs.trainer(runs.config(log={"every_steps": 1, "progress": "none"}), observers=[Recorder()]).fit()
    unwatched = runs.trainer(runs.config(log={"tensorboard": False, "progress": "none"})).fit()
    assert watched.weight_digest == unwatched.weight_digest
