"""Parts of `benchmarks.gpu`: precision, memory, compilation."""

from __future__ import annotations

import gc
import math

import torch
from torch._dynamo.utils import counters

from benchmarks.parts.gpu.bench import (
    FAST,
    MOVING,
    Bench,
    Found,
    is_zero_outside,
    make_trainer,
    resnet,
    settings,
    steps,
    steps_without_reading,
    wrn,
)
from benchmarks.parts.gpu.training import WAYS
from dynsparse.config.schema import RunConfig


def amp(bench: Bench, found: Found) -> None:
    """Train in bf16, in fp16 from the usual scale, and in fp16 from a scale so large that steps must be skipped."""
    case = wrn(bench)
    for title, precision, scale in (("bf16", "bf16", None), ("fp16", "fp16", None), ("fp16, 2^60", "fp16", 2.0**60)):
        trainer = make_trainer(settings(case, MOVING["dsr"], train={"precision": precision}), bench.device)
        if scale is not None:
            trainer.engine.precision.load_state_dict({**trainer.engine.precision.state_dict(), "scale": scale})
        steps(trainer, 60 if scale else 2)
        losses = steps(trainer, 6)
        trainer.outcomes.catch_up()
        skipped = trainer.progress.skipped_steps
        found.figures[title] = {"losses": losses, "skipped_steps": skipped}
        found.check(f"{title}: losses are finite", all(map(math.isfinite, losses)), f"{losses[-1]:.3f} in the end")
        found.check(f"{title}: weights and moments outside the masks are exactly 0", is_zero_outside(trainer))
        if scale is None:
            found.say(f"{title}: skipped steps", str(skipped))
        else:
            found.check(f"{title}: skipped steps are counted", 0 < skipped < 60, str(skipped))


def memory(bench: Bench, found: Found) -> None:
    """Measure the most that is allocated over four steps, of which two are followed by a reallocation."""
    methods = {"dense": WAYS["dense"], "static": WAYS["static"], "dsr": MOVING["dsr"], "rigl": MOVING["rigl"]}
    for batch in (16, 256):
        case = resnet(bench, batch)
        peaks: dict[str, int] = {}
        for way, method in methods.items():
            peaks[way], active = _peak(bench, settings(case, method, train=FAST))
        limit = 1.05 * peaks["dense"] + 8 * active
        found.figures[case.title] = {"bytes": peaks, "active_weights": active, "limit": limit}
        for way, peak in peaks.items():
            if not bench.on_gpu:
                found.say(f"{case.title}: {way}", "the CPU does not count")
            elif way == "dense":
                found.say(f"{case.title}: dense, GB at most", f"{peak / 1e9:.3f}")
            else:
                found.target(f"{case.title}: {way} over 1.05 dense + 8 bytes an active weight", peak / limit, 1.0)


def _peak(bench: Bench, config: RunConfig) -> tuple[int, int]:
    """Return the bytes beyond what was there before, and active weights of the sparse layers."""
    gc.collect()
    if bench.on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated() if bench.on_gpu else 0
    trainer = make_trainer(config, bench.device)
    steps_without_reading(trainer, 4)
    return (torch.cuda.max_memory_allocated() - before if bench.on_gpu else 0), trainer.masks.active_weights


def recompiles(bench: Bench, found: Found) -> None:
    """Take twelve compiled steps whose masks move: one graph, from the first step on."""
    for name, method in MOVING.items():
        torch._dynamo.reset()
        counters.clear()
        trainer = make_trainer(settings(wrn(bench), method, train={**FAST, "compile": True}), bench.device)
        steps(trainer, 1)
        first = counters["stats"]["unique_graphs"]
        steps(trainer, 11)
        graphs, moved = counters["stats"]["unique_graphs"], trainer.progress.reallocations
        found.figures[name] = {
            "graphs": [first, graphs],
            "reallocations": moved,
            "breaks": dict(counters["graph_break"]),
        }
        found.check(
            f"{name}: graphs after 1 and 12 steps, {moved} reallocations", first == graphs == 1, f"{first}, {graphs}"
        )
        found.check(f"{name}: no graph break", not counters["graph_break"])
        found.check(f"{name}: weights and moments outside the masks are exactly 0", is_zero_outside(trainer))
