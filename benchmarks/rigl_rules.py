"""RigL at 99 %, uniform densities, beside a plain loop by the rules of its authors' code: MNIST, 784-300-100-10.

    python -m benchmarks.rigl_rules data.path=DIR       (about 25 minutes of a core: two ways, some seeds)
    python -m benchmarks.rigl_rules --page              (the page anew, from the JSON)

The plain loop shares nothing with `dynsparse` but the network, the data and their order. Its rules: at an event no step
is taken; the candidates for growth are all units but the kept ones, so that a dropped one may grow again; what is new
begins at 0 and without momentum.
"""

from __future__ import annotations

import math
import statistics
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.harness.page import filled
from benchmarks.harness.record import Result
from benchmarks.harness.script import page_parser, run
from benchmarks.parts.plain import accuracy, data_of, fit, linear_weights, random_mask, weights_of_classes
from dynsparse import SparseTraining
from dynsparse.config import loading
from dynsparse.config.schema import RunConfig
from pipelines.common.command_line import at_least_1

PERIOD, FRACTION, UNTIL, SPARSITY = 100, 0.3, 0.75, 0.99
RATES = {0.0: 0.1, 0.4: 0.02, 0.65: 0.004, 0.85: 0.0008}
"""Learning rates, from a fraction of training on."""
EPOCHS = 20
OURS, AUTHORS = "`dynsparse`", "the rules of the authors' code"


class Plain:
    """RigL by the rules of its authors' code, on the linear layers of a network, with an optimizer of its own."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.SGD, steps: int, seed: int) -> None:
        self.optimizer, self.steps, self.step_number = optimizer, steps, 0
        generator = torch.Generator().manual_seed(seed)
        self.masks = {weight: random_mask(weight, SPARSITY, generator) for weight in linear_weights(model)}
        self._apply()

    @torch.no_grad()
    def step(self) -> None:
        """Update the weights; at an event, move them instead."""
        self.step_number += 1
        progress = self.step_number / self.steps
        if self.step_number % PERIOD == 0 and progress < UNTIL:
            for weight in self.masks:
                self._move(weight, FRACTION * (1 + math.cos(math.pi * progress / UNTIL)) / 2)
        else:
            self.optimizer.step()
        self._apply()

    def _move(self, weight: Tensor, fraction: float) -> None:
        assert weight.grad is not None
        mask, flat = self.masks[weight], weight.view(-1)
        count = int(fraction * int(mask.sum()))
        kept = mask.clone()
        kept[torch.where(mask, flat.abs(), torch.inf).topk(count, largest=False).indices] = False
        grown = torch.where(kept, -1.0, weight.grad.view(-1).abs()).topk(count).indices
        new = grown[~mask[grown]]
        flat[new] = 0
        if "momentum_buffer" in self.optimizer.state[weight]:
            self.optimizer.state[weight]["momentum_buffer"].view(-1)[new] = 0
        self.masks[weight] = kept.index_fill(0, grown, True)

    @torch.no_grad()
    def _apply(self) -> None:
        for weight, mask in self.masks.items():
            weight.view(-1)[~mask] = 0


def main() -> None:
    parser = page_parser(__doc__)
    parser.add_argument("--seeds", type=at_least_1, default=3, help="(3)")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="where the data are")
    run("rigl_rules", parser, measure, page)


def measure(asked: Namespace) -> Result:
    torch.set_num_threads(1)
    document = {
        "model": {"name": "mnist_mlp", "hidden": [30, 20] if asked.tiny else [300, 100]},
        "sparsity": {"conv": 0.0, "fc": SPARSITY},
        "method": {"name": "rigl", "period": PERIOD, "fraction": FRACTION, "until": UNTIL},
        "data": {"name": "digits" if asked.tiny else "mnist", "loader": "torch"},
        "train": {"global_batch_size": 100, "lr": {"name": "steps", "table": {0: 0.1}}},
    }
    config = loading.parse(document, asked.overrides)
    epochs, seeds = (1, 1) if asked.tiny else (EPOCHS, asked.seeds)
    return {
        "epochs": epochs,
        "seeds": seeds,
        "runs": {way: [trained(config, way, epochs, seed) for seed in range(seeds)] for way in (OURS, AUTHORS)},
    }


def trained(config: RunConfig, way: str, epochs: int, seed: int) -> Result:
    """Train a network. Returns test accuracy in percent, and the last layer's weights of each class."""
    data = data_of(config, seed)
    torch.manual_seed(seed)
    model = config.model.build(config.data.image_shape, config.data.classes)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    steps = data.train.epochs.before(epochs)
    if way == OURS:
        method = {"name": "rigl", "period": PERIOD, "fraction": FRACTION, "until": UNTIL}
        sparse = SparseTraining(model, optimizer, method, sparsity=SPARSITY, total_steps=steps, seed=seed)
        step: Callable[[], object] = optimizer.step
        weights: list[Tensor] = [layer.weight for layer in sparse.masks]
    else:
        plain = Plain(model, optimizer, steps, seed)
        step, weights = plain.step, [*plain.masks]
    fit(model, optimizer, step, data, steps, weights, RATES, l1=1e-4)  # The paper's penalty.
    found = {"accuracy": accuracy(model, data), "weights_of_classes": weights_of_classes(weights[-1])}
    data.close()
    return found


def page(content: Result) -> str:
    return filled("rigl-rules", **content, summaries={way: summary(runs) for way, runs in content["runs"].items()})


def summary(runs: Sequence[Mapping[str, Any]]) -> Result:
    found = [float(run["accuracy"]) for run in runs]
    empty = [sum(count == 0 for count in run["weights_of_classes"]) for run in runs]
    return {"mean": statistics.mean(found), "lowest": min(found), "highest": max(found), "empty": empty}


if __name__ == "__main__":
    main()
