"""Every method at several sparsities over several seeds: a table, a plot of accuracy against sparsity, and a plot of
where dynamic sparse training moves its weights.

    python -m benchmarks.reproduce                    (make reproduce-digits: under 15 minutes on 2 cores)
    python -m benchmarks.reproduce --data mnist       (where there is internet; so is cifar10)

Accuracy is that of the last epoch on the test samples, never the best one, which would be chosen on the test set.
Each run is one process with one thread, so that it gives the same bits however many run side by side.
"""

from __future__ import annotations

import argparse
import dataclasses
import multiprocessing
import os
import shlex
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from benchmarks import plots
from benchmarks.harness.record import PAGES, keep
from dynsparse.config import loading
from dynsparse.runtime import Worker
from dynsparse.training.building import build_trainer
from dynsparse.training.callbacks import Callback, ReallocationReport, RunReport
from dynsparse.training.resume import checkpoints_of
from dynsparse.training.sources import read_sources

Config = dict[str, Any]
FRACTION = 0.1
"""Of the active weights, moved in one reallocation: what dynamic sparse training aims at, and SET drops."""


@dataclass(frozen=True)
class Recipe:
    """How a data set is trained on: what all methods share."""

    base: Config
    kind: str
    """Which layers are sparse: conv or fc."""
    sparse_weights: int
    """Weights in these layers."""
    period: dict[int, int]
    stop_epoch: int
    pruning_epochs: int
    """After the epochs of the dense network that is pruned."""
    thin: dict[float, Config]
    """For each sparsity the settings of the dense network with as many parameters."""


def _mlp(epochs: int, steps: Sequence[int]) -> Config:
    first, second = steps
    return {
        "model": {"name": "mnist_mlp"},
        "train": {
            "epochs": epochs,
            "global_batch_size": 64,
            "lr": {"name": "steps", "table": {0: 0.1, first: 0.02, second: 0.004}},
        },
    }


# Widths with which the whole dense network has about as many parameters as the sparse one, BatchNorm included.
THIN_MLP = {0.9: [34, 12], 0.95: [18, 6], 0.98: [8, 3], 0.99: [4, 2]}

RECIPES = {
    "digits": Recipe(
        base={**_mlp(40, (20, 32)), "data": {"name": "digits", "threads": 1}},
        kind="fc",
        sparse_weights=266_200,
        period={0: 20, 20: 40},
        stop_epoch=36,
        pruning_epochs=20,
        thin={sparsity: {"model": {"hidden": hidden}} for sparsity, hidden in THIN_MLP.items()},
    ),
    "mnist": Recipe(
        base={**_mlp(100, (50, 80)), "data": {"name": "mnist", "download": True}},
        kind="fc",
        sparse_weights=266_200,
        period={0: 100, 25: 200, 50: 400, 75: 800},
        stop_epoch=95,
        pruning_epochs=50,
        thin={sparsity: {"model": {"hidden": hidden}} for sparsity, hidden in THIN_MLP.items()},
    ),
    "cifar10": Recipe(
        base={
            "model": {"name": "cifar10_WideResNet", "widen_factor": 2.0},
            "data": {"name": "cifar10", "download": True},
            "train": {
                "epochs": 200,
                "global_batch_size": 100,
                "optimizer": {"name": "sgd", "weight_decay": 5e-4},
                "lr": {"name": "steps", "table": {0: 0.1, 60: 0.02, 120: 0.004, 160: 0.0008}},
            },
        },
        kind="conv",
        sparse_weights=1_451_520,
        period={0: 100, 25: 200, 80: 400, 140: 800},
        stop_epoch=190,
        pruning_epochs=50,
        thin={
            sparsity: {"model": {"widen_factor": width}}
            for sparsity, width in {0.9: 0.66, 0.95: 0.48, 0.98: 0.34, 0.99: 0.28}.items()
        },
    ),
}

METHODS = {
    "dense": "dense",
    "pruning": "iterative pruning of the dense network",
    "dsr": "dynamic sparse reparameterization",
    "sparse_momentum": "sparse momentum",
    "rigl": "RigL",
    "rigl_erk": "RigL, ERK",
    "set": "SET",
    "deepr": "DeepR",
    "static": "static sparse",
    "tied": "tied (HashedNets)",
    "thin": "thin dense",
}


