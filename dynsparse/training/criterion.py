"""The loss of a run: outputs and targets become one number."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from torch import Tensor
from torch.nn import functional

from dynsparse.config.sections import TrainSettings

Loss = Callable[[Tensor, Tensor, float], Tensor]
"""Mean loss of logits float32 [batch, classes], labels, and a fraction to smooth them by.

Labels are int64 [batch], or soft: float32 [batch, classes].
"""


class Guide(Protocol):
    """A network to learn from."""

    digest: str

    def __call__(self, images: Tensor) -> Tensor:
        """Return its logits, float32 [batch, classes], without gradients."""
        ...


class Criterion:
    """Turns a micro-batch's outputs and targets into its mean loss, as the settings say.

    With a teacher the targets are its outputs too: (1 - share) of the loss is that of the labels.
    """

    def __init__(self, settings: TrainSettings, teacher: Guide | None = None) -> None:
        self.loss = LOSSES[settings.loss]
        self.smoothing = settings.label_smoothing
        self.teacher, self.teaching = teacher, settings.teacher

    def taught(self, images: Tensor) -> Tensor | None:
        """Return the teacher's logits of the images, for `__call__`; None without a teacher."""
        return None if self.teacher is None else self.teacher(images)

    def __call__(self, logits: Tensor, labels: Tensor, taught: Tensor | None = None) -> Tensor:
        """Return the mean over the samples, a scalar. `logits` and `taught` are float32 [batch, classes]."""
        loss = self.loss(logits, labels, self.smoothing)
        if taught is None or self.teaching is None:
            return loss
        share = self.teaching.share
        return (1 - share) * loss + share * distillation(logits, taught, self.teaching.temperature)


def distillation(logits: Tensor, taught: Tensor, temperature: float) -> Tensor:
    """Return T^2 KL(softmax(taught / T) || softmax(logits / T)), the mean over the samples.

    Hinton, Vinyals & Dean, "Distilling the knowledge in a neural network", 2015. T^2 keeps the gradients at their size
    for any T. They use the cross-entropy, which differs from the divergence by the teacher's entropy alone.
    """
    ours, theirs = ((values / temperature).log_softmax(1) for values in (logits, taught))
    return temperature**2 * functional.kl_div(ours, theirs, reduction="batchmean", log_target=True)


def cross_entropy(logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    """Return the mean cross-entropy of the softmax."""
    return functional.cross_entropy(logits, labels, label_smoothing=smoothing)


def binary_cross_entropy(logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    """Return the mean over samples and classes of each class's cross-entropy against its target in [0, 1].

    Wightman, Touvron & Jegou, "ResNet strikes back", 2021. Targets are smoothed as for the softmax: t becomes
    (1 - s) t + s / classes.
    """
    targets = labels if labels.dim() == 2 else functional.one_hot(labels, logits.shape[1]).float()
    if smoothing:
        targets = targets * (1 - smoothing) + smoothing / logits.shape[1]
    return functional.binary_cross_entropy_with_logits(logits, targets)


LOSSES: dict[str, Loss] = {"cross_entropy": cross_entropy, "bce": binary_cross_entropy}
"""Losses by the name that `train.loss` gives them."""
