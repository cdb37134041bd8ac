"""What one rank does for `benchmarks.scaling`: training steps and reallocations, timed, with their traffic counted."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed import distributed_c10d

import pipelines
from dynsparse.config import loading
from dynsparse.config.schema import RunConfig
from dynsparse.distributed import sync
from dynsparse.masks import MaskSet, sparse_layers
from dynsparse.methods import Clock
from dynsparse.methods.dsr import DsrSettings
from dynsparse.reallocation import ReallocationReport, Reallocator
from dynsparse.runtime import Worker
from dynsparse.training.callbacks import Callback
from dynsparse.training.network import build_network
from dynsparse.training.trainer import Trainer
from pipelines.base import Batch, Request
from pipelines.order import Share

COUNTED = ("broadcast", "all_reduce", "all_gather", "gather", "send", "isend")
NOTED_AS = {"isend": "send"}
OWN_TENSOR = {"all_gather": 1}
"""Which argument is what this rank hands over, where it is not the first."""
DENSITY = 0.1

Taken = tuple[float, float]
"""Seconds of the clock, and of the CPU by all threads of this process."""


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
    """How much is measured."""

    subjects: Mapping[str, Subject] = field(default_factory=_subjects)
    batch: int = 16
    """Samples of each process in a step, whatever their number."""
    period: int = 3
    """Steps between reallocations; as many warm up."""
    steps: int = 6
    """Measured, of each run."""
    training_ranks: tuple[int, ...] = (1, 2, 4)
    cases: tuple[Case, ...] = (Case(10, 16), Case(50, 16), Case(200, 16), Case(50, 128))
    traffic_ranks: tuple[int, ...] = (1, 2, 4, 8)
    repeats: int = 4
    """Reallocations of each case, and turns of each way to ask for the flags, in each round."""
    calls: int = 50
    """Of such a way in a turn, one after the other."""
    rounds: int = 3
    """Of all numbers of ranks in turn."""


def now() -> Taken:
    return time.perf_counter(), time.process_time()


def since(before: Taken) -> Taken:
    wall, cpu = now()
    return wall - before[0], cpu - before[1]


class Parts:
    """Times calls. `every` is what they took together, a call within another counted once."""

    def __init__(self) -> None:
        self.taken: dict[str, Taken] = {}
        self._depth = 0

    def watch(self, owner: object, name: str) -> None:
        """Let every call of this method of this object be timed."""
        act: Callable[..., Any] = getattr(owner, name)

        @functools.wraps(act)
        def timed(*arguments: Any, **options: Any) -> Any:
            self._depth += 1
            before = now()
            try:
                return act(*arguments, **options)
            finally:
                took = since(before)
                self._depth -= 1
                self._add(name, took)
                if self._depth == 0:
                    self._add("every", took)

        setattr(owner, name, timed)

    def take(self) -> dict[str, Taken]:
        """Since the last call."""
        taken, self.taken = self.taken, {}
        return taken

    def _add(self, name: str, took: Taken) -> None:
        wall, cpu = self.taken.get(name, (0.0, 0.0))
        self.taken[name] = wall + took[0], cpu + took[1]


Sent = dict[str, list[int]]
"""Bytes that this rank hands to each call, by function; `isend` counts as `send`."""


@contextmanager
def counted() -> Iterator[Sent]:
    """Count what is handed to torch.distributed's functions meanwhile, by its own calls among themselves too.

    DDP reduces gradients beneath these functions: they are not in it. `send` calls `isend` in some versions of torch,
    and either way counts once.
    """
    sent: Sent = {}
    plain = {name: getattr(distributed_c10d, name) for name in COUNTED}
    sending = False

    def counting(name: str) -> Callable[..., Any]:
        noted_as = NOTED_AS.get(name, name)

        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal sending
            outer = sending
            if not outer:
                tensor = arguments[OWN_TENSOR.get(name, 0)]
                sent.setdefault(noted_as, []).append(tensor.element_size() * tensor.numel())
            sending = noted_as == "send"
            try:
                return plain[name](*arguments, **options)
            finally:
                sending = outer

        return call

    try:
        for name in COUNTED:
            act = counting(name)
            for module in (dist, distributed_c10d):
                setattr(module, name, act)
        yield sent
    finally:
        for name, act in plain.items():
            for module in (dist, distributed_c10d):
                setattr(module, name, act)


def connections() -> int:
    """Open connections of this process over TCP. A collective: none ends before all have counted."""
    inodes = {line.split()[9] for kind in ("tcp", "tcp6") for line in _lines(Path(f"/proc/self/net/{kind}"))}
    links = [_link(Path(entry.path)) for entry in os.scandir("/proc/self/fd")]
    sync.any_rank(False)
    return sum(link.removeprefix("socket:[").removesuffix("]") in inodes for link in links)


def _lines(path: Path) -> list[str]:
    """Of established connections."""
    lines = path.read_text().splitlines()[1:] if path.exists() else []
    return [line for line in lines if line.split()[3] == "01"]


def _link(path: Path) -> str:
    try:
        return str(path.readlink())
    except OSError:  # The folder itself was open while it was read.
        return ""


# Training


class Moves(Callback):
    """Notes how many weights each reallocation dropped."""

    def __init__(self) -> None:
        self.dropped: list[int] = []

    def on_reallocation(self, report: ReallocationReport) -> None:
        self.dropped.append(sum(report.dropped.values()))


def settings(subject: Subject, global_batch: int, period: int) -> RunConfig:
    return loading.parse(
        {
            "model": dict(subject.model),
            "sparsity": {"conv": 1 - DENSITY, "fc": 1 - DENSITY},
            "method": {
                "name": "dsr",
                "period": period,
                "initial_threshold": subject.threshold,
                "target_moves": subject.target_moves,
            },
            "data": {
                "name": "synthetic",
                "shape": [3, subject.image, subject.image],
                "number_of_classes": subject.classes,
                "samples": global_batch,
                "test_samples": 10,
                "threads": 1,
            },
            "train": {"global_batch_size": global_batch},
        }
    )


def trainer(config: RunConfig, worker: Worker, observer: Callback) -> tuple[Trainer, list[Batch]]:
    """One that has settled, and a batch for it."""
    share = Share(worker.rank, worker.world_size, 1)
    data = pipelines.build(config.data, Request(config.seed, config.train.global_batch_size, share, 10, None))
    made = Trainer(config, build_network(config, torch.device("cpu")), data, worker, observers=[observer])
    made._settle()
    batch = next(iter(data.train.epoch()))
    data.close()
    return made, batch


def train(worker: Worker, subject: Subject, amount: Amount) -> dict[str, Any]:
    """What each measured step of a run took on this rank, in all and in its sparse parts."""
    moves = Moves()
    run, batch = trainer(settings(subject, amount.batch * worker.world_size, amount.period), worker, moves)
    parts = Parts()
    parts.watch(run.masks, "mask_gradients")
    for name in ("prepare_gradients", "before_step", "after_step"):
        parts.watch(run.sparse, name)
    parts.watch(run.sparse.reallocator, "verify")
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


def timed_step(run: Trainer, batch: list[Batch], parts: Parts) -> dict[str, Any]:
    """One step. The flags before it, which the loop asks for as well, let all ranks begin together."""
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
        """The same on every rank."""
        self.step += 1
        generator = torch.Generator().manual_seed(self.step)
        for layer in self.masks:
            layer.scatter_(layer.weight, torch.randn(layer.active_units, layer.spec.unit_size, generator=generator))

    def __call__(self) -> dict[str, Any]:
        """What one took on this rank, and what it handed over."""
        self.renew()
        sync.any_rank(False)
        with counted() as sent:
            before = now()
            self.reallocator(Clock(self.step, 0))
            taken = since(before)
        return {"taken": taken, "sent": sent}


FLAG_WAYS: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] = {"ring": sync.sum_, "doubling": sync.largest_}
"""Gloo's all-reduce, as `dist.all_reduce` calls it, and what the loop asks with. With one process both do nothing."""