def settings_of(method: str, recipe: Recipe, sparsity: float, dense_run: Path) -> Config:
    """What one method adds to the recipe."""
    moves = {"period": recipe.period, "stop_epoch": recipe.stop_epoch}
    steps = {"rigl": recipe.period, "rigl_erk": recipe.period}.get(method)
    target = round(FRACTION * (1 - sparsity) * recipe.sparse_weights)
    epochs = recipe.pruning_epochs
    sections: dict[str, Config] = {
        "dense": {"method": {"name": "dense"}},
        "thin": {"method": {"name": "dense"}, **recipe.thin.get(sparsity, {})},
        "static": {"method": {"name": "static"}},
        "tied": {"method": {"name": "tied"}},
        "dsr": {"method": {"name": "dsr", "target_moves": target, **moves}},
        "set": {"method": {"name": "set", "fraction": FRACTION, **moves}},
        # As in the paper's jobs: L1 instead of weight decay, and a temperature that falls.
        "deepr": {
            "method": {
                "name": "deepr",
                "eta": 0.01,
                "temperature": {0: 1e-5, recipe.stop_epoch // 2: 1e-8},
                "stop_epoch": recipe.stop_epoch,
            },
            "train": {"penalty": {"l1": 1e-5}, "optimizer": {"name": "sgd", "weight_decay": 0.0}},
        },
        "rigl": {"method": {"name": "rigl", "period": steps}},
        "rigl_erk": {"method": {"name": "rigl", "period": steps}, "sparsity": {"allocation": "erk"}},
        # With the default of 0.5 it starves layers at 98 %: where all weights of a neuron are new, and so 0, BatchNorm
        # divides by next to nothing, and such neurons hold 99.8 % of the first layer's momentum.
        "sparse_momentum": {"method": {"name": "sparse_momentum", "fraction": 0.2}},
        "pruning": {
            "method": {
                "name": "pruning",
                "after_epoch": 0,
                "every_epochs": 1,
                "iterations": epochs // 2,
                "schedule": "cubic",
                f"target_{recipe.kind}": sparsity,
                f"target_{'fc' if recipe.kind == 'conv' else 'conv'}": 0.0,
            },
            "start": {"weights_from": str(dense_run)},
            "train": {
                "epochs": epochs,
                "lr": {"name": "steps", "table": {0: 0.02, epochs // 2: 0.02, 3 * epochs // 4: 0.004}},
            },
        },
    }
    return sections[method]


def merged(base: Config, more: Config) -> Config:
    """`more` laid over `base`, section by section; a section of another name replaces it."""
    result = dict(base)
    for key, value in more.items():
        known = result.get(key)
        nested = isinstance(value, dict) and isinstance(known, dict) and value.get("name") in (None, known.get("name"))
        # A table by epoch is one value.
        result[key] = merged(known, value) if nested and not any(isinstance(k, int) for k in value) else value
    return result


@dataclass(frozen=True)
class Job:
    """One run."""

    data: str
    method: str
    sparsity: float
    seed: int
    runs: str
    """Folder of the dense networks, which pruning starts from."""
    overrides: tuple[str, ...] = ()
    epochs: int | None = None
    """Instead of the recipe's, for a quick look."""


class Densities(Callback):
    """The density of each layer after each reallocation, by epochs of training."""

    def on_start(self, run: RunReport) -> None:
        self._weights = {layer.name: layer.weights for layer in run.layers}
        self._steps_per_epoch = run.steps_per_epoch
        self.found: dict[str, list[tuple[float, float]]] = {name: [] for name in self._weights}
        self._note(0, run.active)

    def on_reallocation(self, report: ReallocationReport) -> None:
        self._note(report.step, report.active)

    def _note(self, step: int, active: Any) -> None:
        for name, points in self.found.items():
            points.append((round(step / self._steps_per_epoch, 3), round(active[name] / self._weights[name], 6)))


def run(job: Job) -> dict[str, Any]:
    """Train once, in a process of its own with one thread."""
    torch.set_num_threads(1)  # The order of sums, and so the last bits, depend on it.
    recipe = RECIPES[job.data]
    dense_run = Path(job.runs) / f"dense_{job.seed}"
    raw = merged(recipe.base, settings_of(job.method, recipe, job.sparsity, dense_run))
    other = "conv" if recipe.kind == "fc" else "fc"
    raw = merged(raw, {"sparsity": {recipe.kind: job.sparsity, other: 0.0}, "log": {"tensorboard": False}})
    if job.epochs is not None:
        raw = merged(raw, shortened(raw, job.epochs))
    raw |= {"seed": job.seed, "runs": job.runs, "name": f"{job.method}_{job.seed}"}
    config = loading.parse(raw, job.overrides, source=f"{job.method} at {job.sparsity}")
    densities = Densities()
    began = time.monotonic()
    trainer = build_trainer(
        config,
        Worker(),
        read_sources(config),
        observers=[densities],
        checkpoints=checkpoints_of(config) if job.method == "dense" else None,
    )
    summary = trainer.fit()
    return {
        **{key: value for key, value in dataclasses.asdict(job).items() if key not in ("runs", "overrides", "epochs")},
        "test_top1": summary.test_top1,
        "active_weights": summary.active_weights,
        "parameters": summary.total_parameters - summary.sparse_layer_weights + summary.active_weights,
        "layers": {name: layer["sparsity_after"] for name, layer in summary.layers.items()},
        "reallocations": summary.reallocations,
        "weight_digest": summary.weight_digest,
        "seconds": round(time.monotonic() - began, 1),
        **({"densities": densities.found} if job.method == "dsr" else {}),
    }


def shortened(raw: Config, epochs: int) -> Config:
    """So few epochs that a test can try all methods."""
    shorter: Config = {"train": {"epochs": epochs}}
    return shorter | ({"method": {"iterations": epochs}} if raw["method"]["name"] == "pruning" else {})


def all_runs(jobs: Sequence[Job], processes: int) -> Iterator[dict[str, Any]]:
    """Every job, several side by side, in the order of `jobs`."""
    if processes == 1:
        yield from map(_told, map(run, jobs))
        return
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        yield from map(_told, pool.imap(run, jobs))


def _told(result: dict[str, Any]) -> dict[str, Any]:
    print(
        f"{result['method']:16} sparsity {result['sparsity']:.2f}  seed {result['seed']}  "
        f"{result['test_top1']:.2f} %  {result['seconds']:.0f} s",
        flush=True,
    )
    return result


def described(runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean and standard deviation over the seeds, for each method and sparsity."""
    groups: dict[tuple[str, float], list[dict[str, Any]]] = {}
    for one in runs:
        groups.setdefault((one["method"], one["sparsity"]), []).append(one)
    rows = []
    for (method, sparsity), members in groups.items():
        values = [member["test_top1"] for member in members]
        rows.append(
            {
                "method": method,
                "sparsity": sparsity,
                "mean": statistics.mean(values),
                "sd": statistics.stdev(values) if len(values) > 1 else 0.0,
                "parameters": members[0]["parameters"],
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=sorted(RECIPES), default="digits")
    parser.add_argument("--methods", nargs="+", choices=sorted(METHODS), default=list(METHODS))
    parser.add_argument("--sparsity", type=float, nargs="+", default=[0.9, 0.95, 0.98, 0.99])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--processes", type=int, default=min(8, os.cpu_count() or 1))
    parser.add_argument("--epochs", type=int, help="instead of the recipe's own, for a quick look")
    parser.add_argument("--out", type=Path, default=PAGES, help="folder for the table and the plots")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="change every run's config")
    arguments = parser.parse_intermixed_args()
    recipe = RECIPES[arguments.data]
    if "thin" in arguments.methods and (unknown := set(arguments.sparsity) - set(recipe.thin)):
        parser.error(
            f"no widths of the thin network for {sorted(unknown)}; leave it out of --methods, or add them here"
        )
    os.environ["OMP_NUM_THREADS"] = "1"

    with TemporaryDirectory() as folder:

        def job(method: str, sparsity: float, seed: int) -> Job:
            return Job(arguments.data, method, sparsity, seed, folder, tuple(arguments.overrides), arguments.epochs)

        methods = [method for method in METHODS if method in arguments.methods and method != "dense"]
        needs_dense = {"dense", "pruning"} & set(arguments.methods)
        first = [job("dense", 0.0, seed) for seed in range(arguments.seeds)] if needs_dense else []
        rest = [
            job(method, sparsity, seed)
            for seed in range(arguments.seeds)
            for sparsity in arguments.sparsity
            for method in methods
        ]
        began = time.monotonic()
        runs = [*all_runs(first, arguments.processes), *all_runs(rest, arguments.processes)]
    command = shlex.join(["python", "-m", "benchmarks.reproduce", *sys.argv[1:]])
    content = {
        "data": arguments.data,
        "minutes": round((time.monotonic() - began) / 60, 1),
        "processes": arguments.processes,
        "results": described(runs),
        "runs": runs,
    }
    elsewhere = None if arguments.out == PAGES else arguments.out  # A quick look replaces no figures.
    path = keep(f"reproduce_{arguments.data}", command, content, elsewhere)
    for page in plots.write(path, METHODS, arguments.out):
        print(f"written: {page}")


if __name__ == "__main__":
    main()
