"""DeepR beside a plain loop, by its paper's rules and by those of the code that published figures of MNIST are from.

    python -m benchmarks.deepr_rules data.path=DIR --at-once 2                           (40 minutes of two cores)
    python -m benchmarks.deepr_rules data.path=DIR --only dynsparse --sparsities 0.9     (other figures stay)
    python -m benchmarks.deepr_rules --page                                              (the page anew, from the JSON)

The plain loop shares nothing with `dynsparse` but the network, the data and their order.
"""

from __future__ import annotations

import math
import statistics
from argparse import Namespace
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import SGD

from benchmarks.harness import record
from benchmarks.harness.page import filled, named
from benchmarks.harness.record import Result
from benchmarks.harness.script import page_parser, run
from benchmarks.parts.plain import (
    Parts,
    accuracy,
    at,
    data_of,
    fit,
    linear_weights,
    random_mask,
    weights_of_classes,
)
from benchmarks.parts.reproduce.published import MNIST
from dynsparse import ReallocationReport, SparseTraining
from dynsparse.config import loading
from dynsparse.errors import UserError
from pipelines.common.command_line import at_least_1

NAME = "deepr_rules"
EPOCHS, ETA, UNTIL = 100, 0.01, 0.95
SPARSITIES = (0.9, 0.98, 0.99)
RATES: Parts = {0.0: 0.1, 0.25: 0.02, 0.5: 0.004, 0.75: 0.0008}
COLD: Parts = {0.0: 1e-5, 0.25: 1e-8, 0.5: 1e-12, 0.75: 1e-15}
"""Temperatures of the jobs' schedule for training."""
HOT: Parts = {0.0: 1e-3, 0.25: 1e-4, 0.5: 1e-5, 0.75: 1e-6}
"""Temperatures of the jobs' schedule for pruning."""


@dataclass(frozen=True)
class Way:
    """Row of the table."""

    title: str
    temperatures: Parts
    l1: float
    signs: Literal["random", "of the place"]
    """Whether a new weight gets its sign by chance, or has that of its place: see `Plain`."""
    noise: Literal["weights", "gradients"]
    sparsities: tuple[float, ...] = SPARSITIES
    seeds: int = 2


WAYS = {
    "dynsparse": Way("`dynsparse`", COLD, 1e-4, "random", "weights", sparsities=(0.9,), seeds=1),
    "paper": Way("the paper's rules", COLD, 1e-4, "random", "weights", sparsities=(0.9,)),
    "paper_light": Way("the paper's rules", COLD, 1e-5, "random", "weights"),
    "code": Way("the published code's rules", COLD, 1e-5, "of the place", "gradients"),
    "code_hot": Way("the published code's rules", HOT, 1e-5, "of the place", "gradients", sparsities=(0.98,), seeds=1),
    "paper_hot": Way("the paper's rules", HOT, 1e-5, "random", "weights", sparsities=(0.98,), seeds=1),
}


