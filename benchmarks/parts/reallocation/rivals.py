"""Reallocations with dense masks and full scans beside ours, and proof that all did the same work."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch

from benchmarks.full_scans import DenseLayer, in_torch, with_numpy
from benchmarks.harness.record import Result
from benchmarks.harness.rounds import compared, in_rounds
from benchmarks.parts.reallocation.subject import OURS, Amount, Subject


class Rival:
    """A way with dense masks. It begins as a subject does."""

    def __init__(self, subject: Subject, mask: torch.dtype, act: Callable[[Sequence[DenseLayer], float], None]) -> None:
        self.subject, self.act = subject, act
        self.layers = [layer.copy(mask) for layer in subject.start]

    def __call__(self) -> None:
        self.act(self.layers, self.subject.threshold)

    def restore(self) -> None:
        for layer, start in zip(self.layers, self.subject.start, strict=True):
            layer.take_over(start)
        self.subject.empty_cache()


def against_full_scans(amount: Amount, moves: int) -> Result:
    """Time all ways in the same rounds, and prove that they did the same."""
    subject = Subject(amount, amount.sparsity, moves=moves)
    draw, seeded = np.random.default_rng(0), torch.Generator().manual_seed(0)
    rivals = {
        "numpy": Rival(subject, torch.float32, lambda layers, h: with_numpy(layers, h, draw)),
        "numpy, unique": Rival(
            subject, torch.float32, lambda layers, h: with_numpy(layers, h, draw, assume_unique=True)
        ),
        "torch": Rival(subject, torch.bool, lambda layers, h: in_torch(layers, h, seeded)),
    }
    ours = {"ours with digests": subject.reallocate_with_digests, OURS: subject.reallocate}

    def before(way: str) -> None:
        if way in rivals:
            rivals[way].restore()
        else:
            subject.restore_to_step()

    # A round takes long enough to need no warming up.
    times = in_rounds({**rivals, **ours}, amount.rounds_of_full_scans, warm_up=0, before=before)
    subject.restore_to_step()
    subject.reallocate()
    after = {OURS: subject.layers(), **{name: rival.layers for name, rival in rivals.items()}}
    return {"moved": moves, **compare_work(subject, after), **compared(times, OURS)}


def compare_work(subject: Subject, after: Mapping[str, Sequence[DenseLayer]]) -> Result:
    """Raise RuntimeError unless all ways dropped and grew the same numbers, and computed what they should."""
    grown = {way: check_work(way, subject, layers) for way, layers in after.items()}
    for way, counts in grown.items():
        if counts != grown[OURS]:
            raise RuntimeError(f"{way} grew {counts} weights in the layers, ours {grown[OURS]}")
    return {"layers": len(subject.masks), "weights": subject.masks.weights, "active": subject.masks.active_weights}


def check_work(way: str, subject: Subject, after: Sequence[DenseLayer]) -> list[int]:
    """Count what a way has grown in each layer.

    RuntimeError unless it dropped exactly what lies below the threshold, and grew as many in positions that were free
    before.
    """
    grown = []
    for name, layer, start in zip([x.name for x in subject.masks], after, subject.start, strict=True):
        active = layer.mask.bool()
        kept = start.mask & (start.weight.abs() >= subject.threshold)
        if not torch.equal(start.mask & active, kept):
            raise RuntimeError(f"{way} did not drop exactly what lies below the threshold in {name}")
        for what, left, right in (
            ("weights", layer.weight, start.weight),
            ("momenta", layer.momentum, start.momentum),
        ):
            if not torch.equal(left, right * kept):
                raise RuntimeError(f"{way} left {what} in {name} that are not those kept, and 0 elsewhere")
        grown.append(int((active & ~start.mask).count_nonzero()))
    if sum(grown) != subject.moves:
        raise RuntimeError(f"{way} grew {sum(grown)} weights, and dropped {subject.moves}")
    return grown
