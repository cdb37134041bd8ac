"""One training step, sparse against the same step dense.

    python -m benchmarks.steps                       (about 4 minutes on 2 cores; a quiet machine)
    python -m benchmarks.steps --also bf16 compile   (autocast and torch.compile too: about 3 minutes more)
    python -m benchmarks.steps --page                (the page anew, from the JSON)

Each way has a Trainer of its own, on the same batch; rounds in which the ways take turns. Beside the ratio of whole
steps, which is as noisy as the machine, the work that a step of that way adds is timed by itself, within these steps.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

import pipelines
from benchmarks.harness import record
from benchmarks.harness.page import spread, table
from benchmarks.harness.record import PAGES
from benchmarks.harness.rounds import compared, finished, in_rounds, summary
from dynsparse.config import loading
from dynsparse.config.schema import RunConfig
from dynsparse.keeping.weights import LOOK_EVERY
from dynsparse.methods import Clock
from dynsparse.methods.dsr import Dsr
from dynsparse.runtime import Worker
from dynsparse.training import penalties
from dynsparse.training.network import Network, build_network
from dynsparse.training.trainer import Trainer
from pipelines.base import Batch, Data, Request
from pipelines.order import Share as RankShare

NAME = "steps"
THREADS = 2
WARM_UP = 2
REALLOCATIONS = 5
DENSE, STATIC, DSR, DEEPR, MULTIPLIED = "dense", "static", "dsr", "deepr", "multiplied"
TITLES = {
    DENSE: "dense: no masks at all",
    STATIC: "`static`",
    DSR: "`dsr`, between two reallocations",
    DEEPR: "`deepr`, which reallocates every step",
    MULTIPLIED: "dense, each weight multiplied by a float mask in every forward",
}
TARGETS = {STATIC: 1.02, DSR: 1.02, DEEPR: 1.25}
"""Of the dense step, at most."""
METHODS: Mapping[str, Mapping[str, Any]] = {
    DENSE: {"name": "dense"},
    MULTIPLIED: {"name": "dense"},
    STATIC: {"name": "static"},
    DSR: {"name": "dsr", "period": 1_000_000},
    DEEPR: {"name": "deepr"},
}
PENALTY = {"l1": 1e-5}
"""Of deepr, as in its configs."""
Result = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """A network, its data, and how much is measured."""

    title: str
    model: Mapping[str, Any]
    image: int
    classes: int
    batch: int
    moves: int
    """Weights that a reallocation of dsr moves."""
    period: int
    """Steps from one to the next; both as in the paper's first epochs (configs/)."""
    rounds: int = 10
    ways: tuple[str, ...] = (DENSE, STATIC, DSR, DEEPR, MULTIPLIED)
    precision: str = "fp32"
    compile: bool = False
    sparsity: float = 0.9


RESNET = Case("ResNet-50", {"name": "imagenet_resnet50"}, 224, 1000, batch=8, moves=400_000, period=1000, rounds=13)
WRN_MODEL = {"name": "cifar10_WideResNet", "depth": 28, "widen_factor": 2}
WRN = Case("WRN-28-2", WRN_MODEL, 32, 10, batch=64, moves=20_000, period=100)
PAIR = (DENSE, STATIC)
CASES = {"resnet50": RESNET, "wrn": WRN}
MORE = {
    "bf16": replace(WRN, title="WRN-28-2, bf16 autocast", ways=PAIR, precision="bf16"),
    "compile": replace(WRN, title="WRN-28-2, torch.compile", ways=PAIR, compile=True),
}


