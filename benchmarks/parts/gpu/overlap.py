"""Part of `benchmarks.gpu`: ways in which gradients may travel while the backward pass goes on, beside the product's.

With one rank nothing travels, but DDP's hooks, buckets and calls of NCCL are those of many.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, cast

import torch
from torch import nn

from benchmarks.harness.rounds import compared
from benchmarks.parts.gpu.bench import (
    FAST,
    RESNET_224,
    SMALL,
    Bench,
    Case,
    Found,
    batches,
    make_trainer,
    rounds_until,
    settings,
    steps,
    steps_without_reading,
    wrn,
)
from benchmarks.parts.gpu.gradients import one_rank
from dynsparse.training.network import build_network
from dynsparse.training.parallel import data_parallel

Step = Callable[[], None]
Options = Mapping[str, Any]
OURS = "ours"
STATIC = {"name": "static"}
DDP: Mapping[str, Options] = {
    OURS: {},
    "buckets of 1 MB": {"bucket_cap_mb": 1},
    "buckets of 25 MB": {"bucket_cap_mb": 25},
    "buckets of 100 MB": {"bucket_cap_mb": 100},
    "a static graph": {"static_graph": True},
    "gradients that are no views of buckets": {"gradient_as_bucket_view": False},
}
"""Options of DDP beside the product's. Ours are 1 MiB in the first bucket and 25 in each other."""
COMPILED = "DDP around the compiled network"
"""The product's choice where it compiles."""
SECONDS = 30
"""Seconds that a compilation may take: with fewer left none begins."""
MOST = 1.02
"""Most that a step takes in the product's way, in steps of the fastest other way."""
CLOSE = 0.02
"""Relative difference of a loss that another order of sums may make in a few steps."""


def overlap(bench: Bench, found: Found) -> None:
    """Time steps through DDP, then replayed as CUDA graphs, then compiled in two ways, which takes longest."""
    case = SMALL if bench.tiny else RESNET_224
    began = time.monotonic()

    def until(share: float) -> Bench:
        return Bench(bench.device, bench.tiny, began + share * (bench.ends - began))

    with one_rank(bench):
        _ddp(until(0.25), found, case)
    _replayed(until(0.55), found, wrn(bench))
    with one_rank(bench):
        _compiled(bench, found, case)


def _ddp(bench: Bench, found: Found, case: Case) -> None:
    ways = {way: _step(bench, case, partial(data_parallel, device=bench.device, **of)) for way, of in DDP.items()}
    _beside(bench, found, case.title, ways, OURS)


def _compiled(bench: Bench, found: Found, case: Case) -> None:
    """Compile two networks alone, with the product's options: each compilation takes tens of seconds."""
    title = f"{case.title}, compiled"
    torch._dynamo.reset()
    wrapped: dict[str, Callable[[nn.Module], nn.Module]] = {
        COMPILED: lambda model: data_parallel(_compile(model), bench.device),
        "all compiled, DDP inside": lambda model: _compile(data_parallel(model, bench.device)),
    }
    ways: dict[str, Step] = {}
    for way, wrap in wrapped.items():
        if not bench.tiny and bench.ends - time.monotonic() < SECONDS:
            found.say(title, f"left out: less than {SECONDS} s are left")
            return
        ways[way] = _step(bench, case, wrap)
    _beside(bench, found, title, ways, COMPILED)


def _compile(module: nn.Module) -> nn.Module:
    return cast(nn.Module, torch.compile(module))


def _step(bench: Bench, case: Case, wrap: Callable[[nn.Module], nn.Module]) -> Step:
    """Return a step of a network that nobody else has, past the first ones: DDP lays buckets out after a backward."""
    config = settings(case, STATIC, train=FAST)
    model = build_network(config, bench.device).model
    module = wrap(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4, fused=bench.on_gpu)
    [(images, labels)] = next(batches(config, bench.device, count=1).epoch())

    def step() -> None:
        with torch.autocast(bench.device.type, dtype=torch.bfloat16):
            loss = nn.functional.cross_entropy(module(images).float(), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    for _ in range(3):
        step()
    return step


def _beside(bench: Bench, found: Found, title: str, ways: Mapping[str, Step], ours: str) -> None:
    """Time blocks of steps in turn, and tell by how much the fastest other way is faster than ours."""
    blocks: dict[str, Callable[[], Any]] = {way: partial(_repeated, step, 2) for way, step in ways.items()}
    tell(found, title, compared(rounds_until(bench, blocks, 12), ours), ours)


def _repeated(step: Step, count: int) -> None:
    for _ in range(count):
        step()


def tell(found: Found, title: str, figures: Mapping[str, Any], ours: str) -> None:
    """Note each way's ratio to ours, and ours to the fastest other's."""
    found.figures[title] = figures
    others = {way: of["median"] for way, of in figures[f"ratio_to_{ours}"].items() if way != ours}
    for way, ratio in others.items():
        found.say(f"{title}: step of {way} over {ours}", f"{ratio:.3f}")
    fastest = min(others, key=lambda way: others[way])
    found.target(f"{title}: step of {ours} over the fastest other way", 1 / others[fastest], MOST)


def _replayed(bench: Bench, found: Found, case: Case) -> None:
    """Compare the trainer's compiled steps with `train.cuda_graphs` and without, where kernels are small."""
    torch._dynamo.reset()
    titles = {False: "no CUDA graphs"} | ({True: "CUDA graphs"} if bench.on_gpu else {})
    trainers = {}
    losses: dict[str, list[float]] = {}
    for replayed, way in titles.items():
        config = settings(case, STATIC, train={**FAST, "compile": True, "cuda_graphs": replayed})
        trainers[way] = make_trainer(config, bench.device)
        losses[way] = steps(trainers[way], 4)  # The first runs, the second records, the others replay.
    title = f"{case.title}, trainer"
    found.figures[f"{title}, losses"] = losses
    usual = losses["no CUDA graphs"]
    if not bench.on_gpu:
        found.check(f"{title}: compiled losses are finite", bool(torch.tensor(usual).isfinite().all()))
        found.say(f"{title}: step with train.cuda_graphs", "left out: there is no GPU")
        return
    near = all(abs(a - b) <= CLOSE * abs(a) for a, b in zip(usual, losses["CUDA graphs"], strict=True))
    found.check(f"{title}: losses with train.cuda_graphs are those without", near, f"{losses['CUDA graphs'][-1]:.3f}")
    blocks: dict[str, Callable[[], Any]] = {
        way: partial(steps_without_reading, trainer, 20) for way, trainer in trainers.items()
    }
    tell(found, title, compared(rounds_until(bench, blocks, 12), "no CUDA graphs"), "no CUDA graphs")
