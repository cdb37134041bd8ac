"""Part of `benchmarks.gpu`: where the time of a training step goes, kernel by kernel."""

from __future__ import annotations

from typing import Any

from torch.autograd.profiler_util import FunctionEventAvg
from torch.profiler import ProfilerActivity, profile

from benchmarks.parts.gpu.bench import Bench, Found, resnet, steps, steps_without_reading
from benchmarks.parts.gpu.training import step_trainer

MOST = 15
"""Kernels that are told."""
STEPS = 3


def profiles(bench: Bench, found: Found) -> None:
    """Profile steps of a dense and a sparse network; note the kernels that take most, and what sparsity adds."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if bench.on_gpu else [])]
    totals = {}
    for way in ("dense", "static"):
        trainer = step_trainer(bench, resnet(bench), way)
        steps(trainer, 2)
        with profile(activities=activities) as seen:
            steps_without_reading(trainer, STEPS)
        events = [(one, _microseconds(bench, one)) for one in seen.key_averages()]
        totals[way] = sum(spent for _, spent in events)
        events.sort(key=lambda one: -one[1])
        found.figures[way] = {
            "ms_a_step": totals[way] / STEPS / 1000,
            "kernels": {one.key[:120]: [one.count // STEPS, spent / STEPS / 1000] for one, spent in events[:MOST]},
        }
    found.say("kernels of a step of static over dense, time together", f"{totals['static'] / totals['dense']:.3f}")
    for name, (count, ms) in list(found.figures["static"]["kernels"].items())[:5]:
        found.say(f"static: {name}", f"{count} a step, {ms:.2f} ms")


def _microseconds(bench: Bench, event: FunctionEventAvg) -> float:
    """Time on the GPU of a kernel itself, or on the CPU of an operation itself."""
    values: Any = event
    return float(values.self_device_time_total if bench.on_gpu else values.self_cpu_time_total)