def tiny(case: Case) -> Case:
    small = {"widen_factor": 0.1} if case.model["name"] == "imagenet_resnet50" else {"depth": 10, "widen_factor": 0.5}
    return replace(case, model={**case.model, **small}, image=32, classes=10, batch=2, moves=50, rounds=2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--also", metavar="CASE", nargs="+", choices=MORE, default=[], help=f"of {', '.join(MORE)}")
    add_arguments(parser)
    arguments = parser.parse_args()
    path = (arguments.output or record.RESULTS) / f"{NAME}.json"
    if not arguments.page:
        torch.set_num_threads(1 if arguments.tiny else THREADS)
        cases = {**CASES, **{name: MORE[name] for name in arguments.also}}
        result: Result = {"load_before": load(), "cases": {}}
        for name, case in cases.items():
            result["cases"][name] = measured(tiny(case) if arguments.tiny else case)
        print("\n\n".join(paragraphs(result)))
        keep(NAME, result, arguments)
    write_page(NAME, page, path, arguments)


# The network of a way and its trainer


def settings(case: Case, method: Mapping[str, Any], *, masks: bool = True, **train: Any) -> RunConfig:
    """A run with this method. Without masks no layer is sparse: plain dense training."""
    shares: dict[str, Any] = {"conv": case.sparsity, "fc": case.sparsity, "exclude": [] if masks else ["*"]}
    data = {"name": "synthetic", "shape": [3, case.image, case.image], "number_of_classes": case.classes}
    fixed = {"global_batch_size": case.batch, "lr": {"name": "steps", "table": {0: 0.01}}}
    formats = {"precision": case.precision, "compile": case.compile}
    return loading.parse(
        {
            "model": dict(case.model),
            "sparsity": shares,
            "method": dict(method),
            "data": {**data, "samples": 4 * case.batch, "test_samples": 2, "loader": "torch"},
            "train": {**fixed, **formats, **({"penalty": PENALTY} if method["name"] == "deepr" else {}), **train},
            "log": {"every_steps": 1},
        }
    )


def settings_of(case: Case, way: str) -> RunConfig:
    return settings(case, METHODS[way], masks=way not in (DENSE, MULTIPLIED))


def no_data(config: RunConfig) -> Data:
    """What a trainer asks for the length of an epoch. No batch is ever taken from it."""
    return pipelines.build(
        config.data, Request(config.seed, config.train.global_batch_size, RankShare(0, 1, 1), 2, None)
    )


def made_up_batch(case: Case, device: torch.device) -> list[Batch]:
    """The only one: images [batch, 3, image, image] and labels."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(case.batch, 3, case.image, case.image, generator=generator)
    return [(images.to(device), torch.randint(case.classes, (case.batch,), generator=generator).to(device))]


def settled(config: RunConfig, network: Network, data: Data, **options: Any) -> Trainer:
    """A trainer at its first step, as `fit` gets there."""
    trainer = Trainer(config, network, data, Worker(), **options)
    trainer._settle()
    network.initial_weights = {}
    return trainer


def trainers(case: Case, data: Data) -> dict[str, Trainer]:
    """One for each way, from the same initial weights and masks."""
    device = torch.device("cpu")
    made = {}
    for way in case.ways:
        config = settings_of(case, way)
        network = build_network(config, device)
        if way == MULTIPLIED:
            multiply(network.model, build_network(settings_of(case, STATIC), device))
        made[way] = settled(config, network, data)
    return made


class Multiplied(nn.Module):
    """w * mask, with a float mask in a buffer."""

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.mask


def multiply(model: nn.Module, sparse: Network) -> None:
    """Mask a model's weights by the masks of another, the way that many published codes do it."""
    for layer in sparse.masks:
        module = model.get_submodule(layer.name.removesuffix(".weight"))
        parametrize.register_parametrization(module, "weight", Multiplied(layer.mask.float()))


# Time


class Watch:
    """Adds up the seconds spent in some calls, those within them counted once."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._inside = False

    def timed(self, act: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            if self._inside:
                return act(*arguments, **options)
            self._inside, began = True, finished()
            try:
                return act(*arguments, **options)
            finally:
                self._inside = False
                self.seconds += finished() - began

        return call

    def take(self) -> float:
        taken, self.seconds = self.seconds, 0.0
        return taken


@contextmanager
def watched(trainers: Sequence[Trainer]) -> Iterator[Watch]:
    """Time all that a step does for masks and methods. A dense step makes the same calls, on no layers."""
    watch = Watch()
    original = penalties.add_gradients
    penalties.add_gradients = watch.timed(original)
    for trainer in trainers:
        for owner, names in (
            (trainer.sparse, ("prepare_gradients", "before_step", "after_step")),
            (trainer.masks, ("mask_gradients",)),
        ):
            for name in names:
                setattr(owner, name, watch.timed(getattr(owner, name)))
    try:
        yield watch
    finally:
        penalties.add_gradients = original


def measured(case: Case) -> Result:
    """Steps of all ways in rounds, what they add, and a reallocation of dsr."""
    with closing(no_data(settings_of(case, DENSE))) as data:
        ways = trainers(case, data)
        batch = made_up_batch(case, torch.device("cpu"))
        added: dict[str, list[float]] = {way: [] for way in ways}
        losses: dict[str, list[Tensor]] = {way: [] for way in ways}
        with watched(list(ways.values())) as watch:

            def step(way: str) -> None:
                losses[way].append(ways[way].train_step(batch))
                added[way].append(watch.take())

            acts = {way: lambda way=way: step(way) for way in ways}
            times = in_rounds(acts, case.rounds, warm_up=WARM_UP)
        for way, trainer in ways.items():
            assert trainer.progress.skipped_steps == 0, f"{way} left out a step"
        return {
            **asdict(case),
            **sizes(ways[STATIC].network),
            **compared(times, DENSE),
            "added": {
                way: added_work(found[WARM_UP:], added[DENSE][WARM_UP:], times[DENSE]) for way, found in added.items()
            },
            "losses": {way: torch.stack(found).tolist() for way, found in losses.items()},
            "reallocation": reallocation(ways[DSR], case, times[DENSE]) if DSR in ways else None,
            "strays": strays(ways[STATIC], times[DENSE]),
        }


def sizes(network: Network) -> Result:
    return {
        "total_parameters": network.total_parameters,
        "sparse_layer_weights": network.sparse_layer_weights,
        "active_weights": network.active_weights,
    }


def added_work(found: Sequence[float], dense: Sequence[float], steps: Sequence[float]) -> Result:
    """Seconds beyond those of the dense step, as milliseconds and as a share of that step, round by round."""
    more = [a - b for a, b in zip(found, dense, strict=True)]
    return {
        "ms": summary([1000 * seconds for seconds in more]),
        "share_of_dense": summary([seconds / step for seconds, step in zip(more, steps, strict=True)]),
    }


def strays(trainer: Trainer, steps: Sequence[float]) -> Result:
    """What counting the weights outside the masks costs, and as a share of each dense step at one in so many."""
    seconds = []
    for _ in range(1 + REALLOCATIONS):  # The first warms up.
        began = finished()
        assert trainer.masks.strays() == {}
        seconds.append(finished() - began)
    step = summary(steps)["median"]
    return {
        "period": LOOK_EVERY,
        "ms": summary([1000 * one for one in seconds[1:]]),
        "share_of_dense": summary([one / step / LOOK_EVERY for one in seconds[1:]]),
    }


def reallocation(trainer: Trainer, case: Case, steps: Sequence[float]) -> Result:
    """Of `case.moves` weights each time: those that were grown are 0, and so the next to go."""
    method = trainer.sparse.method
    assert isinstance(method, Dsr)
    scores = torch.cat([method.drop_scores(layer) for layer in trainer.masks])
    threshold = float(scores.kthvalue(case.moves + 1).values)
    seconds, moved = [], []
    for number in range(-1, REALLOCATIONS):  # The first warms up.
        method.threshold = threshold
        began = finished()
        report = trainer.sparse.reallocator(Clock(case.period * (number + 2), 0))
        if number >= 0:
            seconds.append(finished() - began)
            moved.append(sum(report.dropped.values()))
    step = summary(steps)["median"]
    return {
        "period": case.period,
        "moved": summary(moved),
        "ms": summary([1000 * taken for taken in seconds]),
        "share_of_dense": summary([taken / (case.period * step) for taken in seconds]),
    }


# The page


def page(content: Result) -> list[str]:
    return ["# A training step", INTRO, *paragraphs(content), "## What this does not show", LIMITS]


INTRO = (
    "The same `Trainer.train_step` (forward, backward, check of the gradients, optimizer step), the same initial "
    "weights, batch and optimizer (SGD with Nesterov momentum and weight decay), on the CPU; what differs is the "
    "method. *Dense* has no sparse layers, so its masks are empty. *Multiplied* is that dense step on a network whose "
    "weights are `w * mask` in each forward (torch.nn.utils.parametrize, a float mask in a buffer, the same masks as "
    "`static`), as many published codes do it; it makes no reallocation. `deepr` has a penalty on |w| as in its "
    "configs, and its reallocation in every step."
)
LIMITS = (
    "Times of the whole step are the sum of what every step does and what a way adds; on a machine that does anything "
    "else they vary by more than the addition, which is why it is timed by itself too. Nothing here is faster than "
    "dense: kernels compute with the zeros. One worker: what several say to each other, data loading, "
    "observers and checkpoints are left out, of both. The smaller the batch, the larger the share of what is added, "
    "for that depends on the weights alone; a step on a GPU has another share."
)


def paragraphs(content: Result) -> list[str]:
    return [part for found in content["cases"].values() for part in case_text(found)]


def case_text(found: Result) -> list[str]:
    rows = [
        [
            TITLES[way],
            spread(ratio, 3),
            "" if way in (DENSE, MULTIPLIED) else percent(found["added"][way]["share_of_dense"]),
            against(way, ratio, found["added"][way]["share_of_dense"]),
        ]
        for way, ratio in found["ratio_to_dense"].items()
    ]
    text = (
        f"{found['image']} px, batch {found['batch']}, {found['precision']}"
        f"{', compiled' if found['compile'] else ''}; {100 * found['sparsity']:g} % of "
        f"{found['sparse_layer_weights']:,} weights in the sparse layers are 0, of {found['total_parameters']:,} "
        f"parameters. A dense step takes {spread(found['ms'][DENSE], 0)} ms. Median of {found['rounds']} rounds in "
        "which the ways take turns, and the least and the most; ratios and shares are to the dense step of the round. "
        "Added: the time within the step of all that masks and method do."
    )
    head = ["step", "ratio to dense", "added, of the dense step", "target"]
    counted = found["strays"]
    strays_text = (
        f"A count of what lies outside the masks takes {spread(counted['ms'], 1)} ms; with one every "
        f"{counted['period']} steps that is {percent(counted['share_of_dense'])} of each dense step."
    )
    parts = [f"## {found['title']}", text, table(head, rows), reallocation_text(found), strays_text, losses_text(found)]
    return [part for part in parts if part]


def against(way: str, ratio: Mapping[str, float], added: Mapping[str, float]) -> str:
    if way not in TARGETS:
        return ""
    found = {"by ratio": ratio["median"], "by what is added": 1 + added["median"]}
    verdicts = [f"{by} {'within' if value <= TARGETS[way] else 'NOT within'}" for by, value in found.items()]
    return f"{TARGETS[way]:g}: {', '.join(verdicts)}"


def percent(found: Mapping[str, float]) -> str:
    return f"{spread({key: 100 * value for key, value in found.items()}, 2)} %"


def reallocation_text(case: Result) -> str:
    found = case["reallocation"]
    if found is None:
        return ""
    return (
        f"A reallocation of `dsr` that moves {found['moved']['median']:,.0f} weights takes {spread(found['ms'], 0)} "
        f"ms (median of {REALLOCATIONS}); with one every {found['period']:,} steps that is "
        f"{percent(found['share_of_dense'])} of each dense step, on top of the above."
    )


def losses_text(case: Result) -> str:
    """Whether the two ways to mask the same weights train alike."""
    losses = case["losses"]
    if MULTIPLIED not in losses:
        return ""
    pairs = list(zip(losses[STATIC], losses[MULTIPLIED], strict=True))
    far = max(abs(a - b) / abs(b) for a, b in pairs)
    alike = "are equal, to the bit" if far == 0 else f"differ by a share of at most {far:.1g}"
    return f"The losses of `static` and of multiplied weights in the {len(pairs)} steps {alike}."


# What scripts of this kind share


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tiny", action="store_true", help="seconds instead of minutes, and figures without meaning")
    parser.add_argument("--output", metavar="DIR", type=Path, help="write there, instead of to the kept figures")
    parser.add_argument("--page", action="store_true", help="measure nothing; write the page anew")


def load() -> float:
    return round(os.getloadavg()[0], 2)


def keep(name: str, result: Result, arguments: argparse.Namespace) -> None:
    """Tiny figures replace no others."""
    if arguments.output or not arguments.tiny:
        command = shlex.join(["python", "-m", f"benchmarks.{name}", *sys.argv[1:]])
        record.keep(name, command, result, arguments.output)


def write_page(name: str, page: Callable[[Result], list[str]], path: Path, arguments: argparse.Namespace) -> None:
    """From the JSON alone."""
    if arguments.tiny and not arguments.output:
        return
    content, folder = json.loads(path.read_text()), arguments.output or PAGES
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.md").write_text("\n\n".join([*page(content), *made(content, path, folder)]) + "\n")


def made(content: Result, path: Path, folder: Path) -> list[str]:
    machine = content["machine"]
    return [
        "## How it was made",
        (
            f"By `{content['command']}` on {machine['cores']} cores ({machine['processor']})"
            f"{''.join(f', {gpu}' for gpu in machine['gpus'])}, load average before it {content['load_before']}; "
            f"{', '.join(f'{name} {version}' for name, version in content['versions'].items())}; commit "
            f"{content['commit']}. Figures of another machine are others. All numbers: "
            f"[{path.name}]({Path(os.path.relpath(path, folder)).as_posix()})."
        ),
    ]


if __name__ == "__main__":
    main()
