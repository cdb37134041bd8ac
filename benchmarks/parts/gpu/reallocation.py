"""Part of `benchmarks.gpu`: reallocations of a large network, on the GPU and beside the CPU."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from benchmarks.harness.rounds import Act, compared, summary
from benchmarks.parts.gpu.bench import (
    FOR_EVER,
    Bench,
    Case,
    Found,
    device_ms,
    resnet,
    rounds_until,
    settings,
)
from benchmarks.parts.gpu.waits import host_waits
from dynsparse.distributed.digest import mask_digest, weight_digest
from dynsparse.methods import Clock
from dynsparse.methods.deepr import DeepR
from dynsparse.reallocation import Reallocator
from dynsparse.training.network import build_method, build_network

CPU = torch.device("cpu")
METHODS = ("dsr", "set", "rigl", "sparse_momentum", "deepr")
FIVE_LAYERS = [f"layer4.{block}.conv{conv}.weight" for block in (1, 2) for conv in (1, 2)] + ["fc.weight"]
MASKING = "masking gradients"


class Event:
    """A network whose next reallocation moves about `moves` weights, as training would have it.

    Its weights and gradients are drawn on `drawn_on`: on the CPU they are the same for networks on all devices.
    """

    def __init__(
        self, case: Case, name: str, moves: int, device: torch.device, include: Sequence[str], drawn_on: torch.device
    ) -> None:
        sparsity = {"include": list(include), "exclude": []}
        self.network = build_network(settings(case, {"name": "static"}, sparsity=sparsity), device)
        self.masks = self.network.masks
        self.drawn_on = drawn_on
        self.share = min(0.5, moves / self.masks.active_weights)
        moving = settings(case, self._method(name), sparsity=sparsity)
        self.method = build_method(moving, [layer.spec for layer in self.masks])
        self.method.prepare(self.masks)
        self.optimizer = torch.optim.SGD(self.network.model.parameters(), lr=0.01, momentum=0.9)
        self.reallocator = Reallocator(self.network.model, self.masks, self.method, self.optimizer, seed=1)
        self._start = copy.deepcopy(self.method.state_dict()) if name == "dsr" else None
        self.step, self.moved = 0, 0
        self.shake()
        self.masks.mask_gradients()
        self.optimizer.step()  # So that there is momentum to clear.

    def _method(self, name: str) -> dict[str, Any]:
        if name == "dsr":  # Of normally distributed weights this share is below the threshold.
            threshold = math.sqrt(2) * float(torch.erfinv(torch.tensor(self.share, dtype=torch.float64)))
            moves = max(1, round(self.share * self.masks.active_weights))
            return {"name": name, "period": 1, "initial_threshold": threshold, "target_moves": moves}
        if name == "deepr":
            return {"name": name, "temperature": 1e-4}  # Its noise is counted, the same on each kind of device.
        return {"name": name, "period": 1, "fraction": round(self.share, 6)}

    @torch.no_grad()
    def shake(self) -> None:
        """Draw new weights and gradients, and set the threshold as at first."""
        self.step += 1
        if self._start is not None:
            self.method.load_state_dict(self._start)
        generator = torch.Generator(self.drawn_on).manual_seed(self.step)
        for layer in self.masks:
            shape, device = (layer.active_units, layer.spec.unit_size), layer.weight.device
            values = torch.randn(shape, generator=generator, device=self.drawn_on).to(device)
            if isinstance(self.method, DeepR):  # It drops what has crossed 0.
                crossed = torch.rand(shape, generator=generator, device=self.drawn_on).to(device) < self.share
                values = values.abs() * torch.where(self.method.born_negative(layer) ^ crossed, -1.0, 1.0)
            layer.scatter_(layer.weight, values)
            gradient = torch.randn(layer.spec.shape, generator=generator, device=self.drawn_on)
            layer.weight.grad = gradient.to(device)

    @property
    def clock(self) -> Clock:
        return Clock(self.step, 0, steps_per_epoch=FOR_EVER, epochs=1)

    def act(self) -> None:
        """Do all that a step with a reallocation does beside forward, backward and the optimizer."""
        report = self.reallocator.after_step(self.clock, self.reallocator.before_step(self.clock))
        assert report is not None
        self.moved = sum(report.dropped.values())


def reallocation(bench: Bench, found: Found) -> None:
    """Measure times by both clocks, how often the host waits, and whether a plan does the same as on the CPU."""
    few, many = (40, 100) if bench.tiny else (64_000, 400_000)
    _times(bench, found, {"dsr": few, f"dsr, {many:,}": many, **dict.fromkeys(METHODS[1:], few)})
    for name in METHODS:
        _compare_with_cpu(bench, found, name, few)
        _count_waits(bench, found, name, few)


def _times(bench: Bench, found: Found, moves: Mapping[str, int]) -> None:
    """Time by the host's clock, which waits for the GPU before and after, and by the GPU's own."""
    events = {
        title: Event(resnet(bench), title.split(",")[0], count, bench.device, ["*"], bench.device)
        for title, count in moves.items()
    }
    by_device: dict[str, list[float]] = {title: [] for title in events}

    def turn(title: str) -> Callable[[], Any]:
        return lambda: by_device[title].append(device_ms(bench, events[title].act))

    ways: dict[str, Act] = {title: turn(title) for title in events}
    ways[MASKING] = events["dsr"].masks.mask_gradients
    times = rounds_until(bench, ways, 10, before=lambda way: events["dsr" if way == MASKING else way].shake())
    figures = {
        **compared(times, MASKING),
        "layers": len(events["dsr"].masks),
        "device_ms": {title: summary(ms[1:]) for title, ms in by_device.items()},
        "moved": {title: event.moved for title, event in events.items()},
        "active": {title: event.masks.active_weights for title, event in events.items()},
    }
    found.figures["times"] = figures
    for title, event in events.items():
        what = f"{title}: ms, gradients masked too; {event.moved:,} of {event.masks.active_weights:,} moved"
        found.target(what, figures["ms"][title]["median"], 10, digits=2)
        found.say(f"{title}: by the GPU's clock, ms", f"{figures['device_ms'][title]['median']:.2f}")
    found.say("masking gradients alone, ms", f"{figures['ms'][MASKING]['median']:.2f}")


def _count_waits(bench: Bench, found: Found, name: str, moves: int) -> None:
    """Count with all layers and with five. Random draws may take a round more or less, each of two waits or fewer."""
    waits: dict[int, int] = {}
    for include in (["*"], FIVE_LAYERS):
        event = Event(resnet(bench), name, moves, bench.device, include, bench.device)
        event.act()
        event.shake()
        with host_waits(bench.device) as seen:
            event.act()
        waits[len(event.masks)] = len(seen)
        found.figures.setdefault("where_the_host_waits", {})[f"{name}, {len(event.masks)} layers"] = list(seen)
    all_layers, few_layers = waits.values()
    slack = 0 if name in ("rigl", "sparse_momentum") else 4
    counts = " and ".join(map(str, waits.values()))
    if bench.on_gpu:
        what = f"{name}: the host waits as often with {max(waits)} layers as with {min(waits)} (within {slack})"
        found.check(what, abs(all_layers - few_layers) <= slack, f"{counts} times")
    else:
        found.say(f"{name}: reads with {max(waits)} and {min(waits)} layers, as far as the CPU can tell", counts)


def _compare_with_cpu(bench: Bench, found: Found, name: str, moves: int) -> None:
    """Carry out three events in a row, each by the device's plan, there and on the CPU."""
    pair = [Event(resnet(bench), name, moves, device, ["*"], CPU) for device in (bench.device, CPU)]
    same_plans, same = True, True
    for _ in range(3):
        seen = []
        for event in pair:
            event.shake()
            seen.append(event.reallocator.before_step(event.clock))
        plan, theirs = (event.reallocator.plan(event.clock, one) for event, one in zip(pair, seen, strict=True))
        same_plans &= plan == theirs
        for event, one in zip(pair, seen, strict=True):
            event.reallocator._plan = lambda *given, plan=plan: plan  # type: ignore[method-assign]
            event.reallocator(event.clock, one)
            del event.reallocator._plan
        masks = {mask_digest(event.masks) for event in pair}
        weights = {weight_digest(event.network.model, event.masks) for event in pair}
        same &= len(masks) == len(weights) == 1
    found.check(f"{name}: one plan gives the CPU's masks and weights, bit for bit", same)
    found.say(f"{name}: the CPU would have planned the same", "yes" if same_plans else "no")
