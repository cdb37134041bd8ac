"""One run of `benchmarks.reproduce`, and many of them side by side."""

from __future__ import annotations

import dataclasses
import multiprocessing
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness.record import Result
from benchmarks.parts.reproduce.recipes import RECIPES, Config, merged, settings_of
from dynsparse.config import loading
from dynsparse.config.schema import RunConfig
from dynsparse.runtime import Worker
from dynsparse.training.building import build_trainer
from dynsparse.training.callbacks import Callback, ReallocationReport, RunReport
from dynsparse.training.resume import checkpoints_of
from dynsparse.training.sources import read_sources


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
    """Epochs instead of the recipe's, for a quick look."""


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


def config_of(job: Job) -> RunConfig:
    recipe = RECIPES[job.data]
    raw = merged(recipe.base, settings_of(job.method, recipe, job.sparsity, Path(job.runs) / f"dense_{job.seed}"))
    other = "conv" if recipe.kind == "fc" else "fc"
    raw = merged(raw, {"sparsity": {recipe.kind: job.sparsity, other: 0.0}, "log": {"tensorboard": False}})
    if job.epochs is not None:
        raw = merged(raw, shortened(raw, job.epochs))
    raw |= {"seed": job.seed, "runs": job.runs, "name": f"{job.method}_{job.seed}"}
    return loading.parse(raw, job.overrides, source=f"{job.method} at {job.sparsity}")


def run(job: Job) -> Result:
    """Train once, in a process of its own with one thread."""
    torch.set_num_threads(1)  # The order of sums, and so the last bits, depend on it.
    config, densities, began = config_of(job), Densities(), time.monotonic()
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
    """Return settings of so few epochs that a test can try all methods."""
    shorter: Config = {"train": {"epochs": epochs}}
    return shorter | ({"method": {"iterations": epochs}} if raw["method"]["name"] == "pruning" else {})


def all_runs(jobs: Sequence[Job], processes: int) -> Iterator[Result]:
    """Run every job, several side by side, in the order of `jobs`."""
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
