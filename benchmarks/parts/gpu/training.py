"""Part of `benchmarks.gpu`: training steps of all ways, side by side."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn
from torch._dynamo.utils import counters

from benchmarks.harness.rounds import compared, summaries
from benchmarks.harness.runs import multiply
from benchmarks.parts.gpu.bench import (
    FAST,
    FOR_EVER,
    RESNET_224,
    SMALL,
    TINY_RESNET,
    TINY_VIT,
    VIT_224,
    WRN_32,
    Bench,
    Case,
    Found,
    batches,
    make_trainer,
    rounds_until,
    settings,
    steps,
    steps_without_reading,
)
from benchmarks.parts.gpu.waits import host_waits
from dynsparse.keeping.weights import WATCHED_STEPS
from dynsparse.masks import MaskSet
from dynsparse.training.network import Network, build_network
from dynsparse.training.trainer import Trainer

WAYS: Mapping[str, Mapping[str, Any]] = {
    "dense": {"name": "dense"},
    "static": {"name": "static"},
    "dsr": {"name": "dsr", "period": FOR_EVER, "target_moves": 1},
    "rigl": {"name": "rigl", "period": FOR_EVER},
    "deepr": {"name": "deepr"},
    "multiplied": {"name": "dense"},
}
LIMITS = {"static": 1.02, "dsr": 1.02, "rigl": 1.02, "deepr": 1.25}
PLAIN = "plain loop"
LEAST_OF_PLAIN = 0.95
"""Share of the images a second of a loop of torch alone that the dense trainer is to reach."""
READING = ("deepr", "multiplied")
"""Ways whose ordinary steps may read: by their method, or because they are not ours."""


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
    cases = [(RESNET_224, 5, True), (VIT_224, 5, True), (WRN_32, 20, False), (RESNET_224, 5, False)]
    if bench.tiny:  # To compile a narrow ResNet-50 takes a CPU as long as a whole one.
        cases = [(SMALL, 2, True), (TINY_VIT, 1, False), (SMALL, 2, False), (TINY_RESNET, 1, False)]
    share = (bench.ends - time.monotonic()) / len(cases)
    for i, (case, count, compiled) in enumerate(cases, start=1):
        ends = bench.ends - share * (len(cases) - i)
        _steps_of(Bench(bench.device, bench.tiny, ends), found, case, count, compiled)


def _steps_of(bench: Bench, found: Found, case: Case, count: int, compiled: bool) -> None:
    torch._dynamo.reset()
    counters.clear()
    ways = [way for way in WAYS if way != "multiplied" or "vit" not in case.model["name"]]  # Its qkv are three layers.
    trainers = {way: step_trainer(bench, case, way, compile=compiled) for way in ways}
    before, breaks = {}, {}
    for way, trainer in trainers.items():
        before[way] = steps(trainer, 1)
        if way != "multiplied":
            breaks = dict(counters["graph_break"])
    for way in ways:
        steps_without_reading(trainers[way], WATCHED_STEPS - 1)  # The first few steps count strays, and read them.
        with host_waits(bench.device) as waits:
            steps_without_reading(trainers[way], 1)
        if bench.on_gpu and way not in READING:
            found.check(f"{case.title}: {way}: an ordinary step waits for nothing", not waits, ", ".join(waits) or "0")
    blocks: dict[str, Callable[[], Any]] = {way: partial(steps_without_reading, trainers[way], count) for way in ways}
    blocks[PLAIN] = partial(_plain_loop(bench, case, compiled), count)
    times = {way: [s / count for s in found] for way, found in rounds_until(bench, blocks, 12).items()}
    figures = compared(times, "dense")
    figures["images_per_second"] = summaries({way: [case.batch / s for s in times[way]] for way in times})
    title = case.title + (", compiled" if compiled else "")
    found.figures[title] = {**figures, "first_losses": before, "graphs": counters["stats"]["unique_graphs"]}
    dense = figures["images_per_second"]["dense"]["median"]
    found.say(f"{title}: dense, images/s", f"{dense:.0f}")
    ratio = figures["ratio_to_dense"][PLAIN]["median"]
    found.target(f"{title}: step of the dense trainer over a plain loop's", 1 / ratio, 1 / LEAST_OF_PLAIN)
    for way in ways:
        ratio = figures["ratio_to_dense"][way]["median"]
        if way in LIMITS:
            found.target(f"{title}: step of {way} over dense", ratio, LIMITS[way])
        elif way != "dense":
            found.say(f"{title}: step of {way} over dense", f"{ratio:.3f}")
    if compiled:
        found.check(f"{title}: no graph break", not breaks, str(breaks or "none"))


def _plain_loop(bench: Bench, case: Case, compiled: bool) -> Callable[[int], None]:
    """Return a loop of torch alone on the same network, as torchvision's and timm's scripts make it, in steps."""
    config = settings(case, WAYS["dense"], train=FAST)
    model = build_network(config, bench.device).model
    forward = torch.compile(model) if compiled else model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4, fused=bench.on_gpu)
    epoch = iter(batches(config, bench.device).epoch())

    def loop(count: int) -> None:
        for ((images, labels),), _ in zip(epoch, range(count), strict=False):
            with torch.autocast(bench.device.type, dtype=torch.bfloat16):
                loss = nn.functional.cross_entropy(forward(images).float(), labels)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()

    loop(2)
    return loop
