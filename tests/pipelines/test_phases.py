"""Sizes of images and global batches that change by epoch: the same batches for any worker, loader and position."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pipelines
from pipelines.base import Batch, Request, TrainPipeline
from pipelines.common.errors import UserError
from pipelines.order import Share
from pipelines.phases import Phase, batches_begun, end_of, phase_at
from pipelines.position import Position
from pipelines.sources.base import Arrays, Listed
from pipelines.views import AsItIs, CentralCrop, Normalisation, RandomResizedCrop, Recipe
from tests.pipelines import streams
from tests.pipelines.pictures import CLASSES, picture, settings

PHASES = (Phase(0, 12, 12), Phase(1, 12, 20), Phase(2, 6, 16))
"""30 samples: 2 steps in epochs 0 and 1, 5 in epoch 2."""
STEPS = 2 + 2 + 5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images")
    for part, count in (("train", 10), ("val", 2)):
        for place, name in enumerate(CLASSES):
            (root / part / name).mkdir(parents=True)
            for number in range(count):
                image = picture(30 + number, 26 + 2 * number, 100 * place + number)
                image.save(root / part / name / f"{number}.png")
    return root


def request(rank: int = 0, workers: int = 1, parts: int = 1) -> Request:
    return Request(7, 12, Share(rank, workers, parts), 6, None, phases=PHASES)


def built(folder: Path, asked: Request, loader: str) -> TrainPipeline:
    asked_for = settings(folder, loader=loader)
    if loader == "torch":  # In this very process: starting others takes seconds.
        asked_for = asked_for.model_copy(update={"threads": 0})
    return pipelines.build(asked_for, asked).train


def delivered(folder: Path, workers: int = 1, parts: int = 1, loader: str = "dali") -> list[Batch]:
    """The steps of three epochs, the slices of all workers joined."""
    made = [built(folder, request(rank, workers, parts), loader) for rank in range(workers)]
    ranks = [streams.endless(one) for one in made]
    found = [streams.joined(next(rank) for rank in ranks) for _ in range(STEPS)]
    for one in made:
        one.close()
    return found


@pytest.fixture(scope="module")
def alone(folder: Path) -> list[Batch]:
    return delivered(folder)


def test_sizes_and_batches_follow_the_phases(alone: list[Batch]) -> None:
    shapes = [tuple(images.shape) for images, _ in alone]
    assert shapes == [(12, 3, 12, 12)] * 2 + [(12, 3, 20, 20)] * 2 + [(6, 3, 16, 16)] * 5


@pytest.mark.parametrize(("workers", "parts"), [(2, 1), (3, 2)])
def test_the_same_batches_on_any_number_of_workers(folder: Path, alone: list[Batch], workers: int, parts: int) -> None:
    streams.assert_same(delivered(folder, workers, parts), alone)


def test_loaders_agree(folder: Path, alone: list[Batch]) -> None:
    """Agree within a grey level, but for the rim: DALI repeats the edge of a window that shrinks."""
    for (images, labels), (theirs, other_labels) in zip(alone, delivered(folder, loader="torch"), strict=True):
        assert torch.equal(labels, other_labels)
        levels = (images - theirs).abs() * 58  # A standard deviation is 57 or 58 grey levels.
        assert float(levels[..., 1:-1, 1:-1].max()) < 1.05
        assert float(levels.max()) < 5


@pytest.mark.parametrize("step", range(STEPS))
def test_resumed_at_each_step(folder: Path, alone: list[Batch], step: int) -> None:
    """The first and the last step of each phase among them: the position alone says what comes."""
    before = built(folder, request(), "dali")
    epoch = before.epochs.epoch_of(step)
    before.seek(epoch, step - before.epochs.before(epoch))
    after = built(folder, request(), "dali")
    after.load_state_dict(before.state_dict())
    coming = streams.endless(after)
    streams.assert_same([next(coming)], alone[step : step + 1])
    after.close()


def test_the_end_of_a_phase_is_a_position(folder: Path, alone: list[Batch]) -> None:
    """A checkpoint after an epoch's last step has the epoch's end, from which the next phase begins."""
    train = built(folder, request(), "dali")
    train.seek(1, 2)
    coming = streams.endless(train)
    streams.assert_same([next(coming) for _ in range(5)], alone[4:])
    train.close()


def test_an_epoch_has_each_sample_once() -> None:
    at = position(PHASES)
    for epoch in range(3):
        at.seek(epoch, 0)
        seen = [at.order.batch(epoch, batch) for batch in range(at.epochs.steps(epoch))]
        samples = np.concatenate(seen).tolist()
        assert len(set(samples)) == len(samples) == (24, 24, 30)[epoch]


def position(phases: Any, samples: int = 30) -> Position:
    labels = np.zeros(samples, dtype=np.int64)
    return Position(Listed(labels, "listing"), np.arange(samples), 7, phases)


def test_positions_know_the_batches_before_them() -> None:
    at = position(PHASES)
    at.seek(1, 1)
    assert "batches" not in at.state_dict(), "nothing has changed yet: as without a schedule"
    at.seek(2, 1)
    assert at.state_dict()["batches"] == [[0, 12], [2, 6]]
    assert at.state_dict()["global_batch"] == 6
    position(PHASES).load_state_dict(at.state_dict())
    position((*PHASES, Phase(3, 30, 12))).load_state_dict(at.state_dict())  # What comes later may be another thing.


def test_a_schedule_can_begin_where_there_was_none() -> None:
    plain = position((Phase(0, 12),))
    plain.seek(1, 1)
    later = position(PHASES)
    later.load_state_dict(plain.state_dict())
    assert (later.epoch, later.batch) == (1, 1)


@pytest.mark.parametrize(
    ("phases", "message"),
    [
        ((Phase(0, 6),), r"global batches \{0: 12, 2: 6\}, this run has \{0: 6\}; .* up to epoch 2$"),
        ((Phase(0, 12), Phase(1, 6)), r"\{0: 12, 2: 6\}, this run has \{0: 12, 1: 6\}"),
        ((Phase(0, 12),), "made with global_batch 6, this run has 12"),
    ],
)
def test_other_batches_before_a_position_are_refused(phases: Any, message: str) -> None:
    at = position(PHASES)
    at.seek(2, 1)
    with pytest.raises(UserError, match=message):
        position(phases).load_state_dict(at.state_dict())


@pytest.mark.parametrize("phases", [PHASES[:2], (*PHASES[:2], Phase(2, 30)), (*PHASES[:2], Phase(3, 10))], ids=len)
def test_an_epoch_that_is_about_to_begin_may_have_another_batch(phases: Any) -> None:
    """A run that has ended may go on for more epochs with larger batches. Nothing of them is trained yet."""
    at, other = position(PHASES), position(phases)
    at.seek(2, 0)
    other.load_state_dict(at.state_dict())
    assert (other.epoch, other.batch) == (2, 0)
    assert other.epochs.before(2) == at.epochs.before(2)
    at.seek(2, 1)
    with pytest.raises(UserError, match="global_batch 6, this run has "):
        other.load_state_dict(at.state_dict())


def test_the_batches_of_epochs_that_are_trained_stay() -> None:
    at = position(PHASES)
    at.seek(2, 0)
    with pytest.raises(UserError, match="made with global_batch 12, this run has 6; the position"):
        position((Phase(0, 6),)).load_state_dict(at.state_dict())
    with pytest.raises(UserError, match=r"batches \{0: 12\}, this run has \{0: 6, 1: 12\}; its .* up to epoch 1$"):
        position((Phase(0, 6), Phase(1, 12))).load_state_dict(at.state_dict())


def test_too_few_samples_for_a_later_phase() -> None:
    with pytest.raises(UserError, match="global_batch_size is 31, the data set has 30 samples"):
        position((Phase(0, 6), Phase(5, 31)))


def test_phases_of_epochs() -> None:
    assert [phase_at(PHASES, epoch).global_batch for epoch in (0, 1, 2, 99)] == [12, 12, 6, 6]
    assert [end_of(PHASES, phase) for phase in PHASES] == [1, 2, None]
    assert [batches_begun(PHASES, epoch) for epoch in (0, 1, 2)] == [[[0, 12]], [[0, 12]], [[0, 12], [2, 6]]]


def test_only_crops_have_other_sizes() -> None:
    assert RandomResizedCrop(224).sized(128) == RandomResizedCrop(128)
    assert CentralCrop(224, 256).sized(112) == CentralCrop(112, 128)
    assert CentralCrop(224, 224).sized(9).resize == 9
    arrays = Arrays(np.zeros((4, 6, 6, 3), dtype=np.uint8), np.zeros(4, dtype=np.int64))
    whole = Recipe(arrays, AsItIs(), Normalisation((0.0,) * 3, (1.0,) * 3))
    assert whole.sized(None) is whole
    with pytest.raises(NotImplementedError):
        whole.sized(3)


@pytest.mark.parametrize("loader", streams.FOR_ARRAYS)
def test_batches_of_arrays_change_too(loader: str) -> None:
    """Batches without a size go with any data set."""
    images = np.random.default_rng(0).integers(0, 256, (30, 6, 6, 3), dtype=np.uint8)
    arrays = Arrays(images, np.arange(30, dtype=np.int64) % 3)
    recipe = Recipe(arrays, AsItIs(), Normalisation((0.0,) * 3, (1.0,) * 3))
    phases = tuple(replace(phase, image_size=None) for phase in PHASES)
    train = streams.training(recipe, replace(request(), phases=phases), loader)
    coming = streams.endless(train)
    assert [len(next(coming)[1]) for _ in range(STEPS)] == [12] * 4 + [6] * 5
    train.close()
