"""The pipelines: samples in the order of `SampleOrder`, with any loader."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from pipelines.base import Batch, Data, Request, SplitSize
from pipelines.common.epochs import EpochTable
from pipelines.common.errors import UserError
from pipelines.loaders.bad_files import BadFiles
from pipelines.loaders.base import BadSamples, Feed, Loader, Stream
from pipelines.loaders.registry import loader
from pipelines.mixing import Mixing
from pipelines.order import Indices, SampleOrder, Share, evaluation_batches
from pipelines.phases import end_of
from pipelines.position import Position
from pipelines.settings import DataSetSettings
from pipelines.sources.base import digest
from pipelines.split import stratified
from pipelines.views import Recipe


class OrderedTraining:
    """A `TrainPipeline` over some of a recipe's samples, int64 [n]. Its only state is its position."""

    def __init__(
        self,
        recipe: Recipe,
        samples: Indices,
        loader: Loader,
        bad: BadFiles,
        request: Request,
        mixing: Mixing | None = None,
    ) -> None:
        self._recipe, self._samples = recipe, samples
        self._loader, self._bad, self._mixing = loader, bad, mixing
        self._phases = request.training
        self._at = Position(recipe.source, samples, request.seed, self._phases, recipe.repeats)
        self._share = request.share
        self._feed: Feed | None = None

    @property
    def epochs(self) -> EpochTable:
        return self._at.epochs

    def _new_feed(self) -> Feed:
        """Return a feed from the current position to the end of its phase."""
        at, recipe = self._at, self._recipe.sized(self._at.phase.image_size)
        end = end_of(self._phases, at.phase)
        batches = _micro_batches(at.order, self._share, recipe, at.epoch, at.batch, end)
        samples, bad = self._samples, self._bad  # Not `self`: a feed must not keep alive what holds it.
        stream = ((bad.replaced(samples[places], samples), numbers) for places, numbers in batches)
        return self._loader.feed(recipe, stream, self._share.largest(at.order.global_batch))

    def close(self) -> None:
        """End the feed, which reads ahead. Needed when the position changes, when samples are bad, and at the end."""
        if self._feed is not None:
            self._feed.close()
        self._feed = None

    def _step(self) -> list[Batch]:
        """Return the micro-batches at the current position."""
        while True:
            self._feed = self._feed or self._new_feed()
            try:
                return [self._feed.next() for _ in range(self._share.micro_batches)]
            except BadSamples as bad:
                self.close()
                self._bad.found(bad.faults, f"epoch {self._at.epoch}, batch {self._at.batch}")

    def epoch(self) -> Iterator[list[Batch]]:
        at, phase = self._at, self._at.phase
        while at.batch < self.epochs.steps(at.epoch):
            step = self._mixed(self._step())
            at.batch += 1
            yield step
        at.next_epoch()
        if at.phase != phase:
            self.close()

    def _mixed(self, step: list[Batch]) -> list[Batch]:
        """Mix the micro-batches at the current position, if anything of their global batch is mixed."""
        mixing, at = self._mixing, self._at
        draw = (
            None if mixing is None else mixing.drawn(at.epoch, at.batch, at.order.global_batch, *step[0][0].shape[-2:])
        )
        if mixing is None or draw is None:
            return step
        places = (self._share.part(part, at.order.global_batch) for part in range(len(step)))
        return [mixing.mixed(*batch, draw.part(place)) for batch, place in zip(step, places, strict=True)]

    def samples(self, epoch: int, batch: int) -> list[Indices]:
        order, every = self._at.order_in(epoch), self._samples
        parts = (order.micro_batch(epoch, batch, part, self._share) for part in range(self._share.micro_batches))
        return [self._bad.replaced(every[places], every) for places in parts]

    @property
    def bad_samples(self) -> dict[int, str]:
        return dict(self._bad.faults)

    def avoid(self, bad: Mapping[int, str]) -> None:
        if bad.keys() - self._bad.faults.keys():
            self._bad.faults.update(bad)
            self.close()

    def state_dict(self) -> dict[str, Any]:
        return self._at.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._at.load_state_dict(state)
        self.close()

    def seek(self, epoch: int, batch: int) -> None:
        self._at.seek(epoch, batch)
        self.close()


def _micro_batches(
    order: SampleOrder, share: Share, recipe: Recipe, epoch: int, batch: int, end: int | None = None
) -> Stream:
    """Yield places in the order and their random numbers, from a position to an epoch; without end if it is None."""
    while epoch != end:
        while batch < order.batches_per_epoch:
            for part in range(share.micro_batches):
                numbers = [order.randoms(epoch, batch, part, share, k, stream) for stream, k in recipe.streams]
                yield order.micro_batch(epoch, batch, part, share), np.concatenate(numbers, axis=1)
            batch += 1
        epoch, batch = epoch + 1, 0


