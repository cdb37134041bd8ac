"""Part of `benchmarks.gpu`: training steps of all ways, side by side."""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch._dynamo.utils import counters

from benchmarks.harness.rounds import compared, summaries
from benchmarks.harness.runs import multiply
from benchmarks.parts.gpu.bench import (
    FAST,
    FOR_EVER,
    RESNET_224,
    TINY_RESNET,
    Bench,
    Case,
    Found,
    make_trainer,
    rounds_until,
    settings,
    steps,
    steps_without_reading,
    wrn,
)
from dynsparse.masks import MaskSet
from dynsparse.training.network import Network, build_network
from dynsparse.training.trainer import Trainer

WAYS: Mapping[str, Mapping[str, Any]] = {
    "dense": {"name": "dense"},
    "static": {"name": "static"},
    "dsr": {"name": "dsr", "period": FOR_EVER, "target_moves": 1},
    "deepr": {"name": "deepr"},
    "multiplied": {"name": "dense"},
}
LIMITS = {"static": 1.02, "dsr": 1.02, "deepr": 1.25}


def step_trainer(bench: Bench, case: Case, way: str, **train: Any) -> Trainer:
    """Return a way's trainer. `multiplied` is a dense network whose weights a float mask multiplies, with no masks.

    All their weights have momentum, and are stepped.
    """
    config = settings(case, WAYS[way], train={**FAST, **train})
    if way != "multiplied":
        return make_trainer(config, bench.device)
    network = build_network(config, bench.device)
    multiply(network.model, build_network(settings(case, WAYS["static"], train=FAST), bench.device))
    return make_trainer(config, bench.device, Network(network.model, MaskSet(network.model, [], {})))


def training_steps(bench: Bench, found: Found) -> None:
    """Time blocks of steps, all ways in turn; rounds end early where time runs out, the cheapest case first."""
    cases = [(wrn(bench), 2 if bench.tiny else 20), (TINY_RESNET if bench.tiny else RESNET_224, 1 if bench.tiny else 5)]
    compiled_too = [(case, count, compiled) for compiled in (False, True) for case, count in cases]
    if bench.tiny:  # To compile a narrow ResNet-50 takes a CPU as long as a whole one.
        compiled_too.pop()
    share = (bench.ends - time.monotonic()) / len(compiled_too)
    for i, (case, count, compiled) in enumerate(compiled_too, start=1):
        ends = bench.ends - share * (len(compiled_too) - i)
        _steps_of(Bench(bench.device, bench.tiny, ends), found, case, count, compiled)


def _steps_of(bench: Bench, found: Found, case: Case, count: int, compiled: bool) -> None:
    torch._dynamo.reset()
    counters.clear()
    trainers = {way: step_trainer(bench, case, way, compile=compiled) for way in WAYS}
    before, breaks = {}, {}
    for way, trainer in trainers.items():
        before[way] = steps(trainer, 1)
        if way != "multiplied":
            breaks = dict(counters["graph_break"])
    blocks = {way: partial(steps_without_reading, trainers[way], count) for way in WAYS}
    times = {way: [s / count for s in found] for way, found in rounds_until(bench, blocks, 12).items()}
    figures = compared(times, "dense")
    figures["images_per_second"] = summaries({way: [case.batch / s for s in times[way]] for way in WAYS})
    title = case.title + (", compiled" if compiled else "")
    found.figures[title] = {**figures, "first_losses": before, "graphs": counters["stats"]["unique_graphs"]}
    dense = figures["images_per_second"]["dense"]["median"]
    found.say(f"{title}: dense, images/s", f"{dense:.0f}")
    for way in WAYS:
        ratio = figures["ratio_to_dense"][way]["median"]
        if way in LIMITS:
            found.target(f"{title}: step of {way} over dense", ratio, LIMITS[way])
        elif way != "dense":
            found.say(f"{title}: step of {way} over dense", f"{ratio:.3f}")
    if compiled:
        found.check(f"{title}: no graph break", not breaks, str(breaks or "none"))