class Plain:
    """DeepR on the linear layers of a network, with an optimizer of its own, by the rules of a way.

    By the published code signs are kept of all places, those of inactive weights too, before these are set to 0. At the
    first step they hold random values, which the penalty counts; then what is left of momentum moves them. So a new
    weight has the sign of its place, until its own momentum has run out, and then that of its first step.
    """

    def __init__(self, way: Way, model: nn.Module, optimizer: SGD, sparsity: float, steps: int, seed: int) -> None:
        self.way, self.optimizer, self.steps, self.done = way, optimizer, steps, 0
        self.generator = torch.Generator().manual_seed(seed)
        self.weights = linear_weights(model)
        self.moved = [0] * len(self.weights)
        self.masks = [random_mask(weight, sparsity, self.generator) for weight in self.weights]
        self.active = [mask.nonzero().view(-1) for mask in self.masks]
        self.first = [weight.detach().view(-1).clone() for weight in self.weights]
        for weight, mask in zip(self.weights, self.masks, strict=True):
            weight.detach().view(-1)[~mask] = 0
        self.signs = [weight.detach().view(-1).sign() for weight in self.weights]
        if way.signs == "of the place":  # Taken before the weights were drawn for the last time.
            self.signs = [self._coins(len(mask)) for mask in self.masks]

    @torch.no_grad()
    def step(self) -> None:
        """Update the weights, add noise, and replace those that crossed 0."""
        progress, is_first = self.done / self.steps, self.done == 0
        self.done += 1
        std = math.sqrt(2 * ETA * at(self.way.temperatures, progress)) if progress < UNTIL else 0.0
        for weight, active, first in zip(self.weights, self.active, self.first, strict=True):
            assert weight.grad is not None
            flat, gradient = weight.view(-1), weight.grad.view(-1)
            kept = gradient[active] + (self._noise(active, std) if self.way.noise == "gradients" else 0)
            gradient.zero_()
            if is_first and self.way.signs == "of the place":
                gradient.add_(first.sign(), alpha=self.way.l1)
                values = flat[active]
                flat.copy_(first)[active] = values
            gradient[active] = kept
        self.optimizer.step()
        for layer, (weight, active) in enumerate(zip(self.weights, self.active, strict=True)):
            flat = weight.view(-1)
            signs, values = flat.sign(), flat[active]
            if self.way.noise == "weights":
                values += self._noise(active, std)
            flat.zero_()[active] = values
            if progress < UNTIL:
                self._replace(layer, values, signs)

    def _replace(self, layer: int, values: Tensor, signs: Tensor) -> None:
        """Drop the weights of a layer that have another sign than theirs, and grow as many."""
        active, mask, weight = self.active[layer], self.masks[layer], self.weights[layer]
        crossed = values.sign() * self.signs[layer][active] < 0
        count = int(crossed.sum())
        self.moved[layer] += count
        if self.way.signs == "of the place":
            self.signs[layer] = signs
        if not count:
            return
        dropped = active[crossed]
        grown = self._free(mask, count)
        mask[dropped] = False
        weight.view(-1)[dropped] = 0
        if self.way.signs == "random":  # The published code leaves a new weight the momentum of an earlier one.
            self.signs[layer][grown] = self._coins(count)
            self.optimizer.state[weight]["momentum_buffer"].view(-1)[torch.cat([dropped, grown])] = 0
        self.active[layer] = torch.cat([active[~crossed], grown])

    def _free(self, mask: Tensor, count: int) -> Tensor:
        """Draw some positions that are free, and take them: int64 [count]."""
        found: list[Tensor] = []
        while count:
            drawn = torch.randint(len(mask), (2 * count + 8,), generator=self.generator).unique()
            drawn = drawn[torch.randperm(len(drawn), generator=self.generator)]
            found.append(drawn[~mask[drawn]][:count])
            mask[found[-1]] = True
            count -= len(found[-1])
        return torch.cat(found)

    def _noise(self, active: Tensor, std: float) -> Tensor:
        return std * torch.randn(len(active), generator=self.generator)

    def _coins(self, count: int) -> Tensor:
        """Draw signs: -1 or 1, float [count]."""
        return torch.randint(2, (count,), generator=self.generator) * 2.0 - 1


def main() -> None:
    parser = page_parser(__doc__)
    parser.add_argument("--only", choices=WAYS, nargs="+", default=list(WAYS), metavar="WAY", help=", ".join(WAYS))
    parser.add_argument(
        "--sparsities", type=float, choices=SPARSITIES, nargs="+", default=list(SPARSITIES), help="these alone (all)"
    )
    parser.add_argument("--at-once", type=at_least_1, default=1, metavar="N", help="runs at a time, a core each (1)")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="where the data are")
    run(NAME, parser, measure, page)


def measure(asked: Namespace) -> Result:
    epochs = 2 if asked.tiny else EPOCHS
    jobs = [
        (way, sparsity, seed)
        for way in asked.only
        for sparsity in WAYS[way].sparsities
        if sparsity in asked.sparsities
        for seed in range(1 if asked.tiny else WAYS[way].seeds)
    ]
    if not jobs:
        raise UserError("nothing to measure: --only names no way that has one of --sparsities")
    asked_for = {(way, sparsity) for way, sparsity, _ in jobs}
    every = {(name, sparsity) for name, way in WAYS.items() for sparsity in way.sparsities}
    runs = [] if asked_for == every else kept_runs(asked.output, epochs)
    runs = [run for run in runs if (run["way"], run["sparsity"]) not in asked_for]
    train = partial(trained, overrides=tuple(asked.overrides), tiny=asked.tiny, epochs=epochs)
    with ProcessPoolExecutor(asked.at_once, get_context("spawn")) as pool:
        runs += [{**run, **record.origin()} for run in pool.map(train, *zip(*jobs, strict=True))]
    runs.sort(key=lambda run: (list(WAYS).index(run["way"]), run["sparsity"], run["seed"]))
    return {"epochs": epochs, "runs": runs}


