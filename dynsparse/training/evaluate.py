"""Exact evaluation: every sample counted once, over all ranks."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from dynsparse.config.recipe import BestBy
from dynsparse.distributed import sync
from dynsparse.errors import RunError, StopRequested, UserError
from pipelines.base import EvaluationPipeline

Tally = Callable[[Tensor, Tensor], None]
"""Function that counts more of a batch: given logits [batch, classes] and labels [batch]."""


@dataclass(frozen=True)
class Evaluation:
    """Mean cross-entropy, and accuracy in percent, over all samples."""

    loss: float
    top1: float
    top5: float
    samples: int
    left_out: int = 0
    """Samples skipped because they could not be read or decoded. They are not among `samples`."""


@dataclass(frozen=True)
class Evaluations:
    """Results of the evaluations after an epoch: of test or validation samples, or of both. None: not evaluated."""

    test: Evaluation | None = None
    validation: Evaluation | None = None
    """Result on samples that are neither trained nor tested on, if there are any."""
    train: Evaluation | None = None
    """Result on the training samples with evaluation transforms, if asked for."""
    ema: Evaluations | None = None
    """Results of the average of the weights, if there is one."""
    best_by: BestBy = "model"
    """Network whose results choose the best epoch."""

    @property
    def candidate(self) -> Evaluations:
        """The results of the network that the best epoch is chosen by."""
        if self.best_by == "model":
            return self
        assert self.ema is not None
        return self.ema

    @property
    def selecting(self) -> Evaluation | None:
        """The result that chooses the best epoch: of validation samples where there are any, else of test samples."""
        return self.candidate.validation or self.candidate.test

    def named(self) -> list[tuple[str, Evaluation | None]]:
        """Return all results, by the names of the network and the samples."""
        found = [("test", self.test), ("validation", self.validation), ("train", self.train)]
        return found if self.ema is None else [*found, *((f"ema {name}", on) for name, on in self.ema.named())]

    @property
    def selected_on(self) -> str:
        """Name of the samples that choose the best epoch, "validation" or "test"."""
        return "validation" if self.validation else "test"


def hits(logits: Tensor, labels: Tensor, k: int) -> Tensor:
    """Number of labels [batch] that are among the k largest logits [batch, classes], an int64 scalar."""
    top = logits.topk(min(k, logits.shape[1]), dim=1).indices
    return (top == labels[:, None]).any(1).sum()


@torch.no_grad()
def evaluate(
    model: nn.Module,
    pipeline: EvaluationPipeline,
    device: torch.device,
    forward_pass: Callable[[], AbstractContextManager[object]],
    stop_requested: Callable[[], bool] = lambda: False,
    tally: Tally | None = None,
) -> Evaluation:
    """Evaluate `model` on the pipeline's samples. A collective: each rank takes its share.

    `tally` is called with the logits and labels of each batch of this rank.

    Raises RunError on every rank if the data of any cannot be read, StopRequested on every rank once any is asked to
    stop. The model's buffers must agree between ranks (`agreement.average_buffers`). Otherwise the result would depend
    on which rank sees which sample.
    """
    was_training = model.training
    model.eval()
    try:
        counts, failure = _count(model, pipeline, device, forward_pass, stop_requested, tally)
    finally:
        model.train(was_training)
    loss_sum, top1, top5, samples, left_out, failures = sync.sum_(counts).tolist()
    if failures:
        raise RunError(*sync.all_said(failure))
    assert int(samples + left_out) == pipeline.samples, f"evaluated {int(samples)} samples of {pipeline.samples}"
    if not samples:
        raise RunError(f"none of {pipeline.samples} samples to evaluate on can be had; mend the data")
    return Evaluation(loss_sum / samples, 100 * top1 / samples, 100 * top5 / samples, int(samples), int(left_out))


def _count(
    model: nn.Module,
    pipeline: EvaluationPipeline,
    device: torch.device,
    forward_pass: Callable[[], AbstractContextManager[object]],
    stop_requested: Callable[[], bool],
    tally: Tally | None,
) -> tuple[Tensor, str | None]:
    """Return this rank's float64 [6] (loss, top-1, top-5, samples, skipped, failures), and why its data failed if so.

    One exchange of flags a batch lets all leave together. A rank with fewer batches waits for the others in it.
    """
    counts = torch.zeros(6, dtype=torch.float64, device=device)
    failure = None
    batches = pipeline.batches()
    while True:
        try:
            batch = next(batches, None) if failure is None else None
        except UserError as error:
            batch, failure = None, str(error)
        stop, more = sync.any_of(stop_requested(), batch is not None)
        if stop:
            raise StopRequested
        if not more:
            break
        if batch is not None:
            images, labels = batch
            with forward_pass():
                logits = model(images).float()
            counts[0] += functional.cross_entropy(logits, labels, reduction="sum")
            counts[1] += hits(logits, labels, 1)
            counts[2] += hits(logits, labels, 5)
            counts[3] += len(labels)
            if tally is not None:
                tally(logits, labels)
    counts[4] += pipeline.left_out
    counts[5] += failure is not None
    return counts, failure
