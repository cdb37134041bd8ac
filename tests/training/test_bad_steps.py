"""Steps whose loss or gradients are NaN or inf: skipped by all ranks together, counted, and ended in time."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dynsparse.config.schema import RunConfig
from dynsparse.distributed import digest, sync
from dynsparse.errors import StopRequested, UserError
from dynsparse.runtime import Worker
from dynsparse.training.checkpoint import CheckpointFolder, read
from dynsparse.training.packing import pack_buffers
from dynsparse.training.precision import Outcome, Precision
from dynsparse.training.trainer import Trainer
from tests.ranks import run_distributed
from tests.training import runs
from tests.training.test_every_method import BUSY

CNN = {"name": "small_cnn", "channels": [6, 8]}  # With BatchNorm, whose statistics a NaN would spoil for ever.


def poison(trainer: Trainer, steps: set[int], rank: int) -> None:
    """Put a NaN into one image of one rank in these steps, counted from 1."""
    epoch = trainer.data.train.epoch

    def poisoned() -> Iterator[Any]:
        for batches in epoch():
            if trainer.progress.step + 1 in steps and trainer.worker.rank == rank:
                batches[-1][0][0, 0, 0, 0] = torch.nan
            yield batches

    trainer.data.train.epoch = poisoned  # type: ignore[method-assign]


def everything(trainer: Trainer) -> list[Tensor]:
    state = [parameter.detach().clone() for parameter in trainer.model.parameters()]
    state += [value.clone() for moments in trainer.optimizer.state.values() for value in moments.values()]
    return [*state, *pack_buffers(trainer.model).values(), trainer.run.sums.clone()]


def around_bad_step(worker: Worker, settings: RunConfig) -> tuple[bool, dict[str, Any], str]:
    """Whether step 5 changed anything on this rank, the progress in the end, and the digest of the weights."""
    trainer = runs.trainer(settings, worker)
    poison(trainer, {5}, rank=worker.world_size - 1)
    train_step, changed = trainer.train_step, []

    def watched(batches: Any) -> Tensor:
        before = everything(trainer)
        loss = train_step(batches)
        if trainer.progress.step == 5:
            changed.extend(not torch.equal(a, b) for a, b in zip(before, everything(trainer), strict=True))
        return loss

    trainer.train_step = watched  # type: ignore[method-assign]
    trainer.fit()
    assert len(changed) > 10
    assert all(value.isfinite().all() for value in everything(trainer))
    return any(changed), vars(trainer.progress), f"{digest.weight_digest(trainer.model, trainer.masks):x}"


FP16 = {"precision": "fp16", "micro_batches": 2}


@pytest.mark.parametrize(
    ("world_size", "gradients", "options"),
    [
        (1, "dense", {}),
        (2, "active", FP16),
        (3, "active", {}),
        pytest.param(2, "dense", FP16, marks=pytest.mark.slow),
        pytest.param(3, "dense", {}, marks=pytest.mark.slow),
    ],
)
def test_all_ranks_leave_out_a_step(world_size: int, gradients: str, options: dict[str, Any]) -> None:
    settings = runs.config(model=CNN, distributed={"gradients": gradients}, train={"epochs": 1, **options})
    results = run_distributed(around_bad_step, world_size, settings)
    assert [changed for changed, _, _ in results] == [False] * world_size
    for _, progress, weights in results:
        assert (progress["step"], progress["skipped_steps"]) == (8, 1)
        assert progress["bad_steps_in_a_row"] == 0
        assert weights == results[0][2]


def reallocations(settings: RunConfig, skipped: int = 6) -> tuple[list[int], Trainer]:
    """The steps that ended in a reallocation, where one is skipped."""
    trainer = runs.trainer(settings)
    poison(trainer, {skipped}, rank=0)
    steps: list[int] = []
    note = trainer._note

    def noted(report: Any) -> None:
        if report is not None:
            steps.append(report.step)
        note(report)

    trainer._note = noted  # type: ignore[method-assign]
    trainer.fit()
    trainer.masks.check()
    return steps, trainer


@pytest.mark.parametrize(
    ("method", "expected"),
    [("dsr", [3, 6, 9, 12, 15]), ("set", [3, 6, 9, 12, 15]), ("rigl", [3, 7, 9]), ("granet", [3, 7, 9, 12, 15])],
)
def test_a_reallocation_after_a_step_that_was_left_out(method: str, expected: list[int]) -> None:
    """Takes place, in the next step where it reads gradients."""
    steps, trainer = reallocations(runs.config(method={"name": method, **BUSY[method]}))
    assert steps == expected
    assert trainer.progress.skipped_steps == 1
    assert trainer.masks.active_weights == trainer.masks.budget


def test_a_network_that_has_lost_channels_makes_up() -> None:
    """The network shrinks after step 8, the last of its epoch, which is skipped."""
    model = {"name": "small_cnn", "channels": [8, 12, 16]}
    settings = runs.config(
        model=model,
        sparsity={"conv": 0.95, "fc": 0.5},
        method={"name": "rigl", "period": 4},
        train={"shrink": {"at": [1]}},
    )
    steps, trainer = reallocations(settings, skipped=8)
    assert trainer.network.shrinkages
    assert steps == [4, 9]


def test_a_run_that_stops_before_it_makes_up_does_so_when_it_resumes(tmp_path: Path) -> None:
    """The last fall of the density is due in step 21, which is skipped. The run stops there."""
    density = {"name": "cubic", "start": 0.3, "end": 0.75}
    method = {"name": "granet", "period": 7, "stop_epoch": 0, "density": density}
    settings = runs.config(method=method, train={"epochs": 3})

    def trainer(stop_after: int) -> Trainer:
        made = runs.trainer(
            settings,
            checkpoints=CheckpointFolder(tmp_path, 2),
            stop_requested=lambda: made.progress.step >= stop_after,
        )
        return made

    undisturbed = runs.trainer(settings)
    undisturbed.fit()
    stopped, resumed = trainer(21), trainer(1000)
    poison(stopped, {21}, rank=0)
    with pytest.raises(StopRequested):
        stopped.fit()
    assert stopped.masks.active_weights > undisturbed.masks.active_weights
    resumed.load(read(tmp_path / "latest.pt"))
    resumed.fit()
    assert resumed.masks.active_weights == undisturbed.masks.active_weights


@pytest.mark.parametrize(("method", "step"), [("rigl", 0), ("set", 3)])
def test_a_checkpoint_that_owes_what_cannot_be_is_refused(method: str, step: int) -> None:
    """More steps than were done, or a method that never owes anything."""
    trainer = runs.trainer(runs.config(method={"name": method, "period": 3}))
    saved = trainer.run.save([trainer.run.of_this_rank()])
    saved["progress"] = {**saved["progress"], "step": step, "owed_event": 1}
    with pytest.raises(UserError, match="the state is damaged: it owes the reallocation of step 1 after"):
        trainer.load(saved)


def test_growth_by_the_methods_own_momentum_survives_a_step_that_was_left_out() -> None:
    steps, trainer = reallocations(runs.config(method={"name": "sparse_momentum", "period": 3}))
    assert steps == [3, 6, 9, 12, 15]
    assert trainer.masks.active_weights == trainer.masks.budget


def diverges(worker: Worker, folder: Path, bad: set[int], most: int) -> tuple[str, list[str], dict[str, Any]]:
    settings = runs.config(
        runs=str(folder), train={"max_bad_steps": most, "epochs": 3}, checkpoint={"every_steps": 1, "keep": 2}
    )
    checkpoints = CheckpointFolder(folder, 2) if worker.is_main else None
    trainer = runs.trainer(settings, worker, checkpoints=checkpoints)
    poison(trainer, bad, rank=1)
    error = ""
    try:
        trainer.fit()
    except UserError as raised:
        error = str(raised)
    sync.any_rank(False)
    return error, sorted(path.name for path in folder.glob("step-*.pt")), vars(trainer.progress)


def test_too_many_in_a_row_end_the_run_and_keep_the_checkpoints_before(tmp_path: Path) -> None:
    for error, files, progress in run_distributed(diverges, 2, tmp_path, {5, *range(10, 40)}, 4):
        assert "the loss or gradients of 4 steps in a row, the last of them step 13, are NaN or inf" in error
        assert "\n" not in error
        assert files == ["step-000000008.pt", "step-000000009.pt"]
        assert progress["skipped_steps"] == 5
    assert read(tmp_path / "latest.pt")["progress"]["bad_steps_in_a_row"] == 0


def test_a_row_over_the_end_of_an_epoch_saves_nothing_either(tmp_path: Path) -> None:
    """All steps from 10 on are bad; epochs end at 8, 16 and 24."""
    for error, files, progress in run_distributed(diverges, 2, tmp_path, set(range(10, 40)), 12):
        assert "12 steps in a row, the last of them step 21" in error
        assert files == ["step-000000008.pt", "step-000000009.pt"]
        assert progress["skipped_steps"] == 12


def test_the_best_epoch_is_kept_though_its_last_step_was_left_out(tmp_path: Path) -> None:
    """A step that is left out changes no weight. A run resumes from before such steps all the same."""
    settings = runs.config(train={"epochs": 3, "max_bad_steps": 12}, checkpoint={"every_steps": 1, "keep": 9})
    trainer = runs.trainer(settings, checkpoints=CheckpointFolder(tmp_path, 9))
    poison(trainer, set(range(16, 25)), rank=0)  # The last step of the second epoch, and the third epoch.
    best: list[float | None] = []
    finish = trainer._finish_epoch

    def finished() -> None:
        finish()
        best.append(trainer.progress.best_top1)

    trainer._finish_epoch = finished  # type: ignore[method-assign]
    trainer.fit()
    assert best[0] is not None and best[1] is not None and best[1] > best[0]
    kept = read(tmp_path / "best.pt")["progress"]
    assert (kept["best_top1"], kept["step"]) == (trainer.progress.best_top1, 16)
    assert not (tmp_path / "step-000000016.pt").exists()


def test_what_is_lost_is_told_after_what_ended_the_run(tmp_path: Path) -> None:
    settings = runs.config(train={"max_bad_steps": 2})
    checkpoints = CheckpointFolder(tmp_path / "checkpoints", 2)
    trainer = runs.trainer(settings, checkpoints=checkpoints)
    poison(trainer, set(range(1, 9)), rank=0)
    (tmp_path / "checkpoints").write_text("a file where the folder is to be")
    with pytest.raises(UserError) as raised:
        trainer.fit()
    assert "2 steps in a row" in raised.value.lines[0]
    assert "cannot be written" in raised.value.lines[1]


def test_fewer_in_a_row_do_not(tmp_path: Path) -> None:
    bad = {step for step in range(1, 25) if step % 4}
    for error, _, progress in run_distributed(diverges, 2, tmp_path, bad, 4):
        assert error == ""
        assert progress["skipped_steps"] == 18


def test_divergence_ends_with_one_line(tmp_path: Path) -> None:
    settings = runs.config(
        name="a", runs=str(tmp_path), method={"name": "static"}, train={"lr": {"name": "steps", "table": 1e15}}
    )
    result = runs.dist_train("--config", runs.write_config(tmp_path, settings), workers=2)
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert "the loss or gradients of 10 steps in a row" in lines[0]
    assert runs.summary(settings.folder)["status"] == "failed"
    assert (settings.folder / "checkpoints" / "initial.pt").exists()


def test_an_infinite_loss_with_finite_gradients_is_told_to_all() -> None:
    precision = Precision("fp32", torch.device("cpu"))
    for loss, finite in ((3.0, True), (torch.inf, False), (-torch.inf, False), (torch.nan, False)):
        weight = torch.nn.Parameter(torch.tensor(2.0))
        optimizer = torch.optim.SGD([weight], lr=0.1)
        precision.backward(weight + torch.tensor(loss))
        assert int(precision.outcome(optimizer, [weight])) == (Outcome.MADE if finite else Outcome.BAD)
        if finite:
            assert weight.grad == 1.0


def test_the_search_for_a_scale_is_not_counted_as_divergence(caplog: pytest.LogCaptureFixture) -> None:
    """Gradients overflow until the scale has come down from 2^60. That takes more bad steps than are allowed."""
    trainer = runs.trainer(runs.config(model=CNN, train={"epochs": 8, "precision": "fp16", "max_bad_steps": 3}))
    trainer.engine.precision.scaler.load_state_dict({**trainer.engine.precision.scaler.state_dict(), "scale": 2.0**60})
    with caplog.at_level(logging.WARNING):
        summary = trainer.fit()
    assert summary.status == "done"
    assert 10 < summary.skipped_steps < 60
    assert 1 <= trainer.engine.precision.scaler.get_scale() < 2.0**50
    assert "skipped" not in caplog.text


def test_fp16_learns_as_fp32_does() -> None:
    """Both begin with the same data and weights. After 16 steps the losses differ by rounding to ten bits alone."""
    losses = []
    for precision in ("fp32", "fp16"):
        trainer = runs.trainer(runs.config(model=CNN, method={"name": "static"}, train={"precision": precision}))
        trainer.fit()
        losses.append(trainer.evaluate().test.loss)
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
