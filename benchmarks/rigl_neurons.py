"""Neurons at which RigL grows at 99 %, ERK densities: MNIST, 784-300-100-10, with changes of its rule one by one.

python -m benchmarks.rigl_neurons data.path=DIR       (some minutes of a core: one seed)
python -m benchmarks.rigl_neurons --only set static   (these ways; figures of the others stay)
python -m benchmarks.rigl_neurons --page              (the page anew, from the JSON)
"""

from __future__ import annotations

import statistics
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn, optim
from torch.nn.functional import cross_entropy

from benchmarks.harness import record
from benchmarks.harness.page import filled, named
from benchmarks.harness.record import Result
from benchmarks.harness.script import page_parser, run
from benchmarks.parts.plain import accuracy, data_of
from dynsparse import Method, ReallocationReport, SparseTraining
from dynsparse.config import loading
from dynsparse.config.schema import RunConfig
from dynsparse.errors import UserError
from dynsparse.masks import MaskSet, SparseLayer
from dynsparse.methods.rigl import Rigl, RiglSettings
from dynsparse.schedules import cosine
from pipelines.base import Data
from pipelines.common.command_line import at_least_1

NAME = "rigl_neurons"
EPOCHS, SPARSITY, RATE, PERIOD = 3, 0.99, 0.1, 100
MOST = 5
"""Neurons that grow most, whose part of an event's growth is told."""
TOLD = (
    "With the division undone in the scores for growth, and nowhere else, RigL is no worse than SET. Few neurons "
    "still take most of the growth, for gradients by magnitude do choose; but none of them is empty, and what "
    "they have is used. Without BatchNorm more neurons end empty, and little is lost by that: a neuron of which "
    "no weight of the next layer takes anything has no gradient at all, and never grows again, while the others "
    "share its weights. RigL's paper uses that. On MNIST, without BatchNorm, it starts with 99 % and 89 % zeros "
    "in the first two layers and a dense last one, and keeps 100 of 300 and 69 of 100 neurons (appendix B, Table "
    "2). SRigL's authors find the same above 90 %, and hold it for useful. What is lost here is lost to the "
    "norm, at a sparsity where a neuron of the first layer has six inputs on average. Remedies: "
    "`sparsity.structure: fan_in`, as in SRigL, where each neuron grows as many; SET or MEST, which grow at "
    "random; or the scores of this script in a method of your own."
)
"""Sentences for the page: what the table tells."""
Stds = dict[str, Tensor]
"""Standard deviation over the batch of each neuron's sum of inputs, by layer: float [outputs]."""


@dataclass
class Way:
    """Row of the table."""

    title: str
    method: Mapping[str, Any] = field(default_factory=lambda: {"name": "rigl", "period": PERIOD})
    scores: str = ""
    batch_norm: bool = True


RIGL = {"name": "rigl", "period": PERIOD}
WAYS = {
    "rigl": Way("RigL"),
    "no_norm": Way("RigL, network without BatchNorm", batch_norm=False),
    "undone": Way("RigL, gradients times the standard deviation that BatchNorm divides by", scores="undone"),
    "rows": Way("RigL, each neuron's gradients divided by their norm", scores="rows"),
    "alive": Way("RigL, neurons without a weight grow none", scores="alive"),
    "momentum": Way("RigL, gradients summed with momentum 0.9", scores="momentum"),
    "mean": Way("RigL, mean gradient since the last event, as of a batch of 10,000", scores="mean"),
    "period": Way("RigL, an event each 500 steps", {**RIGL, "period": 500}),
    "fraction": Way("RigL, moving 0.1 in place of 0.3", {**RIGL, "fraction": 0.1}),
    "soft": Way("RigL, growth drawn by gradient, `soft_growth: 1`", {**RIGL, "soft_growth": 1}),
    "set": Way("SET, moving 0.3", {"name": "set", "period": PERIOD, "fraction": 0.3}),
    "static": Way("static", {"name": "static"}),
}


