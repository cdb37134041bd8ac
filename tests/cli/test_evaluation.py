"""`--evaluate` asks nothing of the training samples but what names the network's classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dynsparse.cli.actions.evaluation import Evaluation, without_training
from dynsparse.config import loading
from dynsparse.config.shipped import FOLDER
from dynsparse.runtime import Worker
from dynsparse.training.building import data_request
from dynsparse.training.checkpoint import CheckpointFolder
from dynsparse.training.preflight import require_warmup
from pipelines.position import Position
from pipelines.sources.base import Listed
from tests.training import runs

WORKER = Worker(rank=1, world_size=2)
CROPPED = {"name": "imagenet", "image_size": 12, "number_of_classes": 2}
DEMANDS: dict[str, dict[str, Any]] = {
    "repeats": {"data": {**CROPPED, "repeated_augmentation": 4}},
    "pairs": {"train": {"mixing": {"cutmix_alpha": 1}, "global_batch_size": 8, "micro_batches": 2}},
    "warm-up": {"train": {"lr": {"name": "cosine", "warmup_steps": 900}}},
    "warm-up of a schedule": {
        "train": {"lr": {"name": "steps", "warmup_steps": 900}, "global_batch_size": {0: 8, 1: 4}}
    },
    "sizes": {"data": CROPPED, "train": {"image_size": {0: 8, 1: 10}, "global_batch_size": {0: 8, 1: 4}}},
}


def position_on_two_samples(config: Any) -> Position:
    """Two training samples are enough for the two workers: one each."""
    plain = without_training(config, WORKER)
    request = data_request(plain, WORKER)
    two = Listed(np.arange(2, dtype=np.int64), None)
    at = Position(two, np.arange(2, dtype=np.int64), 0, request.training, plain.data.repeats)
    require_warmup(plain, at.epochs)
    assert plain.train.samples_at_once(2, 0) == 1
    return at


@pytest.mark.parametrize("asked", DEMANDS.values(), ids=list(DEMANDS))
def test_no_part_of_training_asks_for_samples(asked: dict[str, Any]) -> None:
    assert position_on_two_samples(runs.config(**asked)).epochs.steps(0) == 1


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_runs_of_all_shipped_configs_can_be_evaluated(path: Path) -> None:
    position_on_two_samples(loading.load(path))


def test_a_run_with_repeats_is_evaluated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = {"name": "digits", "image_size": 8, "loader": "resident", "trivial_augment": True}
    config = runs.config(
        runs=str(tmp_path),
        name="run",
        data={**data, "repeated_augmentation": 4, "validation_samples": 1300},
        train={"epochs": 1, "lr": {"name": "cosine", "warmup_steps": 3}},
    )
    folder = CheckpointFolder(config.folder / "checkpoints", keep=1)
    summary = runs.trainer(config, checkpoints=folder).fit()
    action = Evaluation(config, str(config.folder / "checkpoints" / "latest.pt"))
    assert action.rehearse(Worker()).startswith("can be evaluated")
    action.run(Worker())
    assert f"test: top-1 {summary.test_top1:.2f} %" in capsys.readouterr().out