def kept_runs(folder: Path | None, epochs: int) -> list[Result]:
    """Return the runs of calls before. Raises UserError if they are of another number of epochs."""
    if not record.path_of(NAME, folder).exists():
        return []
    content = record.kept(NAME, folder)
    if content["epochs"] != epochs:
        raise UserError(f"the kept figures are of {content['epochs']} epochs, not {epochs}: give another --output")
    return list(content["runs"])


def trained(way: str, sparsity: float, seed: int, overrides: Sequence[str], tiny: bool, epochs: int) -> Result:
    """Train a network.

    Returns test accuracy in percent, the last layer's weights of each class, and how many weights each layer moved.
    """
    torch.set_num_threads(1)
    document = {
        "model": {"name": "mnist_mlp", "hidden": [30, 20] if tiny else [300, 100]},
        "method": {"name": "dense"},
        "data": {"name": "digits" if tiny else "mnist", "loader": "torch", "threads": 1},
        "train": {"global_batch_size": 100, "lr": {"name": "steps", "table": {0: 0.1}}},
    }
    config = loading.parse(document, list(overrides))
    data = data_of(config, seed)
    torch.manual_seed(seed)
    model = config.model.build(config.data.image_shape, config.data.classes)
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    steps = data.train.epochs.before(epochs)
    rules = WAYS[way]
    if way == "dynsparse":
        moved: list[int] = []
        sparse = by_dynsparse(model, optimizer, sparsity, steps, seed, moved)
        weights = [layer.weight for layer in sparse.masks]
        fit(model, optimizer, optimizer.step, data, steps, weights, RATES, rules.l1)
    else:
        plain = Plain(rules, model, optimizer, sparsity, steps, seed)
        weights, moved = plain.weights, plain.moved
        fit(model, optimizer, plain.step, data, steps, weights, RATES, rules.l1)
    found = {"way": way, "sparsity": sparsity, "seed": seed, "accuracy": accuracy(model, data), "moved": moved}
    data.close()
    print(f"{way} at {sparsity}, seed {seed}: {found['accuracy']:.2f} %", flush=True)
    return {**found, "weights_of_classes": weights_of_classes(weights[-1])}


def by_dynsparse(
    model: nn.Module, optimizer: SGD, sparsity: float, steps: int, seed: int, moved: list[int]
) -> SparseTraining:
    """Make training sparse by `dynsparse`. `moved` gets the number of weights that each layer has moved so far."""

    def note(report: ReallocationReport) -> None:
        moved[:] = [
            so_far + dropped for so_far, dropped in zip(moved or [0, 0, 0], report.dropped.values(), strict=True)
        ]

    epoch = steps // EPOCHS or 1
    method = {
        "name": "deepr",
        "eta": ETA,
        "temperature": {round(begin * EPOCHS): value for begin, value in COLD.items()},
        "stop_epoch": round(UNTIL * EPOCHS),
    }
    return SparseTraining(
        model,
        optimizer,
        method,
        sparsity=sparsity,
        seed=seed,
        total_steps=steps,
        steps_per_epoch=epoch,
        on_reallocation=note,
    )


def page(content: Result) -> str:
    tables = []
    for sparsity in SPARSITIES:
        by: dict[str, list[Result]] = {}
        for found in content["runs"]:
            if found["sparsity"] == sparsity:
                by.setdefault(found["way"], []).append(found)
        rows = [summary(WAYS[name], runs) for name, runs in by.items()]
        tables.append({"sparsity": f"{100 * sparsity:g} %", "published": MNIST["deepr"][sparsity], "rows": rows})
    commits = sorted({named(run["commit"]) for run in content["runs"]})
    return filled("deepr-rules", **content, tables=tables, commits=commits)


def summary(way: Way, runs: Sequence[Mapping[str, Any]]) -> Result:
    """Return what the page tells of runs: accuracies by seed, classes without a weight, mean moves of each layer."""
    return {
        "title": way.title,
        "temperatures": f"{way.temperatures[0.0]:.0e} to {way.temperatures[0.75]:.0e}".replace("e-0", "e-"),
        "l1": f"{way.l1:.0e}".replace("e-0", "e-"),
        "accuracies": [f"{run['accuracy']:.2f}" for run in runs],
        "empty": [sum(count == 0 for count in run["weights_of_classes"]) for run in runs],
        "moved": [round(statistics.mean(layer)) for layer in zip(*(run["moved"] for run in runs), strict=True)],
    }


if __name__ == "__main__":
    main()
