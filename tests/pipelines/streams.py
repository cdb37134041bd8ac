"""Requests for pipelines, and what several workers deliver, put together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import pytest
import torch

import pipelines
from pipelines.base import Batch, EvaluationPipeline, Request, TrainPipeline
from pipelines.common.errors import UserError
from pipelines.loaders.bad_files import BadFiles
from pipelines.loaders.registry import loader as loader_of
from pipelines.order import Share
from pipelines.ordered import OrderedEvaluation, OrderedTraining
from pipelines.position import Position
from pipelines.settings import DataSetSettings
from pipelines.views import Recipe

SEED = 7
LOADERS = ("dali", "torch")
FOR_ARRAYS = (*LOADERS, "resident")
"""Loaders of data sets that are held in memory."""


def request(
    rank: int = 0,
    workers: int = 1,
    parts: int = 1,
    batch: int = 24,
    evaluation_batch: int = 16,
    evaluate_train: bool = False,
) -> Request:
    return Request(SEED, batch, Share(rank, workers, parts), evaluation_batch, None, evaluate_train)


def settings_for(loader: str) -> DataSetSettings:
    return DataSetSettings.model_validate({"name": "made up", "threads": 1, "loader": loader})


def training(recipe: Recipe, asked: Request, loader: str = "dali", **options: object) -> OrderedTraining:
    """Over all samples of a recipe."""
    settings = settings_for(loader).model_copy(update=options)
    made_by = loader_of(settings, asked)
    bad = BadFiles(recipe.source, made_by, SEED, skip=False, where="data.path: made up")
    return OrderedTraining(recipe, np.arange(len(recipe.source.labels)), made_by, bad, asked)


def evaluation(recipe: Recipe, asked: Request, loader: str = "dali") -> OrderedEvaluation:
    made_by = loader_of(settings_for(loader), asked)
    bad = BadFiles(recipe.source, made_by, SEED, skip=False, where="data.path: made up")
    return OrderedEvaluation(recipe, np.arange(len(recipe.source.labels)), made_by, bad, asked)


def joined(batches: Iterable[Batch]) -> Batch:
    images, labels = zip(*batches, strict=True)
    return torch.cat(images), torch.cat(labels)


def endless(pipeline: TrainPipeline) -> Iterator[Batch]:
    """One step after the other, over the ends of epochs; the micro-batches of a step joined."""
    while True:
        for step in pipeline.epoch():
            yield joined(step)


def global_batches(build: Callable[[Request], TrainPipeline], workers: int, steps: int, parts: int = 1) -> list[Batch]:
    """The first steps, the slices of all workers joined."""
    ranks = [endless(build(request(rank, workers, parts))) for rank in range(workers)]
    return [joined(next(rank) for rank in ranks) for _ in range(steps)]


def whole(pipeline: EvaluationPipeline | None) -> Batch:
    """One pass."""
    assert pipeline is not None
    return joined(pipeline.batches())


def assert_same(batches: list[Batch], others: list[Batch]) -> None:
    """Bit for bit."""
    for (images, labels), (other_images, other_labels) in zip(batches, others, strict=True):
        assert torch.equal(images, other_images)
        assert torch.equal(labels, other_labels)


def assert_workers_and_resume_change_nothing(build: Callable[[Request], TrainPipeline]) -> None:
    """The contract of a training pipeline whose epoch has at least two steps, its images augmented or not."""
    expected = global_batches(build, workers=1, steps=5)
    assert_same(global_batches(build, workers=2, steps=5, parts=3), expected)
    assert_same(global_batches(build, workers=4, steps=5), expected)
    for stop in (1, 3):
        first, second = build(request()), build(request())
        steps = endless(first)
        for _ in range(stop):
            next(steps)
        second.load_state_dict(first.state_dict())
        rest = endless(second)
        assert_same([next(rest) for _ in range(5 - stop)], expected[stop:])


def assert_known_beforehand(settings: DataSetSettings, samples: int) -> None:
    """Order, listing and split are those of the pipelines, before these are built."""
    settings = settings.model_copy(update={"validation_samples": 5})
    asked = request(batch=12)
    expected = pipelines.build(settings, asked).train
    found = pipelines.position_of(settings, asked)
    assert isinstance(found, Position) and found.state_dict() == expected.state_dict()
    assert found.epochs.steps(0) == expected.epochs.steps(0) == (samples - 5) // 12
    with pytest.raises(UserError, match=rf"global_batch_size is {samples}, the data set has {samples - 5} samples"):
        pipelines.position_of(settings, request(batch=samples))
    with pytest.raises(UserError, match="validation_samples is 99999"):
        pipelines.position_of(settings.model_copy(update={"validation_samples": 99999}), asked)
    with pytest.raises(UserError, match="made with seed 8, this run has 7"):
        found.load_state_dict({**expected.state_dict(), "seed": 8})
