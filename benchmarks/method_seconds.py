"""Seconds of a training step by each row of the table `methods`, in turn with the dense network.

    python -m benchmarks.method_seconds                     (about 20 minutes of one core; a quiet machine)
    python -m benchmarks.reproduce --data methods --page    (puts them on the page)

Each row has a trainer of its own with its settings, on the same images, which are made up. A round is an epoch, with
the events that fall into it; all rows take their turn in it. Reading of images, evaluation, the choice of first masks
and checkpoints are left out.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path

import torch

from benchmarks.harness import record
from benchmarks.harness.record import Result
from benchmarks.harness.rounds import compared, in_rounds
from benchmarks.harness.runs import CPU, data_of, settled
from benchmarks.harness.script import plain_parser
from benchmarks.parts.reproduce.recipe import Recipe, merged
from benchmarks.parts.reproduce.recipe_methods import METHODS_MNIST, rows
from benchmarks.parts.reproduce.recipes import settings_of
from dynsparse.config import loading
from dynsparse.config.schema import RunConfig
from dynsparse.runtime import Worker
from dynsparse.training.first_masks import scored
from dynsparse.training.network import build_network
from dynsparse.training.trainer import Trainer
from pipelines.base import Batch, Data

NAME, DENSE = "method_seconds", "dense"
SPARSITY = 0.98
SAMPLES = 60_000
BATCHES = 20
"""Batches that come again and again: no time depends on what they show."""


def main() -> None:
    parser = plain_parser(__doc__)
    parser.add_argument("--tiny", action="store_true", help="seconds instead of minutes, and figures without meaning")
    asked = parser.parse_args()
    result = {"load_before": record.load(), **measure(asked)}
    if asked.output or not asked.tiny:
        record.keep(NAME, result, asked.output)
    for row, ratio in result["ratio_to_dense"].items():
        print(f"{row:16} {ratio['median']:.3f} ({ratio['min']:.3f} to {ratio['max']:.3f})")


def measure(asked: Namespace) -> Result:
    """Return milliseconds of a step of each row, its ratios to the dense step of the same round, and of all steps."""
    torch.set_num_threads(1)
    recipe, samples = (tiny(), 600) if asked.tiny else (METHODS_MNIST, SAMPLES)
    with closing(data_of(config_of(DENSE, recipe, samples))) as data:
        trainers = {name: trainer_of(config_of(name, recipe, samples), data) for name in recipe.parts}
        steps, batches = data.train.epochs.steps(0), list(islice(data.train.epoch(), BATCHES))
        ways = {name: partial(train, trainer, batches, steps) for name, trainer in trainers.items()}
        times = in_rounds(ways, recipe.base["train"]["epochs"], warm_up=0)
    by_step = {name: [seconds / steps for seconds in found] for name, found in times.items()}
    whole = {name: sum(found) / sum(times[DENSE]) for name, found in times.items()}
    return {"sparsity": SPARSITY, "steps_a_round": steps, **compared(by_step, DENSE), "whole_run_to_dense": whole}


def tiny() -> Recipe:
    """Return a recipe of a few steps, less the rows that choose their period by the length of a run."""
    epochs = 4
    parts = {name: part for name, part in rows((SPARSITY,), 2, epochs).items() if not name.endswith("itop")}
    return replace(METHODS_MNIST, base=merged(METHODS_MNIST.base, {"train": {"epochs": epochs}}), parts=parts)


def config_of(name: str, recipe: Recipe, samples: int) -> RunConfig:
    """Return the config of a row of the table, on images that are made up."""
    sparsity = 0.0 if name == DENSE else SPARSITY
    data = {"name": "synthetic", "samples": samples, "test_samples": 10, "loader": "torch", "threads": 1}
    ours = {"data": data, "sparsity": recipe.sparsity(sparsity)}
    settings = merged(merged(recipe.base, ours), settings_of(name, recipe, sparsity, Path()))
    return loading.parse(settings, source=name)


def trainer_of(config: RunConfig, data: Data) -> Trainer:
    """Return a trainer at its first step, with the first masks that the row asks for."""
    network = scored(config, build_network(config, CPU), data, Worker())
    return settled(config, network, data)


def train(trainer: Trainer, batches: Sequence[Sequence[Batch]], steps: int) -> None:
    """Make the next steps of a run."""
    for number in range(steps):
        progress = trainer.progress
        progress.epoch = progress.step // trainer.data.train.epochs.steps(0)
        trainer.train_step(batches[number % len(batches)])
    trainer.outcomes.catch_up()
    assert trainer.progress.skipped_steps == 0


if __name__ == "__main__":
    main()
