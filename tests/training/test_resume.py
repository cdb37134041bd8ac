"""A run that is killed and resumed equals one that never was, bit for bit."""

from __future__ import annotations

import contextlib
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from dynsparse.config.schema import RunConfig
from dynsparse.distributed import sync
from dynsparse.errors import StopRequested
from dynsparse.runtime import Worker
from dynsparse.shrinking.kept import shrinkages_in
from dynsparse.training.checkpoint import CheckpointFolder, read
from dynsparse.training.trainer import Trainer
from tests.ranks import run_distributed
from tests.training import runs

FAULTY_RUN = Path(__file__).with_name("faulty_run.py")


def small_run(folder: Path, name: str, **checkpoint: Any) -> RunConfig:
    """24 steps: 3 epochs of 8."""
    return runs.config(
        name=name, runs=str(folder), train={"epochs": 3}, checkpoint={"every_steps": 3, "keep": 3, **checkpoint}
    )


@pytest.mark.parametrize(
    "workers", [0, pytest.param(2, marks=pytest.mark.slow)], ids=["one worker, no torchrun", "two workers"]
)
def test_killed_in_mid_epoch_and_resumed(tmp_path: Path, workers: int) -> None:
    """SIGKILL in the middle of a random step, twice; the last worker dies, torchrun ends the others."""
    whole, killed = small_run(tmp_path, "whole"), small_run(tmp_path, "killed")
    arguments = ["--config", runs.write_config(tmp_path, whole)]
    assert runs.dist_train(*arguments, workers=workers).returncode == 0

    arguments = ["--config", runs.write_config(tmp_path, killed), "--resume", "auto"]
    rank = str(max(0, workers - 1))
    chance = random.Random()
    steps = [chance.choice([4, 5, 7, 10, 11, 13]), chance.choice([14, 17, 18, 19, 20, 22, 23])]
    for step in steps:
        died = runs.dist_train(*arguments, workers=workers, script=FAULTY_RUN, FAULTS=f"kill {rank} step {step}")
        assert died.returncode != 0, (steps, died.stderr)
        assert not (killed.folder / "summary.json").exists()
    finished = runs.dist_train(*arguments, workers=workers)
    assert finished.returncode == 0, finished.stderr
    assert "resuming from" in finished.stderr

    expected, actual = runs.summary(whole.folder), runs.summary(killed.folder)
    for key in ("weight_digest", "mask_digest", "rank_digests", "test_top1", "best_top1", "reallocations", "steps"):
        assert actual[key] == expected[key], (key, steps)
    assert runs.metrics(killed.folder) == runs.metrics(whole.folder), steps
    assert len({rank["weight_digest"] for rank in expected["rank_digests"]}) == 1
    assert len(expected["rank_digests"]) == max(1, workers)


def state_after(worker: Worker, settings: RunConfig, saved: dict[str, Any] | None, stop: int | None) -> Any:
    """Train (from `saved` on) to the end or to step `stop`; returns what a checkpoint would hold."""
    trainer = runs.trainer(settings, worker, shrinkages=shrinkages_in(saved or {}))
    if saved is not None:
        trainer.load(saved)
    if stop is not None:
        trainer.stop_requested = lambda: trainer.progress.step == stop
    collected: list[dict[str, Any]] = []
    trainer.saving.save = lambda **_: collected.append(trainer.run.save(_gathered(trainer)))  # type: ignore[method-assign]
    with contextlib.suppress(StopRequested):
        trainer.fit()
    state = collected[-1]
    state["progress"].pop("seconds")
    return state


def _gathered(trainer: Trainer) -> list[Any]:
    return sync.gather(trainer.run.of_this_rank()) or []


