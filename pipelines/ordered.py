"""The pipelines themselves: samples in the order of `SampleOrder`, whatever makes their images."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from pipelines.base import Batch, Data, Request
from pipelines.config import DataError, DataSetSettings
from pipelines.order import Indices, Uniforms, evaluation_batches
from pipelines.recipe import Feed, Recipe
from pipelines.split import stratified


class OrderedTraining:
    """A `TrainPipeline` over some of a recipe's samples, int64 [n]. Its position is all its state."""

    def __init__(self, recipe: Recipe, samples: Indices, threads: int, request: Request) -> None:
        self._recipe, self._samples = recipe, samples
        self._order = request.order(len(samples))
        self._split = hashlib.blake2b(samples.tobytes(), digest_size=8).hexdigest()
        self._share = request.share
        self._threads, self._device_id = threads, request.device_id
        self._epoch, self._batch = 0, 0
        self._feed: Feed | None = None

    @property
    def steps_per_epoch(self) -> int:
        return self._order.batches_per_epoch

    def _stream(self) -> Iterator[tuple[Indices, Uniforms]]:
        """Micro-batches from the current position on, for ever."""
        order, share = self._order, self._share
        epoch, batch = self._epoch, self._batch
        while True:
            while batch < self.steps_per_epoch:
                for part in range(share.micro_batches):
                    uniforms = order.randoms(epoch, batch, part, share, self._recipe.uniforms)
                    yield self._samples[order.micro_batch(epoch, batch, part, share)], uniforms
                batch += 1
            epoch, batch = epoch + 1, 0

    def _new_feed(self) -> Feed:
        micro_batch = self._order.global_batch // (self._share.workers * self._share.micro_batches)
        return Feed(self._recipe, self._stream(), micro_batch, self._threads, self._device_id)

    def epoch(self) -> Iterator[list[Batch]]:
        while self._batch < self.steps_per_epoch:
            self._feed = self._feed or self._new_feed()
            step = [self._feed.next() for _ in range(self._share.micro_batches)]
            self._batch += 1
            yield step
        self._epoch, self._batch = self._epoch + 1, 0

    def state_dict(self) -> dict[str, Any]:
        order = self._order
        data = {"seed": order.seed, "samples": order.size, "global_batch": order.global_batch}
        return {**data, "split": self._split, "epoch": self._epoch, "batch": self._batch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        ours = self.state_dict()
        theirs = {"split": ours["split"], **state}  # A checkpoint may be older than the key; nothing was held out then.
        for key in ("seed", "samples", "global_batch"):
            if theirs[key] != ours[key]:
                raise DataError(
                    f"the checkpoint was made with {key} {theirs[key]}, this run has {ours[key]}; "
                    f"the position in an epoch means other samples: resume with the same"
                )
        if theirs["split"] != ours["split"]:
            raise DataError(
                "the checkpoint was made with other samples held out than data.split_seed and data.validation_samples "
                "hold out now; it has trained on samples of this validation set: resume with the same"
            )
        self._epoch, self._batch = state["epoch"], state["batch"]
        self._feed = None  # What DALI has read ahead is of the old position.


class OrderedEvaluation:
    """An `EvaluationPipeline` over some of a recipe's samples, int64 [n]."""

    def __init__(self, recipe: Recipe, samples: Indices, threads: int, request: Request) -> None:
        assert recipe.uniforms == 0, "evaluation leaves nothing to chance"
        self.samples = len(samples)
        share = request.share
        places = evaluation_batches(len(samples), request.evaluation_batch, share.rank, share.workers)
        self._batches = [samples[indices] for indices in places]
        self._feed: Feed | None = None
        if self._batches:
            batch = max(len(indices) for indices in self._batches)
            self._feed = Feed(recipe, self._stream(), batch, threads, request.device_id)

    def _stream(self) -> Iterator[tuple[Indices, Uniforms]]:
        while True:
            for indices in self._batches:
                yield indices, np.empty((len(indices), 0))

    def batches(self) -> Iterator[Batch]:
        for _ in self._batches:
            assert self._feed is not None
            yield self._feed.next()


def assemble(train: Recipe, plain: Recipe, test: Recipe, settings: DataSetSettings, request: Request) -> Data:
    """The pipelines of a data set. `train` and `plain` are of the same samples, as training and evaluation see them."""
    trained_on, held_out = stratified(plain.labels, settings.validation_samples, settings.split_seed)

    def evaluation(recipe: Recipe, samples: Indices) -> OrderedEvaluation:
        return OrderedEvaluation(recipe, samples, settings.threads, request)

    return Data(
        train=OrderedTraining(train, trained_on, settings.threads, request),
        test=evaluation(test, np.arange(len(test.labels), dtype=np.int64)),
        validation=evaluation(plain, held_out) if len(held_out) else None,
        train_evaluation=evaluation(plain, trained_on) if request.evaluate_train else None,
    )
