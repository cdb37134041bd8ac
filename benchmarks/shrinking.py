"""Training with shrinks beside dense and unstructured training: time, accuracy, inference, and what a shrink costs.

    python -m benchmarks.shrinking --photographs DIR --seeds 0 1 2   (two hours of one core a seed)
    python -m benchmarks.shrinking --page                            (the page anew, from the JSON)

`DIR` holds Imagenette with a shorter side of 80 pixels (`python -m benchmarks.shrink`). ResNet-18 and ResNet-50 are
trained on it, dense, by RigL, by Chase, and by Chase with shrinks: an epoch of each in turn, in one process with one
thread. Seeds and networks that are in the JSON already stay there: what is measured now is added, or takes their place.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator, Mapping
from dataclasses import replace
from statistics import mean, stdev
from typing import Any

import torch

from benchmarks.harness import record
from benchmarks.harness.page import filled, named
from benchmarks.harness.record import Result
from benchmarks.harness.rounds import summary
from benchmarks.harness.script import page_parser, run
from benchmarks.parts.shrinking.cases import SHRUNK, Case
from benchmarks.parts.shrinking.families import family
from benchmarks.parts.shrinking.training import WAYS, side_by_side
from benchmarks.parts.shrinking.workers import on_workers

NAME = "shrinking"
NETWORKS = {
    "resnet18": Case("resnet18", 48, epochs=8),
    "resnet50": Case("resnet50", 48, epochs=8, channel_sparsity=0.65, channel_floor=0.9),
    "resnet50_62": Case("resnet50", 48, epochs=8, channel_sparsity=0.62, channel_floor=0.9),
    "resnet50_residual": Case("resnet50", 48, epochs=8, channel_sparsity=0.5, channel_floor=0.9, residual=True),
    "resnet50_low_floor": Case("resnet50", 48, epochs=8, channel_sparsity=0.8),
}
TITLES = {
    "resnet18": "ResNet-18",
    "resnet50": "ResNet-50",
    "resnet50_62": "ResNet-50 with a little more width",
    "resnet50_residual": "ResNet-50 with shortcuts that shrink",
    "resnet50_low_floor": "ResNet-50 with a low floor",
}
ON_WORKERS = Case("resnet18", 64, epochs=4, period=5, samples=1_280)
WORKERS = 4
FAMILIES = {
    "resnet50": 64,
    "mobilenet_v3_large": 64,
    "densenet121": 64,
    "convnext_tiny": 64,
    "vit_b_16": 224,
    "efficientnet_b0": 64,
}
"""Networks of torchvision, and the size of their images."""
TINY: Mapping[str, Any] = {"epochs": 4, "batch": 8, "period": 1, "samples": 32, "size": 32}
PARTS = (*NETWORKS, "workers", "families")


def main() -> None:
    parser = page_parser(__doc__)
    parser.add_argument("--photographs", metavar="DIR", default="data/imagenette-small", help="(%(default)s)")
    parser.add_argument("--seeds", metavar="N", nargs="+", type=int, default=[0], help="(0)")
    parser.add_argument(
        "--parts", metavar="PART", nargs="+", choices=PARTS, default=PARTS, help="of " + ", ".join(PARTS)
    )
    run(NAME, parser, measure, page)


def measure(asked: Namespace) -> Result:
    """Measure the parts that are asked for, and return them with those of the JSON that are not."""
    torch.set_num_threads(1)
    before = record.kept(NAME, asked.output) if record.path_of(NAME, asked.output).exists() else {}
    found = {part: before[part] for part in PARTS if part in before}
    for part in asked.parts:
        for key, one in _measured(part, asked):
            found[part] = {**found.get(part, {}), key: one}
            if not asked.tiny:
                record.keep(NAME, found, asked.output)  # What is done stays, whatever comes.
    return found


def _measured(part: str, asked: Namespace) -> Iterator[tuple[str, Result]]:
    if part in NETWORKS:
        case = replace(NETWORKS[part], photographs=asked.photographs)
        for seed in asked.seeds:
            yield str(seed), {**record.origin(), **side_by_side(tiny(case) if asked.tiny else case, seed)}
    elif part == "workers":
        case, count, rounds = (tiny(ON_WORKERS), 2, 1) if asked.tiny else (ON_WORKERS, WORKERS, 3)
        yield str(WORKERS), {**record.origin(), **on_workers(case, count, rounds)}
    else:
        for name, size in {"mobilenet_v3_small": 32}.items() if asked.tiny else FAMILIES.items():
            yield name, {**record.origin(), **family(name, size)}


def tiny(case: Case) -> Case:
    """Return the case in seconds: four epochs of four steps on made-up images, by a network of next to no width."""
    return replace(case, **TINY, network="resnet18", photographs="", options={"channels": [8, 8, 16, 16]})


def page(content: Result) -> str:
    networks = {name: _sums(content[name]) for name in NETWORKS if name in content}
    words = {"WAYS": WAYS, "SHRUNK": SHRUNK, "TITLES": TITLES, "origin": _origin}
    words["families_from"] = list({_origin(one): None for one in content.get("families", {}).values()})
    return filled(NAME, content, words, networks=networks)


def _origin(one: Result) -> str:
    return f"{one['processor']}, commit {named(one['commit'])}"


def _sums(seeds: Mapping[str, Any]) -> Result:
    """Sum up the seeds of a network: accuracy and ratios of time by way, and a shrink's time in steps."""
    top1 = {way: [one["runs"][way]["top1"][-1] for one in seeds.values()] for way in WAYS}
    origins = {_origin(one): None for one in seeds.values()}
    return {
        "seeds": seeds,
        "origins": list(origins),
        "top1": {way: (mean(values), stdev(values) if len(values) > 1 else None) for way, values in top1.items()},
        "whole": {way: summary([one["whole_run_to_dense"][way] for one in seeds.values()]) for way in WAYS},
        "step": {way: summary([one["last_step_to_dense"][way]["median"] for one in seeds.values()]) for way in WAYS},
        "shrink_steps": summary([n for one in seeds.values() for n in one["runs"][SHRUNK]["shrink_in_steps"]]),
    }


if __name__ == "__main__":
    main()