class Varied(Rigl):
    """RigL with other scores for growth."""

    def __init__(self, settings: RiglSettings, scores: str, stds: Stds) -> None:
        super().__init__(settings)
        self.scores, self.stds = scores, stds
        self.sums: dict[str, Tensor] = {}

    @property
    def observes(self) -> bool:
        return self.scores in ("momentum", "mean")

    @property
    def grows_by_gradient(self) -> bool:
        return not self.observes

    @torch.no_grad()
    def observe(self, layer: SparseLayer, gradient: Tensor) -> None:
        before = self.sums.get(layer.name, torch.zeros_like(gradient))
        self.sums[layer.name] = before * (0.9 if self.scores == "momentum" else 1.0) + gradient

    def grow_scores(self, layer: SparseLayer) -> Tensor:
        gradient = layer.weight.grad
        if self.observes:
            gradient = self.sums[layer.name]
        assert gradient is not None
        if self.scores == "mean":
            self.sums.pop(layer.name)
        return layer.unit_means((gradient * self._factors(layer, gradient)).abs())

    def _factors(self, layer: SparseLayer, gradient: Tensor) -> Tensor:
        """Factor of each neuron's gradients, float [outputs, 1]."""
        if self.scores == "undone":
            return self.stds[layer.name][:, None]
        if self.scores == "rows":
            norms: Tensor = torch.linalg.vector_norm(gradient, dim=1, keepdim=True)
            return 1 / norms.clamp(min=1e-12)
        if self.scores == "alive":
            return _active(layer).any(1, keepdim=True).float()
        return gradient.new_ones(1, 1)


def main() -> None:
    parser = page_parser(__doc__)
    parser.add_argument("--only", choices=WAYS, nargs="+", default=list(WAYS), metavar="WAY", help=", ".join(WAYS))
    parser.add_argument("--epochs", type=at_least_1, default=EPOCHS, help=f"({EPOCHS})")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="where the data are")
    run(NAME, parser, measure, page)


def measure(asked: Namespace) -> Result:
    torch.set_num_threads(1)
    epochs = 1 if asked.tiny else asked.epochs
    ways = {} if {*asked.only} == {*WAYS} else kept_ways(asked.output, epochs)
    for name in asked.only:
        ways[name] = {**trained(asked, WAYS[name], epochs), **record.origin()}
        print(f"{name}: {ways[name]['accuracy']:.2f} %", flush=True)
    return {"epochs": epochs, "sparsity": SPARSITY, "ways": {name: ways[name] for name in WAYS if name in ways}}


def kept_ways(folder: Path | None, epochs: int) -> dict[str, Result]:
    """Return the figures of runs before. Raises UserError if they are of another number of epochs."""
    if not record.path_of(NAME, folder).exists():
        return {}
    content = record.kept(NAME, folder)
    if content["epochs"] != epochs:
        raise UserError(f"--epochs is {epochs}; the kept figures are of {content['epochs']}: give another --output")
    return dict(content["ways"])


def configured(asked: Namespace, way: Way) -> RunConfig:
    """Return the config of one way."""
    document = {
        "model": {"name": "mnist_mlp", "batch_norm": way.batch_norm, "hidden": [30, 20] if asked.tiny else [300, 100]},
        "sparsity": {"conv": 0.0, "fc": SPARSITY, "allocation": "erk"},
        "method": {"name": "static"},
        "data": {"name": "digits" if asked.tiny else "mnist", "loader": "torch", "threads": 1},
        "train": {"global_batch_size": 100, "lr": {"name": "constant", "peak": RATE}},
    }
    return loading.parse(document, asked.overrides)