def assert_same(a: Any, b: Any, path: str = "") -> None:
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), path
    elif isinstance(a, dict):
        assert list(a) == list(b), path
        for key in a:
            assert_same(a[key], b[key], f"{path}.{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), path
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{path}[{i}]")
    else:
        assert a == b, path


@pytest.mark.parametrize("stop", range(1, 17))
def test_every_step_can_be_resumed_from(stop: int) -> None:
    """Masks, weights, moments, threshold, random state, running sums, position: all equal in the end."""
    settings = runs.config()
    alone = Worker()
    whole = state_after(alone, settings, None, None)
    half = state_after(alone, settings, None, stop)
    assert half["progress"]["step"] == stop
    assert_same(state_after(alone, settings, {**half, "progress": {**half["progress"], "seconds": 0.0}}, None), whole)


@pytest.mark.parametrize(
    ("world_size", "sections"),
    [
        (3, {}),
        (2, {"train": {"optimizer": {"name": "adamw"}, "micro_batches": 2}}),
        (2, {"train": {"precision": "fp16"}, "distributed": {"gradients": "active"}}),
        (
            4,
            {"model": {"name": "small_cnn", "channels": [6, 8]}, "train": {"channels_last": True, "precision": "bf16"}},
        ),
    ],
    ids=["3 ranks", "adamw, micro-batches", "fp16, active gradients", "4 ranks, convolutions, channels_last, bf16"],
)
def test_resumed_on_several_ranks(world_size: int, sections: dict[str, Any]) -> None:
    settings = runs.config(**sections)
    whole = run_distributed(state_after, world_size, settings, None, None)[0]
    half = run_distributed(state_after, world_size, settings, None, 5)[0]
    half["progress"]["seconds"] = 0.0
    assert_same(run_distributed(state_after, world_size, settings, half, None)[0], whole)


def test_saving_changes_nothing(tmp_path: Path) -> None:
    never, always = runs.config(), runs.config(checkpoint={"every_steps": 1})
    quiet = runs.trainer(never).fit()
    busy = runs.trainer(always, checkpoints=CheckpointFolder(tmp_path, keep=2)).fit()
    assert (quiet.mask_digest, quiet.weight_digest) == (busy.mask_digest, busy.weight_digest)
    assert quiet.test_top1 == busy.test_top1


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 4)])
def test_resumed_by_another_number_of_workers(before: int, after: int) -> None:
    """Finishes, with the budget met and every rank the same; masks, weights and order go on."""
    settings = runs.config()
    half = run_distributed(state_after, before, settings, None, 5)[0]
    half["progress"]["seconds"] = 0.0
    whole = run_distributed(state_after, after, settings, half, None)[0]
    assert whole["progress"]["step"] == 16
    assert whole["masks"]["budget"] == half["masks"]["budget"]
    assert len(whole["ranks"]) == after
    # Before the first step masks, weights and moments are those of the other workers.
    begun = run_distributed(state_after, after, settings, half, 5)[0]
    for part in ("masks", "weights", "optimizer", "method", "data"):
        assert_same(begun[part], half[part])
    # The epoch's sums went on: each sample of the epochs was counted once.
    resumed = run_distributed(state_after, after, settings, half, 6)[0]
    assert sum(float(rank["sums"][2]) for rank in resumed["ranks"]) == 6 * 12


def test_initial_latest_and_best_are_kept(tmp_path: Path) -> None:
    settings = runs.config(checkpoint={"every_steps": 2, "keep": 2}, train={"epochs": 3})
    summary = runs.trainer(settings, checkpoints=CheckpointFolder(tmp_path, keep=2)).fit()
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["best.pt", "initial.pt", "latest.pt", "step-000000022.pt", "step-000000024.pt"]
    assert read(tmp_path / "latest.pt")["progress"]["step"] == 24
    assert read(tmp_path / "best.pt")["progress"]["test_top1"] == summary.best_top1
    initial = read(tmp_path / "initial.pt")
    fresh = runs.trainer(settings)
    fresh.run.load_network(initial)
    again = runs.trainer(settings)
    assert_same(fresh.model.state_dict(), again.model.state_dict())


@pytest.mark.slow
def test_two_then_one_then_four_workers(tmp_path: Path) -> None:
    """Real digits at 98 %, stopped in mid-epoch twice: budget, digests and accuracy are those of two workers."""
    digits = ["--config", runs.ROOT / "configs/digits_dsr.yaml", f"runs={tmp_path}", "train.epochs=30"]
    done = runs.dist_train(*digits, "name=whole", workers=2)
    assert done.returncode == 0, done.stderr
    for workers, faults in ((2, "SIGUSR1 0 step 150"), (1, "SIGUSR1 0 step 401"), (4, "")):
        arguments = [*digits, "name=moved", "--resume", "auto"]
        runs.dist_train(*arguments, workers=workers, script=FAULTY_RUN, FAULTS=faults)
    whole, moved = runs.summary(tmp_path / "whole"), runs.summary(tmp_path / "moved")
    print({key: (whole[key], moved[key]) for key in ("test_top1", "active_weights", "reallocations", "steps")})
    assert moved["status"] == "done"
    assert moved["world_size"] == 4
    for key in ("active_weights", "sparse_layer_weights", "reallocations", "steps", "epochs"):
        assert moved[key] == whole[key]
    for key in ("mask_digest", "weight_digest"):
        assert {rank[key] for rank in moved["rank_digests"]} == {moved[key]}
    assert moved["test_top1"] == pytest.approx(whole["test_top1"], abs=1.5), "five times the spread between seeds"
    kinds = [(line["step"], sorted(line["layers"])) for line in runs.metrics(tmp_path / "moved")]
    assert kinds == [(line["step"], sorted(line["layers"])) for line in runs.metrics(tmp_path / "whole")]
