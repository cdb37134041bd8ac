"""`--evaluate` asks nothing of the training samples but what names the network's classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dynsparse.cli.actions.base import require
from dynsparse.cli.actions.evaluation import Evaluation, without_training
from dynsparse.cli.actions.one_of_many import OneOfMany
from dynsparse.cli.actions.preview import Preview
from dynsparse.cli.actions.rehearsal import Rehearsal
from dynsparse.cli.actions.training import Training
from dynsparse.config import loading
from dynsparse.config.schema import RunConfig
from dynsparse.config.shipped import FOLDER
from dynsparse.errors import UserError
from dynsparse.runtime import Worker
from dynsparse.training.building import data_request
from dynsparse.training.checkpoint import CheckpointFolder
from dynsparse.training.older import as_of_now
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


def test_another_size_of_a_run_has_another_crop() -> None:
    """A run's config says null for what follows from its size, and an older one has the number that it came to."""
    now = runs.config(data={"name": "imagenet", "number_of_classes": 3}, model={"name": "small_cnn"}).as_dict()
    assert now["data"]["evaluation_resize"] is None
    old = {**now, "data": {**now["data"], "evaluation_resize": 256}}
    asked = {**old, "data": {**old["data"], "evaluation_resize": 300}}
    for plain, resize in ((now, 146), (as_of_now(old), 146), (as_of_now(asked), 300)):
        again = loading.parse(dict(plain), ["data.image_size=128"])
        assert again.data.resize == resize  # type: ignore[union-attr]
    assert as_of_now({"data": {"name": "digits"}}) == {"data": {"name": "digits"}}


def test_other_images_are_normalised_as_the_network_was_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`small_images` computes mean and deviation from its training images, which are darker in the other folder."""
    for root, darker in (("a", 1), ("b", 8)):
        for part, count in (("train", 24), ("test", 30)):
            for number in range(count):
                file = tmp_path / root / part / f"class_{number % 2}" / f"{number}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                divided = darker if part == "train" else 1
                levels = np.random.default_rng(number).integers(0, 128 + 127 * (number % 2), (6, 6, 3)) // divided
                Image.fromarray(levels.astype(np.uint8)).save(file)
    data = {"name": "small_images", "image_size": 6, "number_of_classes": 2, "augment": False, "threads": 1}
    train = {"epochs": 2, "global_batch_size": 8}
    here, there = (
        runs.config(runs=str(tmp_path), name="run", data={**data, "path": str(tmp_path / root)}, train=train)
        for root in ("a", "b")
    )
    runs.trainer(here, checkpoints=CheckpointFolder(here.folder / "checkpoints", keep=1)).fit()
    said = []
    for config in (here, there):
        action = Evaluation(config, str(here.folder / "checkpoints" / "latest.pt"))
        assert action.rehearse(Worker()).startswith("can be evaluated")
        action.run(Worker())
        said.append(capsys.readouterr().out.splitlines()[-1])
    assert said[0].startswith("test: top-1 ") and said[0] == said[1]


GPUS_ALONE: dict[str, dict[str, Any]] = {
    "cuda_graphs": {"train": {"compile": True, "cuda_graphs": True}},
    "semi_structured": {
        "method": {"name": "nm", "transposable": True},
        "sparsity": {"conv": 0.5, "fc": 0.5, "structure": "2:4"},
        "train": {"semi_structured": True, "precision": "bf16"},
    },
}
"""Options that only GPUs can train by. The networks have layers whose sizes fit them."""


def by_gpu(tmp_path: Path, option: str) -> RunConfig:
    sections = GPUS_ALONE[option]
    train = {"epochs": 1, **sections["train"]}
    model = {"name": "mnist_mlp", "hidden": [24, 12]}
    classes = {"number_of_classes": 8}
    return runs.config(**{**sections, "model": model, "data": classes, "train": train}, runs=str(tmp_path), name="run")


@pytest.mark.parametrize("option", GPUS_ALONE)
def test_what_gpus_alone_train_by_is_refused_by_a_rule(tmp_path: Path, option: str) -> None:
    """A check tells it as a start does, and a picture of the data needs none of it."""
    settings = by_gpu(tmp_path, option)
    rule = f"^train\\.{option} is on, and the model is on the cpu"
    for action in (Training(settings), Rehearsal(settings, Training(settings)), OneOfMany(settings, 0, 2)):
        with pytest.raises(UserError, match=rule):
            require(action.rules(Worker()))
    require(Preview(settings, 4).rules(Worker()))
    require(Evaluation(settings, "x").rules(Worker()))


@pytest.mark.parametrize("option", GPUS_ALONE)
def test_a_run_of_gpus_is_evaluated_on_a_processor(
    tmp_path: Path, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = by_gpu(tmp_path, option)
    plain = settings.train.model_copy(update={"compile": False, "cuda_graphs": False, "semi_structured": False})
    folder = CheckpointFolder(settings.folder / "checkpoints", keep=1)
    run = runs.trainer(settings.model_copy(update={"train": plain})).run
    run.config = settings
    folder.save(run.save([run.of_this_rank()]), 0)
    asked = settings.model_copy(update={"train": settings.train.model_copy(update={"compile": False})})
    action = Evaluation(asked, str(settings.folder / "checkpoints" / "latest.pt"))
    assert action.rehearse(Worker()).startswith("can be evaluated")
    action.run(Worker())
    assert "test: top-1 " in capsys.readouterr().out
