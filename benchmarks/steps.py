"""One training step, sparse against the same step dense.

    python -m benchmarks.steps             (about 4 minutes on 2 cores; a quiet machine)
    python -m benchmarks.steps --page      (the page anew, from the JSON)

Each way has a Trainer of its own, on the same batch; rounds in which the ways take turns. The ratio of whole steps is
as noisy as the machine. So the work that a step of that way adds is timed by itself too, within these steps.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict
from functools import partial
from unittest.mock import patch

import torch

from benchmarks.harness.calls import Watch
from benchmarks.harness.page import filled
from benchmarks.harness.record import Result
from benchmarks.harness.rounds import compared, finished, in_rounds, summary
from benchmarks.harness.runs import CPU, data_of, made_up_batch, multiply, settled, threshold_above
from benchmarks.harness.script import page_parser, run
from benchmarks.parts.step_cases import (
    DEEPR,
    DENSE,
    DSR,
    MULTIPLIED,
    RESNET,
    STATIC,
    THREADS,
    WRN,
    Case,
    settings_of,
    tiny,
)
from dynsparse.keeping.weights import LOOK_EVERY
from dynsparse.methods import Clock
from dynsparse.methods.dsr import Dsr
from dynsparse.training import penalties
from dynsparse.training.network import Network, build_network
from dynsparse.training.trainer import Trainer
from pipelines.base import Data

WARM_UP = 2
REALLOCATIONS = 5
TITLES = {
    DENSE: "dense: no masks at all",
    STATIC: "`static`",
    DSR: "`dsr`, between two reallocations",
    DEEPR: "`deepr`, which reallocates every step",
    MULTIPLIED: "dense, each weight multiplied by a float mask in every forward",
}
TARGETS = {STATIC: 1.02, DSR: 1.02, DEEPR: 1.25}
"""Ratios to the dense step, at most."""
CASES = {"resnet50": RESNET, "wrn": WRN}


def main() -> None:
    run("steps", page_parser(__doc__), measure, page)


def measure(asked: Namespace) -> Result:
    torch.set_num_threads(1 if asked.tiny else THREADS)
    return {"cases": {name: measured(tiny(case) if asked.tiny else case) for name, case in CASES.items()}}


def measured(case: Case) -> Result:
    """Steps of all ways in rounds, what they add, and a reallocation of dsr."""
    with closing(data_of(settings_of(case, DENSE))) as data:
        ways = trainers(case, data)
        batch = made_up_batch(case.batch, case.image, case.classes, CPU)
        added: dict[str, list[float]] = {way: [] for way in ways}
        losses: dict[str, list[torch.Tensor]] = {way: [] for way in ways}
        with watched(list(ways.values())) as watch:

            def step(way: str) -> None:
                losses[way].append(ways[way].train_step(batch))
                added[way].append(watch.seconds)
                watch.clear()

            times = in_rounds({way: partial(step, way) for way in ways}, case.rounds, warm_up=WARM_UP)
    for way, trainer in ways.items():
        trainer.outcomes.catch_up()
        assert trainer.progress.skipped_steps == 0, f"{way} skipped a step"
    dense = added[DENSE][WARM_UP:]
    return {
        **asdict(case),
        **sizes(ways[STATIC].network),
        **compared(times, DENSE),
        "added": {way: added_work(found[WARM_UP:], dense, times[DENSE]) for way, found in added.items()},
        "losses": {way: torch.stack(found).tolist() for way, found in losses.items()},
        "reallocation": reallocation(ways[DSR], case, times[DENSE]) if DSR in ways else None,
        "strays": strays(ways[STATIC], times[DENSE]),
    }


def trainers(case: Case, data: Data) -> dict[str, Trainer]:
    """Return one for each way, from the same initial weights and masks."""
    made = {}
    for way in case.ways:
        config = settings_of(case, way)
        network = build_network(config, CPU)
        if way == MULTIPLIED:
            multiply(network.model, build_network(settings_of(case, STATIC), CPU))
        made[way] = settled(config, network, data)
    return made


@contextmanager
def watched(trainers: Sequence[Trainer]) -> Iterator[Watch]:
    """Time all that a step does for masks and methods. A dense step makes the same calls, on no layers."""
    watch = Watch(clock=lambda: (finished(),))
    for trainer in trainers:
        for name in ("prepare_gradients", "before_step", "after_step"):
            watch.on(trainer.sparse, name)
        watch.on(trainer.masks, "mask_gradients")
    with patch.object(penalties, "add_gradients", watch.timed(penalties.add_gradients, "penalties")):
        yield watch


def sizes(network: Network) -> Result:
    return {
        "total_parameters": network.total_parameters,
        "sparse_layer_weights": network.sparse_layer_weights,
        "active_weights": network.active_weights,
    }


def added_work(found: Sequence[float], dense: Sequence[float], steps: Sequence[float]) -> Result:
    """Seconds beyond those of the dense step, as milliseconds and as a fraction of that step, round by round."""
    more = [a - b for a, b in zip(found, dense, strict=True)]
    return {
        "ms": summary([1000 * seconds for seconds in more]),
        "share_of_dense": summary([seconds / step for seconds, step in zip(more, steps, strict=True)]),
    }


def spread_over(seconds: Sequence[float], period: int, steps: Sequence[float]) -> Result:
    """Milliseconds of what is done once in `period` steps, and its fraction of each dense step."""
    step = summary(steps)["median"]
    return {
        "period": period,
        "ms": summary([1000 * one for one in seconds]),
        "share_of_dense": summary([one / (period * step) for one in seconds]),
    }


def strays(trainer: Trainer, steps: Sequence[float]) -> Result:
    """Time to count the weights outside the masks."""

    def count() -> None:
        assert trainer.masks.strays() == {}

    return spread_over(in_rounds({"count": count}, REALLOCATIONS)["count"], LOOK_EVERY, steps)


def reallocation(trainer: Trainer, case: Case, steps: Sequence[float]) -> Result:
    """Time of a reallocation of `case.moves` weights. Those that were grown are 0, and so the next to go."""
    method = trainer.sparse.method
    assert isinstance(method, Dsr)
    threshold = threshold_above(method, trainer.masks, case.moves)
    moved: list[int] = []

    def before(way: str) -> None:
        method.threshold = threshold

    def reallocate() -> None:
        clock = Clock(case.period * (len(moved) + 1), 0)
        moved.append(sum(trainer.sparse.reallocator(clock).dropped.values()))

    seconds = in_rounds({"dsr": reallocate}, REALLOCATIONS, before=before)["dsr"]
    return {"moved": summary(moved[1:]), **spread_over(seconds, case.period, steps)}


def page(content: Result) -> str:
    names = {"TITLES": TITLES, "TARGETS": TARGETS, "REALLOCATIONS": REALLOCATIONS}
    return filled("steps", content, against=against, alike=alike, **names)


def against(way: str, ratio: Mapping[str, float], added: Mapping[str, float]) -> str:
    """Compare with the way's target, by whole steps and by what is added."""
    found = {"by ratio": ratio["median"], "by what is added": 1 + added["median"]}
    verdicts = [f"{by} {'within' if value <= TARGETS[way] else 'NOT within'}" for by, value in found.items()]
    return f"{TARGETS[way]:g}: {', '.join(verdicts)}"


def alike(losses: Mapping[str, Sequence[float]]) -> str:
    """Say whether the two ways to mask the same weights train alike."""
    far = max(abs(a - b) / abs(b) for a, b in zip(losses[STATIC], losses[MULTIPLIED], strict=True))
    return "are equal, to the bit" if far == 0 else f"differ by a share of at most {far:.1g}"


if __name__ == "__main__":
    main()