class OrderedEvaluation:
    """An `EvaluationPipeline` over some of a recipe's samples, int64 [n].

    Bad samples are skipped, never replaced: a replacement would count twice.
    """

    def __init__(self, recipe: Recipe, samples: Indices, loader: Loader, bad: BadFiles, request: Request) -> None:
        assert not any(k for _, k in recipe.streams), "an evaluation uses no random numbers"
        self._recipe, self._loader, self._bad = recipe, loader, bad
        self.samples = len(samples)
        self.listing = digest(recipe.source.listing.encode(), samples.tobytes())
        self.left_out = 0
        share = request.share
        places = evaluation_batches(len(samples), request.evaluation_batch, share.rank, share.workers)
        self._batches = [samples[indices] for indices in places]
        self._feed: Feed | None = None

    def batches(self) -> Iterator[Batch]:
        place = 0
        while place < len(self._batches):
            if self._feed is None:
                largest = max(len(indices) for indices in self._batches)
                self._feed = self._loader.feed(self._recipe, _passes(self._batches, place), largest)
            try:
                batch = self._feed.next()
            except BadSamples as bad:
                self.close()
                self._bad.found(bad.faults, "evaluation")
                self._leave_out(np.array(list(bad.faults)))
            else:
                place += 1
                yield batch

    def close(self) -> None:
        if self._feed is not None:
            self._feed.close()
        self._feed = None

    def _leave_out(self, bad: Indices) -> None:
        """Remove bad samples from the batches. A batch that is then empty is removed, and the next takes its place."""
        whole = [indices[~np.isin(indices, bad)] for indices in self._batches]
        self.left_out += sum(map(len, self._batches)) - sum(map(len, whole))
        self._batches = [indices for indices in whole if len(indices)]


def _passes(batches: list[Indices], start: int) -> Stream:
    """Yield the batches from `start` on, then all of them, without end: the next pass is read ahead."""
    while True:
        for indices in batches[start:]:
            yield indices, np.empty((len(indices), 0))
        start = 0


def assemble(
    train: Recipe,
    plain: Recipe,
    test: Recipe | None,
    settings: DataSetSettings,
    request: Request,
    validation: Recipe | None = None,
) -> Data:
    """Return the pipelines of a data set.

    `train` and `plain` hold the same samples, as training and as evaluation see them. `validation` is the data set's
    own. The settings' operations on pixels come to `train` here. Raises UserError for held-out training samples beside
    `validation`, and for data with nothing to evaluate on.
    """
    train = replace(train, pixels=settings.pixels, repeats=settings.repeats)
    trained_on, held_out = stratified(plain.source.labels, settings.validation_samples, settings.split_seed)
    if validation is not None and len(held_out):
        raise UserError(
            f"data.validation_samples is {len(held_out)}, and {settings.where} has validation data of its own to "
            "choose the best epoch by; set data.validation_samples=0"
        )
    if test is None and validation is None and not len(held_out):
        raise UserError(
            f"{settings.where} has nothing to evaluate on; hold out training samples by data.validation_samples"
        )
    made_by = loader(settings, request)
    asked = request.mixing
    mixing = Mixing(asked, request.seed, settings.classes) if asked.is_on else None

    def bad_files(recipe: Recipe) -> BadFiles:
        return BadFiles(recipe.source, made_by, request.seed, skip=settings.skips_bad_files, where=settings.where)

    def evaluation(recipe: Recipe, samples: Indices) -> OrderedEvaluation:
        return OrderedEvaluation(recipe, samples, made_by, bad_files(recipe), request)

    evaluated: dict[str, tuple[Recipe, Indices]] = {}
    if len(held_out):
        evaluated["validation"] = plain, held_out
    elif validation is not None:
        evaluated["validation"] = validation, _every(validation)
    if test is not None:
        evaluated["test"] = test, _every(test)
    made = {name: evaluation(*on) for name, on in evaluated.items()}
    return Data(
        train=OrderedTraining(train, trained_on, made_by, bad_files(train), request, mixing),
        test=made.get("test"),
        validation=made.get("validation"),
        train_evaluation=evaluation(plain, trained_on) if request.evaluate_train else None,
        class_names=plain.source.class_names,
        normalisation=plain.normalisation,
        sizes={name: _size(*on) for name, on in {"train": (plain, trained_on), **evaluated}.items()},
    )


def _every(recipe: Recipe) -> Indices:
    return np.arange(len(recipe.source.labels), dtype=np.int64)


def _size(recipe: Recipe, samples: Indices) -> SplitSize:
    return SplitSize(len(samples), len(np.unique(recipe.source.labels[samples])))
