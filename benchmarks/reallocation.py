"""Time of one reallocation: against dense masks and full scans, by part, density, method; and of making masks.

    python -m benchmarks.reallocation             (about 4 minutes on 2 cores; a quiet machine, 5 GB of memory)
    python -m benchmarks.reallocation --page      (the page anew, from the JSON)

ResNet-50 with the paper's sparse layers on the CPU, 2 threads. Every timed call begins with the same weights, masks and
momentum, which are put back outside the clock. Nothing of them is in the processor's cache then, as after a step.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from benchmarks.harness.page import filled
from benchmarks.harness.record import Result
from benchmarks.harness.rounds import Act, compared, in_rounds
from benchmarks.harness.runs import CPU
from benchmarks.harness.script import page_parser, run
from benchmarks.parts.reallocation.rivals import against_full_scans
from benchmarks.parts.reallocation.subject import CLOCK, METHODS, OURS, SHARE, Amount, Subject, settings
from dynsparse.distributed import digest
from dynsparse.masks import MaskSet
from dynsparse.training.network import build_network

DENSITIES = (0.4, 0.2, 0.1, 0.05, 0.01)
WAYS = {
    "numpy": "full scans, `np.setdiff1d` and a permutation: the paper's way",
    "numpy, unique": "the same with `assume_unique=True`",
    "torch": "full scans in torch",
    "ours with digests": "ours, with the digests of a run of several workers",
    OURS: "ours, `reallocator(clock)`",
}
PARTS = {
    OURS: "the whole, `reallocator(clock)`",
    "plan": "of it: to decide (rank 0 alone)",
    "apply": "of it: to carry the plan out",
    "ours with digests": "the whole, with the digests of a run of several workers",
    "mask digest": "of it: a digest of the masks (two of these)",
    "weight digest": "of it: a digest of all weights (one)",
}
TINY = Amount(model={"name": "small_cnn", "channels": [8, 16]}, classes=10, moves=(8, 40), rounds=2, cache=1 << 10)


def main() -> None:
    run("reallocation", page_parser(__doc__), measure, page)


def measure(asked: Namespace) -> Result:
    amount = TINY if asked.tiny else Amount()
    torch.set_num_threads(2)
    parts = {str(moves): by_part(amount, moves) for moves in amount.moves}  # First: it warms up what follows.
    return {
        "amount": amount._asdict(),
        "numpy": np.__version__,
        "making_masks": making_masks(amount),
        "parts": parts,
        "full_scans": {str(moves): against_full_scans(amount, moves) for moves in amount.moves},
        "densities": by_density(amount),
        "methods": by_method(amount),
    }


def by_part(amount: Amount, moves: int) -> Result:
    subject = Subject(amount, amount.sparsity, moves=moves)
    subject.restore_to_step()
    plan = subject.reallocator.plan(CLOCK, subject.seen)
    ways: dict[str, Act] = {
        OURS: subject.reallocate,
        "plan": lambda: subject.reallocator.plan(CLOCK, subject.seen),
        "apply": lambda: subject.apply(plan),
        "ours with digests": subject.reallocate_with_digests,
        "mask digest": lambda: digest.mask_digest(subject.masks),
        "weight digest": lambda: digest.weight_digest(subject.model, subject.masks),
    }
    times = in_rounds(ways, amount.rounds, before=lambda way: subject.restore_to_step())
    return {"moved": moves, **compared(times, OURS)}


def by_density(amount: Amount) -> Result:
    """Time a reallocation and a worker's digests at each density, and draw straight lines through the medians."""
    subjects = {f"{density:g}": Subject(amount, round(1 - density, 3)) for density in DENSITIES}
    active = {name: subject.masks.active_weights for name, subject in subjects.items()}

    def rounds(act: Callable[[Subject], Any]) -> Result:
        ways = {name: lambda subject=subject: act(subject) for name, subject in subjects.items()}
        times = in_rounds(ways, amount.rounds, before=lambda name: subjects[name].restore_to_step())
        found = compared(times, "0.1")
        return {**found, "line": line(active, {name: one["median"] for name, one in found["ms"].items()})}

    return {
        "active": active,
        "moved": {name: subject.moves for name, subject in subjects.items()},
        "dense_parameters": dense_parameters(subjects["0.1"]),
        "reallocation": rounds(Subject.reallocate),
        "digests": rounds(Subject.digests),
    }


def dense_parameters(subject: Subject) -> int:
    return sum(parameter.numel() for parameter in subject.model.parameters()) - subject.masks.weights


def line(active: Mapping[str, int], ms: Mapping[str, float]) -> Result:
    """Fit ms = constant + slope * millions of active weights, by least squares."""
    x = np.array([active[name] / 1e6 for name in active])
    y = np.array([ms[name] for name in active])
    slope, constant = np.polyfit(x, y, 1)
    left = ((y - constant - slope * x) ** 2).sum()
    r_squared = 1 - left / ((y - y.mean()) ** 2).sum()
    return {"constant_ms": float(constant), "ms_per_million": float(slope), "r_squared": float(r_squared)}


def by_method(amount: Amount) -> Result:
    """Time a reallocation of each method, alone and with all that its step does beside backward and the optimizer."""
    subjects = {method: Subject(amount, amount.sparsity, method) for method in METHODS}
    moving = [method for method in METHODS if method != "static"]
    moved = {}
    for method in moving:
        subjects[method].restore_to_step()
        moved[method] = subjects[method].reallocate()
    alone = in_rounds(
        {method: subjects[method].reallocate for method in moving},
        amount.rounds,
        before=lambda method: subjects[method].restore_to_step(),
    )
    event = in_rounds(
        {method: subject.whole_event for method, subject in subjects.items()},
        amount.rounds,
        before=lambda method: subjects[method].restore(),
    )
    return {"moved": moved, "alone": compared(alone, "dsr"), "event": compared(event, "dsr")}


def making_masks(amount: Amount) -> Result:
    """Time the making of all layers' masks, from how many weights of each are to be active."""
    network = build_network(settings(amount, amount.sparsity, "dsr"), CPU)
    specs = [layer.spec for layer in network.masks]
    counts = {layer.name: layer.active_units for layer in network.masks}
    weights = {name: value for name, value in network.model.named_parameters() if name in counts}
    generator = torch.Generator().manual_seed(0)

    @torch.no_grad()
    def permutations() -> None:
        for spec in specs:
            mask = torch.zeros(spec.units)
            mask[torch.randperm(spec.units, generator=generator)[: counts[spec.name]]] = 1
            weights[spec.name].mul_(mask.view(spec.shape))

    @torch.no_grad()
    def fresh_weights(way: str) -> None:
        for weight in weights.values():
            weight.fill_(1)

    ways = {OURS: lambda: MaskSet(network.model, specs, counts), "permutations": permutations}
    return compared(in_rounds(ways, amount.rounds, before=fresh_weights), OURS)


def page(content: Result) -> str:
    names = {"WAYS": WAYS, "PARTS": PARTS, "METHODS": METHODS, "OURS": OURS, "SHARE": SHARE}
    return filled("reallocation", content, names)


if __name__ == "__main__":
    main()
