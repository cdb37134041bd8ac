"""Whole runs side by side: an epoch of each in turn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from functools import partial
from typing import Any

import torch

from benchmarks.harness.record import Result
from benchmarks.harness.rounds import compared, in_rounds, ratio
from benchmarks.parts.shrinking.cases import ASKED, DENSE, SHRUNK, STARVED, UNSTRUCTURED, Case
from dynsparse.distributed import digest
from dynsparse.runtime import Worker
from dynsparse.training.building import build_trainer
from dynsparse.training.callbacks import Callback, EpochReport, ShrinkReport
from dynsparse.training.trainer import Trainer

WAYS = (DENSE, UNSTRUCTURED, STARVED, SHRUNK)
INFERENCE_BATCHES = (1, 32)
INFERENCE_ROUNDS = 15


class Course(Callback):
    """The course of a run: seconds of training in each epoch and of each shrink, and accuracy."""

    def __init__(self, images: int) -> None:
        self.images = images
        self.seconds: list[float] = []
        self.top1: list[float] = []
        self.shrinks: dict[int, Any] = {}

    def on_epoch(self, report: EpochReport) -> None:
        """Note the epoch's seconds without its evaluation, and the top-1 on the test samples, in percent."""
        assert report.images_per_second is not None, "no run resumes here"
        self.seconds.append(self.images / report.images_per_second)
        if report.results.test is not None:
            self.top1.append(report.results.test.top1)

    def on_shrink(self, report: ShrinkReport) -> None:
        """Note a shrink's seconds, and the parameters that it leaves."""
        self.shrinks[report.epoch] = {"seconds": report.seconds, "parameters": report.after.parameters}


def side_by_side(case: Case, seed: int) -> Result:
    """Train the network in all ways, an epoch of each in turn, and time inference of what comes of it.

    A run's time is that of its steps, with the reading of images, and of its shrinks.
    """
    with ExitStack() as stack:
        trainers, courses = {}, {}
        for way in WAYS:
            config = case.config(way, seed)
            course = courses[way] = Course(0)
            trainer = trainers[way] = build_trainer(config, Worker(), observers=[course])
            stack.enter_context(closing(trainer.data))
            course.images = trainer.data.train.epochs.steps(0) * case.batch
        runs = {way: trainer.epochs() for way, trainer in trainers.items()}
        in_rounds({way: partial(next, run) for way, run in runs.items()}, case.epochs, warm_up=0)
        found = {way: _of_run(trainers[way], courses[way]) for way in WAYS}
        asked = {key: getattr(case, key) for key in ASKED}
        return {"asked": asked, **_ratios(case, courses), "runs": found, "inference": _inference(case, trainers)}


def _of_run(trainer: Trainer, course: Course) -> Result:
    steps = trainer.data.train.epochs.steps(0)
    return {
        "seconds": course.seconds,
        "top1": course.top1,
        "shrinks": course.shrinks,
        "shrink_in_steps": in_steps(course.shrinks, course.seconds, steps),
        "parameters": trainer.network.parameters,
        "active_weights": trainer.network.active_weights,
        "weight_digest": f"{digest.weight_digest(trainer.model, trainer.masks):016x}",
    }


def in_steps(shrinks: Mapping[int, Result], seconds: Sequence[float], steps: int) -> list[float]:
    """Return the time of each shrink in steps of the network that it leaves: in those of the epoch that it begins."""
    return [one["seconds"] * steps / seconds[epoch] for epoch, one in shrinks.items()]


def _ratios(case: Case, courses: Mapping[str, Course]) -> Result:
    """Compare the time of whole runs, and that of a step after the last shrink, in the rounds that both have."""
    whole = {way: sum(one.seconds) + sum(s["seconds"] for s in one.shrinks.values()) for way, one in courses.items()}
    last = max(courses[SHRUNK].shrinks)
    later = {way: one.seconds[last:] for way, one in courses.items()}
    return {
        "whole_run_to_dense": {way: seconds / whole[DENSE] for way, seconds in whole.items()},
        "last_step_to_dense": {way: ratio(seconds, later[DENSE]) for way, seconds in later.items()},
    }


@torch.no_grad()
def _inference(case: Case, trainers: Mapping[str, Trainer]) -> Result:
    """Time the trained networks' forward passes in float32, in turns."""
    models = {way: trainer.model.eval() for way, trainer in trainers.items()}
    found, device = {}, trainers[DENSE].engine.device
    for batch in INFERENCE_BATCHES:
        images = torch.randn(batch, 3, case.size, case.size).contiguous(memory_format=torch.channels_last).to(device)
        ways = {way: partial(model, images) for way, model in models.items()}
        found[str(batch)] = compared(in_rounds(ways, INFERENCE_ROUNDS, warm_up=3), DENSE)
    return found
