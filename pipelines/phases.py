"""Phases of training: epochs that share a global batch and a size of images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

Phases = Sequence["Phase"]
"""One phase or more, the first for epoch 0, in the order of their epochs."""


@dataclass(frozen=True)
class Phase:
    """A part of training, from its first epoch to the next phase or the end."""

    first: int
    """Its first epoch, counted from 0."""
    global_batch: int
    image_size: int | None = None
    """Height and width of the training images, in pixels; None: as the data set has them."""


def phase_at(phases: Phases, epoch: int) -> Phase:
    """Return the phase of an epoch."""
    return next(phase for phase in reversed(phases) if phase.first <= epoch)


def end_of(phases: Phases, phase: Phase) -> int | None:
    """Return the first epoch after a phase; None for the last one, which has no end."""
    later = [other.first for other in phases if other.first > phase.first]
    return later[0] if later else None


def batches_begun(phases: Phases, epoch: int) -> list[list[int]]:
    """Return [first epoch, global batch] wherever the global batch changes, up to an epoch."""
    begun = [phase for phase in phases if phase.first <= epoch]
    changes = [phase for before, phase in zip([None, *begun], begun, strict=False) if not _alike(before, phase)]
    return [[phase.first, phase.global_batch] for phase in changes]


def _alike(before: Phase | None, phase: Phase) -> bool:
    return before is not None and before.global_batch == phase.global_batch