def trained(asked: Namespace, way: Way, epochs: int) -> Result:
    """Train a network. Returns test accuracy in percent, and each layer's neurons by event."""
    config = configured(asked, way)
    data = data_of(config, seed=0)
    torch.manual_seed(0)
    model = config.model.build(config.data.image_shape, config.data.classes)
    optimizer = optim.SGD(model.parameters(), lr=RATE, momentum=0.9, nesterov=True, weight_decay=1e-4)
    stds = watched(model)
    events: list[Result] = []
    before: dict[str, Tensor] = {}

    def note(report: ReallocationReport) -> None:
        events.append({"step": report.step, "layers": grown(sparse.masks, before, stds)})
        before.update({layer.name: _active(layer) for layer in sparse.masks})

    steps = data.train.epochs.before(epochs)
    method: Method | Mapping[str, Any] = way.method
    if way.scores:
        method = Varied(RiglSettings(**way.method), way.scores, stds)
    sparse = SparseTraining(
        model, optimizer, method, sparsity=SPARSITY, allocation="erk", total_steps=steps, on_reallocation=note
    )
    before.update({layer.name: _active(layer) for layer in sparse.masks})
    fit(model, optimizer, data, steps)
    found = {"accuracy": accuracy(model, data), "neurons": neurons(sparse.masks), "events": events}
    data.close()
    return found


def watched(model: nn.Module) -> Stds:
    """Return a mapping that has each linear layer's standard deviations after every forward pass in training."""
    found: Stds = {}

    def keep(name: str) -> Any:
        return lambda module, inputs, output: found.update({name: output.detach().std(0, unbiased=False)})

    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(keep(f"{name}.weight"))
    return found


def _active(layer: SparseLayer) -> Tensor:
    """Mark active weights: bool of the weight's shape."""
    return ~layer.inactive


def neurons(masks: MaskSet) -> list[Result]:
    """Count each layer's neurons, those without a weight, and those of which no weight of the next layer is left."""
    flags = [_active(layer) for layer in masks]
    outs = [*(one.any(0) for one in flags[1:]), torch.ones(len(flags[-1]), dtype=torch.bool)]
    return [
        {"all": len(one), "without_in": int((~one.any(1)).sum()), "without_out": int((~out).sum())}
        for one, out in zip(flags, outs, strict=True)
    ]


def grown(masks: MaskSet, before: Mapping[str, Tensor], stds: Stds) -> list[Result]:
    """Tell where an event's growth went in each layer."""
    found = []
    for layer, counts in zip(masks, neurons(masks), strict=True):
        new = (_active(layer) & ~before[layer.name]).sum(1)
        total = max(1, int(new.sum()))
        grew = new > 0
        found.append(
            {
                **counts,
                "grown": int(new.sum()),
                "neurons_that_grew": int(grew.sum()),
                "part_of_most": float(new.sort(descending=True).values[:MOST].sum()) / total,
                "part_of_empty": float(new[~before[layer.name].any(1)].sum()) / total,
                "std": stds[layer.name].median().item(),
                "std_of_grown": stds[layer.name].repeat_interleave(new).median().item() if grew.any() else None,
            }
        )
    return found


def fit(model: nn.Module, optimizer: optim.Optimizer, data: Data, steps: int) -> None:
    """Train with a cosine of the learning rate."""
    done = 0
    while done < steps:
        for [(images, labels)] in islice(data.train.epoch(), steps - done):
            optimizer.param_groups[0]["lr"] = cosine(RATE, 0, done / steps)
            optimizer.zero_grad()
            cross_entropy(model(images), labels).backward()
            optimizer.step()
            done += 1


def page(content: Result) -> str:
    rows = [{**summary(found), "title": WAYS[name].title} for name, found in content["ways"].items()]
    commits = {named(found["commit"]): None for found in content["ways"].values()}
    return filled(
        "rigl-neurons", **content, rows=rows, most=MOST, events=first(content), told=TOLD, commits=list(commits)
    )


def summary(found: Result) -> Result:
    """Return a row: the end of the first two layers, and the growth in the first layer over all events."""
    moved = [event["layers"][0] for event in found["events"] if event["layers"][0]["grown"]]
    return {
        "accuracy": found["accuracy"],
        "neurons": found["neurons"],
        "most": statistics.mean(one["part_of_most"] for one in moved) if moved else None,
        "empty": statistics.mean(one["part_of_empty"] for one in moved) if moved else None,
    }


def first(content: Result) -> list[Result]:
    """Return RigL's events in the first layer."""
    events = content["ways"].get("rigl", {"events": []})["events"]
    return [{"step": event["step"], **event["layers"][0]} for event in events]


if __name__ == "__main__":
    main()
