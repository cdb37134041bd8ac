"""Time from the start of `dist_train.py` to the end of its first step, and what masks take of it.

    python -m benchmarks.startup            (about 1 minute on 2 cores; a quiet machine)
    python -m benchmarks.startup --page     (the page anew, from the JSON)

Start: fresh processes, dense and sparse in turn. Masks: those of ResNet-50. Growth: networks of 10 to 1000 layers
and of 0.1 to 10 million weights, with one reallocation each.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

from benchmarks.harness.page import filled
from benchmarks.harness.record import ROOT, Result
from benchmarks.harness.rounds import Act, compared, in_rounds, ratios, returned, summaries, summary
from benchmarks.harness.runs import threshold_above
from benchmarks.harness.script import page_parser, run
from benchmarks.parts.step_cases import DENSE, DSR, RESNET, THREADS, Case, settings_of, tiny
from dynsparse.masks import MaskSet, sparse_layers
from dynsparse.masks.allocation import uniform
from dynsparse.methods import Clock
from dynsparse.methods.dsr import DsrSettings
from dynsparse.reallocation import Reallocator

START = replace(RESNET, image=64, rounds=3)
WAYS = {DENSE: "dense: no masks at all", DSR: "`dsr`"}
PARTS = {
    "interpreter": "Python, until the script's first line",
    "imports": "imports (torch, DALI, the package)",
    "torch._dynamo": "import of torch._dynamo, which torch's optimizers need",
    "config and checks": "config and checks",
    "data": "data",
    "network": "network, without its masks",
    "masks": "masks",
    "trainer": "optimizer, method, trainer",
    "settle": "settle: a throw-away forward and backward",
    "observers": "observers, TensorBoard among them",
    "initial checkpoint": "initial checkpoint: snapshot (written in the background)",
    "first batch": "first batch",
    "first step": "first step",
    "rest": "the rest: the run's folder, printing the config, reports",
}
SPARSITIES = (0.9, 0.99)
TARGET = 1.0
"""Seconds for the masks of ResNet-50, at most."""
MOVED = 0.03
"""Fraction of the active weights that a reallocation moves."""


@dataclass(frozen=True)
class Amount:
    """The amount that is measured of masks."""

    rounds: int = 5
    layers: tuple[int, ...] = (10, 100, 1000)
    width: int = 64
    """Inputs of each of these layers, and outputs."""
    widths: tuple[int, ...] = (100, 316, 1000)
    depth: int = 10
    """Layers of these widths."""


TINY = Amount(rounds=2, layers=(2, 4, 8), width=8, widths=(8, 16, 32), depth=2)


def main() -> None:
    run("startup", page_parser(__doc__), measure, page)


def measure(asked: Namespace) -> Result:
    torch.set_num_threads(1 if asked.tiny else THREADS)
    case, amount = (replace(tiny(START), rounds=1), TINY) if asked.tiny else (START, Amount())
    start = starts(case, "torch" if asked.tiny else "dali")
    return {"start": start, "masks": masks(case, amount), "growth": growth(amount)}


# The start


def starts(case: Case, loader: str) -> Result:
    """Seconds of the parts, over fresh processes; ratios to dense within a round."""
    with TemporaryDirectory() as folder:
        ways = {way: partial(start, case, way, loader, Path(folder)) for way in WAYS}
        found = in_rounds(ways, case.rounds, warm_up=0, measure=returned)
    totals = {way: [sum(parts.values()) for parts in rounds] for way, rounds in found.items()}
    return {
        **asdict(case),
        "loader": loader,
        "seconds": summaries(totals),
        "ratio_to_dense": ratios(totals, DENSE),
        "parts": {way: {part: summary([run[part] for run in runs]) for part in PARTS} for way, runs in found.items()},
    }


def start(case: Case, way: str, loader: str, folder: Path) -> dict[str, float]:
    """Run one process to the end of its first step. Returns the seconds of each part, from before its start."""
    config, answer = folder / "config.yaml", folder / "answer.json"
    config.write_text(settings_of(case, way).as_yaml())
    command = [
        sys.executable,
        "-m",
        "benchmarks.parts.startup_worker",
        str(answer),
        "--config",
        str(config),
        "--overwrite",
    ]
    overrides = [f"data.loader={loader}", f"runs={folder / 'runs'}", "name=run"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    began = time.perf_counter()
    done = subprocess.run(
        [*command, *overrides], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise SystemExit(f"error: {way} failed:\n{done.stderr}")
    found = json.loads(answer.read_text())
    parts = {"interpreter": found["began"] - began, **found["parts"]}
    return {**dict.fromkeys(PARTS, 0.0), **parts, "rest": found["ended"] - began - sum(parts.values())}


# Masks


def masks(case: Case, amount: Amount) -> Result:
    """Time to make the masks of the network, at each sparsity, beside building the network."""
    model_settings = settings_of(case, DSR).model
    shape = (3, case.image, case.image)
    model = model_settings.build(shape, case.classes)
    specs = sparse_layers(model, default=model_settings.sparse_by_default(model))
    ways: dict[str, Act] = {"network": lambda: model_settings.build(shape, case.classes)}
    for sparsity in SPARSITIES:
        counts = uniform(specs, {"conv": sparsity, "fc": sparsity})
        ways[f"{sparsity:g}"] = partial(MaskSet, model, specs, counts)
    found = compared(in_rounds(ways, amount.rounds), "network")
    return {"weights": sum(spec.weights for spec in specs), "layers": len(specs), **found}


class Network:
    """Equal linear layers with masks at 90 % and momentum; a reallocation of dsr moves the same share each time."""

    def __init__(self, layers: int, width: int) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(*(nn.Linear(width, width, bias=False) for _ in range(layers)))
        self.specs = sparse_layers(self.model)
        self.counts = uniform(self.specs, {"conv": 0.9, "fc": 0.9})
        optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01, momentum=0.9)
        masks = self.mask()
        for parameter in self.model.parameters():
            parameter.grad = torch.randn_like(parameter)
        masks.mask_gradients()
        optimizer.step()
        optimizer.zero_grad()
        self.method = DsrSettings(name="dsr", target_moves=1).build()
        self.reallocator = Reallocator(self.model, masks, self.method, optimizer)
        self.threshold = threshold_above(self.method, masks, round(MOVED * masks.active_weights))
        self.step = 0

    def mask(self) -> MaskSet:
        return MaskSet(self.model, self.specs, self.counts)

    def reallocate(self) -> int:
        """Move weights; those that were grown are 0, and so the next to go. Returns how many went."""
        self.method.threshold = self.threshold
        self.step += 1
        return sum(self.reallocator(Clock(self.step, 0)).dropped.values())


def growth(amount: Amount) -> Result:
    """Milliseconds by number of layers and by number of weights, and the exponents of a power law through them."""
    series = {
        "layers": {n: (n, amount.width) for n in amount.layers},
        "weights": {amount.depth * width**2: (amount.depth, width) for width in amount.widths},
    }
    return {by: {"amount": asdict(amount), **series_of(sizes, amount.rounds)} for by, sizes in series.items()}


def series_of(sizes: Mapping[int, tuple[int, int]], rounds: int) -> Result:
    """Reallocations of all sizes in rounds; then masks of all sizes, which undo them."""
    networks = {size: Network(*shape) for size, shape in sizes.items()}
    acts: dict[str, Callable[[Network], Any]] = {"reallocation": Network.reallocate, "masks": Network.mask}
    found: Result = {"moved": {str(size): network.reallocate() for size, network in networks.items()}}
    for name, act in acts.items():
        ways = {str(size): partial(act, network) for size, network in networks.items()}
        times = in_rounds(ways, rounds)
        found[name] = {
            "ms": summaries(times, 1000),
            "exponent": summary([exponent(list(sizes), row) for row in zip(*times.values(), strict=True)]),
        }
    return found


def exponent(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """Return the slope of log time over log size, by least squares: 1 where time grows as size does."""
    slope, _ = statistics.linear_regression([math.log(size) for size in sizes], [math.log(each) for each in seconds])
    return slope


def page(content: Result) -> str:
    return filled("startup", content, WAYS=WAYS, PARTS=PARTS, TARGET=TARGET, MOVED=MOVED)


if __name__ == "__main__":
    main()
