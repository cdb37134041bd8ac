"""The work of one rank for `benchmarks.scaling`: training steps and reallocations, timed, their traffic counted."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn

from benchmarks.harness.calls import Taken, Watch, minus
from benchmarks.harness.rounds import in_rounds, returned
from benchmarks.harness.runs import CPU, Moves, data_of, run_config, settled
from benchmarks.parts.scaling.counting import connections, counted
from dynsparse.config.schema import RunConfig
from dynsparse.distributed import sync
from dynsparse.masks import MaskSet, sparse_layers
from dynsparse.methods import Clock
from dynsparse.methods.dsr import DsrSettings
from dynsparse.reallocation import Reallocator
from dynsparse.runtime import Worker
from dynsparse.training.callbacks import Callback
from dynsparse.training.network import build_network
from dynsparse.training.trainer import Trainer
from pipelines.base import Batch

DENSITY = 0.1
CLOCKS = ("wall", "cpu")


class Case(NamedTuple):
    """A made-up network of linear layers without bias, all sparse."""

    layers: int
    width: int

    @property
    def weights(self) -> int:
        return self.layers * self.width**2


@dataclass(frozen=True)
class Subject:
    """A network to train, and how many of its units a reallocation moves."""

    model: Mapping[str, Any]
    image: int
    classes: int
    threshold: float
    target_moves: int


def _subjects() -> dict[str, Subject]:
    wide = {"name": "cifar10_WideResNet", "depth": 28, "widen_factor": 2.0}
    narrow = {"name": "imagenet_resnet50", "widen_factor": 0.25}
    return {
        "WRN-28-2": Subject(wide, image=32, classes=10, threshold=0.0075, target_moves=20_000),
        "ResNet-50, a quarter as wide": Subject(narrow, image=64, classes=1000, threshold=0.012, target_moves=35_000),
    }


@dataclass(frozen=True)
class Amount:
    """The amount that is measured."""

    subjects: Mapping[str, Subject] = field(default_factory=_subjects)
    batch: int = 16
    """Samples of each process in a step, whatever their number."""
    period: int = 3
    """Steps between reallocations; as many warm up."""
    steps: int = 6
    """Steps measured in each run."""
    training_ranks: tuple[int, ...] = (1, 2, 4)
    cases: tuple[Case, ...] = (Case(10, 16), Case(50, 16), Case(200, 16), Case(50, 128))
    traffic_ranks: tuple[int, ...] = (1, 2, 4, 8)
    repeats: int = 4
    """Reallocations of each case, and turns of each way to ask for the flags, in each round."""
    calls: int = 50
    """Calls of such a way in a turn, one after the other."""
    rounds: int = 3
    """Rounds of all numbers of ranks in turn."""


def now() -> Taken:
    """Return the seconds of the clock, and of the CPU by all threads of this process."""
    return time.perf_counter(), time.process_time()


def since(before: Taken) -> Taken:
    return minus(now(), before)


# Training


def settings(subject: Subject, global_batch: int, period: int) -> RunConfig:
    moving = {"initial_threshold": subject.threshold, "target_moves": subject.target_moves}
    return run_config(
        subject.model,
        {"name": "dsr", "period": period, **moving},
        subject.image,
        subject.classes,
        sparsity={"conv": 1 - DENSITY, "fc": 1 - DENSITY},
        data={"samples": global_batch, "test_samples": 10, "threads": 1},
        train={"global_batch_size": global_batch},
    )


def trainer(config: RunConfig, worker: Worker, observer: Callback) -> tuple[Trainer, list[Batch]]:
    """Return a trainer that has settled, and a batch for it."""
    data = data_of(config, worker)
    made = settled(config, build_network(config, CPU), data, worker, observers=[observer])
    batch = next(iter(data.train.epoch()))
    data.close()
    return made, batch


def train(worker: Worker, subject: Subject, amount: Amount) -> dict[str, Any]:
    """Time each measured step of a run on this rank, in all and in its sparse parts."""
    moves = Moves()
    run, batch = trainer(settings(subject, amount.batch * worker.world_size, amount.period), worker, moves)
    parts = Watch(now)
    parts.on(run.masks, "mask_gradients")
    for name in ("prepare_gradients", "before_step", "after_step"):
        parts.on(run.sparse, name)
    parts.on(run.sparse.reallocator, "verify")
    steps = [timed_step(run, batch, parts) for _ in range(amount.period + amount.steps)]
    with counted() as sent:
        sync.gather(run.run.of_this_rank())
    return {
        "steps": steps[amount.period :],
        "dropped": moves.dropped,
        "layers": len(run.masks),
        "parameters": run.network.total_parameters,
        "active_weights": run.network.active_weights,
        "model_sparsity": run.network.model_sparsity,
        "gathered": sent,
        "connections": connections(),
    }


def timed_step(run: Trainer, batch: list[Batch], parts: Watch) -> dict[str, Any]:
    """Time one step. The flags before it, which the loop asks for as well, let all ranks begin together."""
    sync.any_of(False, False, False)
    parts.take()
    events, before = run.progress.reallocations, now()
    run.train_step(batch)
    return {"step": since(before), "due": run.progress.reallocations > events, **parts.take()}


# Reallocations alone


class Reallocation:
    """A network of a case, whose weights are drawn anew before each reallocation."""

    def __init__(self, case: Case) -> None:
        torch.manual_seed(1)
        model = nn.Sequential(*(nn.Linear(case.width, case.width, bias=False) for _ in range(case.layers)))
        specs = sparse_layers(model)
        self.masks = MaskSet(model, specs, {spec.name: max(2, round(DENSITY * spec.units)) for spec in specs}, seed=2)
        active = self.masks.active_weights
        method = DsrSettings(name="dsr", initial_threshold=0.1, target_moves=max(1, active // 10)).build()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        self.reallocator = Reallocator(model, self.masks, method, optimizer, seed=3)
        self.step = 0

    @torch.no_grad()
    def renew(self) -> None:
        """Draw the weights anew, the same on every rank."""
        self.step += 1
        generator = torch.Generator().manual_seed(self.step)
        for layer in self.masks:
            layer.scatter_(layer.weight, torch.randn(layer.active_units, layer.spec.unit_size, generator=generator))

    def __call__(self) -> dict[str, Any]:
        """Reallocate. Returns what it took on this rank, and what it handed over."""
        self.renew()
        sync.any_rank(False)
        with counted() as sent:
            before = now()
            self.reallocator(Clock(self.step, 0))
            taken = since(before)
        return {"taken": taken, "sent": sent}


FLAG_WAYS: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] = {"ring": sync.sum_, "doubling": sync.largest_}
"""Ways to ask: gloo's all-reduce, as `dist.all_reduce` calls it, and the loop's. With one process both do nothing."""


def flags(way: str, calls: int) -> dict[str, Any]:
    """Ask as before each step. Returns what a call takes, of `calls` in a row, and what it hands over."""
    ask = FLAG_WAYS[way]
    sync.any_rank(False)
    before = now()
    for _ in range(calls):
        ask(torch.zeros(3, dtype=torch.int64))
    wall, cpu = since(before)
    with counted() as sent:
        ask(torch.zeros(3, dtype=torch.int64))
    return {"taken": (wall / calls, cpu / calls), "sent": sent}


def reallocate(worker: Worker, cases: Sequence[Case], calls: int, repeats: int) -> dict[str, Any]:
    """Take each case in turn, `repeats` times after a first to warm up; then the ways to ask for the flags."""
    ways = [Reallocation(case) for case in cases]
    found = [[way() for way in ways] for _ in range(1 + repeats)][1:]
    asking = {way: partial(flags, way, calls) for way in FLAG_WAYS}
    return {
        "cases": list(map(list, zip(*found, strict=True))),
        "flags": in_rounds(asking, repeats, measure=returned),
        "connections": connections(),
    }
