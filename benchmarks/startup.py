"""From the start of `dist_train.py` to the end of its first step, and what masks take of it.

    python -m benchmarks.startup            (about 1 minute on 2 cores; a quiet machine)
    python -m benchmarks.startup --page     (the page anew, from the JSON)

Start: fresh processes, dense and sparse in turn. Masks: those of ResNet-50, and of networks of 10 to 1000 layers and of
0.1 to 10 million weights, with one reallocation each, to see how the time grows.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

from benchmarks.harness import record
from benchmarks.harness.page import spread, table
from benchmarks.harness.record import ROOT
from benchmarks.harness.rounds import compared, in_rounds, summary
from benchmarks.steps import (
    DENSE,
    DSR,
    RESNET,
    THREADS,
    Case,
    Result,
    add_arguments,
    keep,
    load,
    settings_of,
    tiny,
    write_page,
)
from dynsparse.masks import MaskSet, sparse_layers
from dynsparse.masks.allocation import uniform
from dynsparse.methods import Clock
from dynsparse.methods.dsr import Dsr, DsrSettings
from dynsparse.reallocation import Reallocator

NAME = "startup"
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
"""Share of the active weights that a reallocation moves."""


@dataclass(frozen=True)
class Amount:
    """How much is measured of masks."""

    rounds: int = 5
    layers: tuple[int, ...] = (10, 100, 1000)
    width: int = 64
    """Of these layers, as many inputs as outputs."""
    widths: tuple[int, ...] = (100, 316, 1000)
    depth: int = 10
    """Layers of these widths."""


TINY = Amount(rounds=2, layers=(2, 4, 8), width=8, widths=(8, 16, 32), depth=2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    arguments = parser.parse_args()
    path = (arguments.output or record.RESULTS) / f"{NAME}.json"
    if not arguments.page:
        torch.set_num_threads(1 if arguments.tiny else THREADS)
        case, amount = (replace(tiny(START), rounds=1), TINY) if arguments.tiny else (START, Amount())
        result = {"load_before": load(), "start": starts(case, "torch" if arguments.tiny else "dali")}
        result |= {"masks": masks(case, amount), "growth": growth(amount)}
        print("\n\n".join(paragraphs(result)))
        keep(NAME, result, arguments)
    write_page(NAME, page, path, arguments)


# The start


def starts(case: Case, loader: str) -> Result:
    """Seconds of the parts, over fresh processes; ratios to dense within a round."""
    found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    with TemporaryDirectory() as folder:
        for number in range(case.rounds):
            for way in list(WAYS)[:: 1 if number % 2 else -1]:
                found[way].append(start(case, way, loader, Path(folder)))
    totals = {way: [sum(parts.values()) for parts in rounds] for way, rounds in found.items()}
    return {
        **asdict(case),
        "loader": loader,
        "seconds": {way: summary(total) for way, total in totals.items()},
        "ratio_to_dense": {
            way: summary([a / b for a, b in zip(total, totals[DENSE], strict=True)]) for way, total in totals.items()
        },
        "parts": {way: {part: summary([run[part] for run in runs]) for part in PARTS} for way, runs in found.items()},
    }


def start(case: Case, way: str, loader: str, folder: Path) -> dict[str, float]:
    """One process from before its start to the end of its first step: seconds of each part."""
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
    """Those of the network, at each sparsity, beside building the network."""
    model_settings = settings_of(case, DSR).model
    shape = (3, case.image, case.image)
    model = model_settings.build(shape, case.classes)
    specs = sparse_layers(model, default=model_settings.sparse_by_default(model))
    ways: dict[str, Callable[[], Any]] = {"network": lambda: model_settings.build(shape, case.classes)}
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
        self.threshold = threshold(self.method, masks)
        self.step = 0

    def mask(self) -> MaskSet:
        return MaskSet(self.model, self.specs, self.counts)

    def reallocate(self) -> int:
        """Those that were grown are 0, and so the next to go. Returns how many went."""
        self.method.threshold = self.threshold
        self.step += 1
        return sum(self.reallocator(Clock(self.step, 0)).dropped.values())


def threshold(method: Dsr, masks: MaskSet) -> float:
    """Under which lies the share to move."""
    scores = torch.cat([method.drop_scores(layer) for layer in masks])
    return float(scores.kthvalue(1 + round(MOVED * scores.numel())).values)


def growth(amount: Amount) -> Result:
    """Milliseconds by number of layers and by number of weights, and the exponents of a power law through them."""
    series = {
        "layers": {n: (n, amount.width) for n in amount.layers},
        "weights": {amount.depth * width**2: (amount.depth, width) for width in amount.widths},
    }
    return {by: {"amount": asdict(amount), **series_of(sizes, amount.rounds)} for by, sizes in series.items()}


def series_of(sizes: Mapping[int, tuple[int, int]], rounds: int) -> Result:
    """Masks of all sizes in rounds; then a reallocation of all sizes in rounds, for masks anew would undo it."""
    networks = {size: Network(*shape) for size, shape in sizes.items()}
    acts: dict[str, Callable[[Network], Any]] = {"reallocation": Network.reallocate, "masks": Network.mask}
    found: Result = {"moved": {str(size): network.reallocate() for size, network in networks.items()}}
    for name, act in acts.items():
        ways = {str(size): partial(act, network) for size, network in networks.items()}
        times = in_rounds(ways, rounds)
        found[name] = {
            "ms": {size: summary([1000 * taken for taken in seconds]) for size, seconds in times.items()},
            "exponent": summary([exponent(list(sizes), row) for row in zip(*times.values(), strict=True)]),
        }
    return found


def exponent(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """The slope of log time over log size, by least squares: 1 where time grows as size does."""
    slope, _ = statistics.linear_regression([math.log(size) for size in sizes], [math.log(each) for each in seconds])
    return slope


# The page


def page(content: Result) -> list[str]:
    return ["# Start and masks", *paragraphs(content)]


def paragraphs(content: Result) -> list[str]:
    return [*start_text(content["start"]), *masks_text(content["masks"]), *growth_text(content["growth"])]


def start_text(found: Result) -> list[str]:
    rows = [[title, *(spread(found["parts"][way][part], 3) for way in WAYS)] for part, title in PARTS.items()]
    rows.append(["**all**", *(spread(found["seconds"][way], 2) for way in WAYS)])
    rows.append(["**all, of dense**", *(spread(found["ratio_to_dense"][way], 3) for way in WAYS)])
    return [
        "## To the end of the first step",
        (
            f"`python dist_train.py`, {found['title']} at {100 * found['sparsity']:g} %, {found['image']} px, batch "
            f"{found['batch']}, synthetic data (loader {found['loader']}), on the CPU, from before the process is "
            f"started: seconds, median of {found['rounds']} processes each, in turn, and the least and the most. The "
            "data are made up in memory: listing the files of a real data set is not in it. Files come from the "
            "system's cache; the first start after a boot takes longer, dense and sparse alike. The first step, like "
            "settle, sets up kernels; later steps are shorter (steps.md)."
        ),
        table(["part, s", *WAYS.values()], rows),
    ]


def masks_text(found: Result) -> list[str]:
    rows = [
        [
            "building the network itself" if way == "network" else f"masks at sparsity {way}",
            spread(ms, 0),
            spread(found["ratio_to_network"][way], 2),
            "" if way == "network" else f"{'below' if ms['median'] < 1000 * TARGET else 'NOT below'} {TARGET:g} s",
        ]
        for way, ms in found["ms"].items()
    ]
    return [
        "## Masks of ResNet-50",
        (
            f"`MaskSet` of {found['layers']} layers with {found['weights']:,} weights: drawn at random, indexed, and "
            f"the weights outside set to 0. Median of {found['rounds']} rounds in which they take turns, and the least "
            "and the most."
        ),
        table(["", "ms", "of building the network", ""], rows),
    ]


def growth_text(found: Result) -> list[str]:
    amount = found["layers"]["amount"]
    texts = {
        "layers": f"Layers of {amount['width']} x {amount['width']} weights, more and more of them",
        "weights": f"{amount['depth']} square layers, wider and wider",
    }
    parts = [
        "## How they grow",
        (
            "Linear layers at 90 %, and a reallocation of `dsr` that moves "
            f"{100 * MOVED:g} % of the active weights. Milliseconds, median of {amount['rounds']} rounds in which the "
            "sizes take turns, and the least and the most; the exponent is the slope of log time over log size, round "
            "by round: 1 is proportional, 2 would be quadratic, below 1 a part does not depend on the size."
        ),
    ]
    for by, text in texts.items():
        acts = {"masks": "masks, ms", "reallocation": "a reallocation, ms"}
        rows = [
            [f"{int(size):,}", *(spread(found[by][act]["ms"][size], 2) for act in acts), f"{moved:,}"]
            for size, moved in found[by]["moved"].items()
        ]
        rows.append(["exponent", *(spread(found[by][act]["exponent"], 2) for act in acts), ""])
        parts += [f"{text}:", table([by, *acts.values(), "weights moved"], rows)]
    return parts


if __name__ == "__main__":
    main()