def flags(way: str, calls: int) -> dict[str, Any]:
    """What the question before each step takes this way, a call of `calls` in a row, and what a call hands over."""
    ask = FLAG_WAYS[way]
    sync.any_rank(False)
    before = now()
    for _ in range(calls):
        ask(torch.zeros(3, dtype=torch.int64))
    wall, cpu = since(before)
    with counted() as sent:
        ask(torch.zeros(3, dtype=torch.int64))
    return {"taken": (wall / calls, cpu / calls), "sent": sent}


def flag_turns(calls: int, repeats: int) -> dict[str, list[dict[str, Any]]]:
    """Of each way its turns, after one to warm up; which way comes first changes each time."""
    found: dict[str, list[dict[str, Any]]] = {way: [] for way in FLAG_WAYS}
    order = list(FLAG_WAYS)
    for _ in range(1 + repeats):
        for way in order:
            found[way].append(flags(way, calls))
        order.reverse()
    return {way: turns[1:] for way, turns in found.items()}


def reallocate(worker: Worker, cases: Sequence[Case], calls: int, repeats: int) -> dict[str, Any]:
    """Each case in turn, `repeats` times after a first to warm up; then the ways to ask for the flags."""
    ways = list(map(Reallocation, cases))
    found = [[way() for way in ways] for _ in range(1 + repeats)][1:]
    of_cases = list(map(list, zip(*found, strict=True)))
    return {"cases": of_cases, "flags": flag_turns(calls, repeats), "connections": connections()}
