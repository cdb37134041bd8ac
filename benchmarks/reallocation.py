"""What one reallocation takes: against dense masks and full scans, by part, by density, by method; and making masks.

    python -m benchmarks.reallocation             (about 4 minutes on 2 cores; a quiet machine, 5 GB of memory)
    python -m benchmarks.reallocation --page      (the page anew, from the JSON)

ResNet-50 with the paper's sparse layers on the CPU, 2 threads. Every timed call begins with the same weights, masks and
momentum, put back before it outside the clock, and with nothing of them in the processor's cache, as after a step.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from benchmarks.full_scans import DenseLayer, in_torch, with_numpy
from benchmarks.harness import record
from benchmarks.harness.page import spread, table
from benchmarks.harness.record import PAGES
from benchmarks.harness.rounds import compared, in_rounds
from dynsparse.config import loading
from dynsparse.config.schema import RunConfig
from dynsparse.distributed import digest
from dynsparse.masks import MaskSet
from dynsparse.methods import Clock
from dynsparse.reallocation import Plan, Reallocator
from dynsparse.training.network import build_network

NAME = "reallocation"
CPU = torch.device("cpu")
CLOCK = Clock(step=1, epoch=0, steps_per_epoch=1000, epochs=100)
SHARE = 0.03
"""Of the active weights, moved where densities and methods are compared."""
DENSITIES = (0.4, 0.2, 0.1, 0.05, 0.01)
OURS = "ours"
WAYS = {
    "numpy": "full scans, `np.setdiff1d` and a permutation: the paper's way",
    "numpy, unique": "the same with `assume_unique=True`",
    "torch": "full scans in torch",
    "ours with digests": "ours, with the digests of a run of several workers",
    OURS: "ours, `reallocator(clock)`",
}
PARTS = {
    OURS: "the whole, `reallocator(clock)`",
    "plan": "of it: to decide (rank 0 alone)",
    "apply": "of it: to carry the plan out",
    "ours with digests": "the whole, with the digests of a run of several workers",
    "mask digest": "of it: a digest of the masks (two of these)",
    "weight digest": "of it: a digest of all weights (one)",
}
METHODS: dict[str, dict[str, Any]] = {
    "static": {},
    "dsr": {},
    "set": {"fraction": SHARE},
    "rigl": {"fraction": SHARE},
    "sparse_momentum": {"fraction": SHARE},
    "deepr": {},
}
Result = dict[str, Any]


class Amount(NamedTuple):
    """How much is measured."""

    model: Mapping[str, Any] = {"name": "imagenet_resnet50"}
    classes: int = 1000
    sparsity: float = 0.9
    moves: Sequence[int] = (64_000, 400_000)
    rounds_of_full_scans: int = 3
    rounds: int = 5
    cache: int = 128 << 20
    """Bytes run through before each call: more than the processor's last cache holds."""


TINY = Amount(model={"name": "small_cnn", "channels": [8, 16]}, classes=10, moves=(8, 40), rounds=2, cache=1 << 10)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="seconds instead of minutes, and figures without meaning")
    parser.add_argument("--output", metavar="DIR", type=Path, help="write there, instead of to the kept figures")
    parser.add_argument("--page", action="store_true", help="measure nothing; write the page anew")
    arguments = parser.parse_args()
    path = (arguments.output or record.RESULTS) / f"{NAME}.json"
    if not arguments.page:
        result = measure(TINY if arguments.tiny else Amount())
        print("\n\n".join(paragraphs(result)))
        if arguments.tiny and not arguments.output:
            return
        command = shlex.join(["python", "-m", f"benchmarks.{NAME}", *sys.argv[1:]])
        path = record.keep(NAME, command, result, arguments.output)
    write_page(path, arguments.output or PAGES)


def measure(amount: Amount) -> Result:
    torch.set_num_threads(2)
    load = round(os.getloadavg()[0], 2)
    parts = {str(moves): by_part(amount, moves) for moves in amount.moves}  # First: it warms up what follows.
    return {
        "load_before": load,
        "amount": amount._asdict(),
        "numpy": np.__version__,
        "making_masks": making_masks(amount),
        "parts": parts,
        "full_scans": {str(moves): against_full_scans(amount, moves) for moves in amount.moves},
        "densities": by_density(amount),
        "methods": by_method(amount),
    }


# What is measured


class Subject:
    """A network as an optimizer step left it, with all that a reallocation changes, and the means to put it back.

    `moves` active weights lie below dsr's threshold, and as many have the wrong sign for deepr. Weights are the initial
    ones, momenta are those of one step with random gradients.
    """

    def __init__(self, amount: Amount, sparsity: float, method: str = "dsr", moves: int | None = None) -> None:
        config = settings(amount, sparsity, method)
        network = build_network(config, CPU)
        self.model, self.masks = network.model, network.masks
        self.moves = moves or max(1, round(SHARE * self.masks.active_weights))
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.0, momentum=0.9)
        self.gradients = self._step()
        self.threshold = threshold_above(self.masks, self.moves)
        chosen = config.method
        if method == "dsr":
            chosen = chosen.model_copy(update={"initial_threshold": self.threshold, "target_moves": self.moves})
        self.method = chosen.build()
        self.method.prepare(self.masks)
        if method == "deepr":
            self._flip_signs()
        self.reallocator = Reallocator(self.model, self.masks, self.method, self.optimizer, seed=config.seed)
        self.start = [layer.copy(torch.bool) for layer in self.layers()]
        self._saved_masks, self._saved_method = self.masks.state_dict(), self.method.state_dict()
        self._elsewhere = elsewhere(amount.cache)
        self._at_step = False

    def _step(self) -> list[Tensor]:
        """Leaves momenta, and the weights as they are. Returns the gradients of the sparse layers, before masking."""
        generator = torch.Generator().manual_seed(1)
        for parameter in self.model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        gradients = [layer.weight.grad.clone() for layer in self.masks if layer.weight.grad is not None]
        self.masks.mask_gradients()
        self.optimizer.step()
        return gradients

    @torch.no_grad()
    def _flip_signs(self) -> None:
        """Of `moves` active weights, as evenly spread as can be."""
        marked = torch.zeros(self.masks.active_weights, dtype=torch.bool)
        marked[torch.linspace(0, len(marked) - 1, self.moves, dtype=torch.float64).long()] = True
        for layer, flips in zip(self.masks, marked.split([x.active_weights for x in self.masks]), strict=True):
            values = layer.gather(layer.weight).view(-1)
            layer.scatter_(layer.weight, torch.where(flips, -values, values))

    def layers(self) -> list[DenseLayer]:
        """As they are now: weights and momenta themselves, masks copied."""
        state = self.optimizer.state
        return [DenseLayer(x.weight.detach(), x.mask, state[x.weight]["momentum_buffer"]) for x in self.masks]

    @torch.no_grad()
    def restore(self) -> None:
        """To after `backward`: gradients are not masked yet."""
        self._at_step = False
        for layer, saved, gradient in zip(self.masks, self.start, self.gradients, strict=True):
            layer.weight.copy_(saved.weight)
            self.optimizer.state[layer.weight]["momentum_buffer"].copy_(saved.momentum)
            assert layer.weight.grad is not None
            layer.weight.grad.copy_(gradient)
        self.masks.load_state_dict(self._saved_masks)
        self.method.load_state_dict(self._saved_method)
        self.empty_cache()

    def restore_to_step(self) -> None:
        """To where `reallocator(clock)` is called."""
        if not self._at_step:
            self.restore()
            self.seen = self.reallocator.before_step(CLOCK)
            self._at_step = True
        self.empty_cache()

    def empty_cache(self) -> None:
        self._elsewhere += 1

    def reallocate(self) -> int:
        """Returns the weights dropped."""
        self._at_step = False
        return sum(self.reallocator(CLOCK, self.seen).dropped.values())

    def apply(self, plan: Plan) -> None:
        self._at_step = False
        self.reallocator.apply(plan, costs=self.seen.growth_costs)

    def reallocate_with_digests(self) -> None:
        """What each of several workers hashes: masks and weights before, masks after."""
        self.digests(masks=1)
        self.reallocate()
        digest.mask_digest(self.masks)

    def digests(self, masks: int = 2) -> None:
        for _ in range(masks):
            digest.mask_digest(self.masks)
        digest.weight_digest(self.model, self.masks)

    def whole_event(self) -> None:
        """All that a step with a reallocation does beside backward and the optimizer."""
        self._at_step = False
        self.reallocator.after_step(CLOCK, self.reallocator.before_step(CLOCK))


@lru_cache(maxsize=1)
def elsewhere(size: int) -> Tensor:
    """Memory, in bytes, that pushes all else out of the cache when it is passed over."""
    return torch.zeros(size, dtype=torch.uint8)


def settings(amount: Amount, sparsity: float, method: str) -> RunConfig:
    period = {} if method == "static" else {"period": {0: 1}}
    return loading.parse(
        {
            "model": dict(amount.model),
            "sparsity": {"conv": sparsity, "fc": sparsity},
            "method": {"name": method, **METHODS[method], **period},
            "data": {"name": "synthetic", "shape": [3, 32, 32], "number_of_classes": amount.classes},
        }
    )


def threshold_above(masks: MaskSet, count: int) -> float:
    """The magnitude below which exactly `count` active weights lie."""
    magnitudes = torch.cat([layer.gather(layer.weight.detach()).abs().view(-1) for layer in masks])
    last, threshold = magnitudes.sort().values[count - 1 : count + 1].tolist()
    assert last < threshold, f"two weights of magnitude {last} stand where {count} are to be below: take another seed"
    return float(threshold)


class Rival:
    """A way with dense masks, from a subject's start."""

    def __init__(self, subject: Subject, mask: torch.dtype, act: Callable[[Sequence[DenseLayer], float], None]) -> None:
        self.subject, self.act = subject, act
        self.layers = [layer.copy(mask) for layer in subject.start]

    def __call__(self) -> None:
        self.act(self.layers, self.subject.threshold)

    def restore(self) -> None:
        for layer, start in zip(self.layers, self.subject.start, strict=True):
            layer.take_over(start)
        self.subject.empty_cache()


def against_full_scans(amount: Amount, moves: int) -> Result:
    """All ways in the same rounds, and proof that they did the same."""
    subject = Subject(amount, amount.sparsity, moves=moves)
    draw, seeded = np.random.default_rng(0), torch.Generator().manual_seed(0)
    rivals = {
        "numpy": Rival(subject, torch.float32, lambda layers, h: with_numpy(layers, h, draw)),
        "numpy, unique": Rival(
            subject, torch.float32, lambda layers, h: with_numpy(layers, h, draw, assume_unique=True)
        ),
        "torch": Rival(subject, torch.bool, lambda layers, h: in_torch(layers, h, seeded)),
    }
    ours = {"ours with digests": subject.reallocate_with_digests, OURS: subject.reallocate}

    def before(way: str) -> None:
        if way in rivals:
            rivals[way].restore()
        else:
            subject.restore_to_step()

    # A round takes long enough to need no warming up.
    times = in_rounds({**rivals, **ours}, amount.rounds_of_full_scans, warm_up=0, before=before)
    subject.restore_to_step()
    subject.reallocate()
    after = {OURS: subject.layers(), **{name: rival.layers for name, rival in rivals.items()}}
    return {"moved": moves, **compare_work(subject, after), **compared(times, OURS)}


def compare_work(subject: Subject, after: Mapping[str, Sequence[DenseLayer]]) -> Result:
    """Raise RuntimeError unless all ways dropped and grew the same numbers, and computed what they should."""
    grown = {way: check_work(way, subject, layers) for way, layers in after.items()}
    for way, counts in grown.items():
        if counts != grown[OURS]:
            raise RuntimeError(f"{way} grew {counts} weights in the layers, ours {grown[OURS]}")
    return {"layers": len(subject.masks), "weights": subject.masks.weights, "active": subject.masks.active_weights}


def check_work(way: str, subject: Subject, after: Sequence[DenseLayer]) -> list[int]:
    """What a way has grown in each layer; RuntimeError if it did not drop what lies below the threshold, and only that,
    or did not grow as many in positions that were free before."""
    grown = []
    for name, layer, start in zip([x.name for x in subject.masks], after, subject.start, strict=True):
        active = layer.mask.bool()
        kept = start.mask & (start.weight.abs() >= subject.threshold)
        if not torch.equal(start.mask & active, kept):
            raise RuntimeError(f"{way} did not drop exactly what lies below the threshold in {name}")
        for what, left, right in (
            ("weights", layer.weight, start.weight),
            ("momenta", layer.momentum, start.momentum),
        ):
            if not torch.equal(left, right * kept):
                raise RuntimeError(f"{way} left {what} in {name} that are not those kept, and 0 elsewhere")
        grown.append(int((active & ~start.mask).count_nonzero()))
    if sum(grown) != subject.moves:
        raise RuntimeError(f"{way} grew {sum(grown)} weights, and dropped {subject.moves}")
    return grown


def by_part(amount: Amount, moves: int) -> Result:
    subject = Subject(amount, amount.sparsity, moves=moves)
    subject.restore_to_step()
    plan = subject.reallocator.plan(CLOCK, subject.seen)
    ways: dict[str, Callable[[], Any]] = {
        OURS: subject.reallocate,
        "plan": lambda: subject.reallocator.plan(CLOCK, subject.seen),
        "apply": lambda: subject.apply(plan),
        "ours with digests": subject.reallocate_with_digests,
        "mask digest": lambda: digest.mask_digest(subject.masks),
        "weight digest": lambda: digest.weight_digest(subject.model, subject.masks),
    }
    times = in_rounds(ways, amount.rounds, before=lambda way: subject.restore_to_step())
    return {"moved": moves, **compared(times, OURS)}


def by_density(amount: Amount) -> Result:
    """Milliseconds of a reallocation and of a worker's digests at each density, and straight lines through them."""
    subjects = {f"{density:g}": Subject(amount, round(1 - density, 3)) for density in DENSITIES}
    active = {name: subject.masks.active_weights for name, subject in subjects.items()}

    def rounds(act: Callable[[Subject], Any]) -> Result:
        ways = {name: lambda subject=subject: act(subject) for name, subject in subjects.items()}
        times = in_rounds(ways, amount.rounds, before=lambda name: subjects[name].restore_to_step())
        found = compared(times, "0.1")
        return {**found, "line": line(active, {name: one["median"] for name, one in found["ms"].items()})}

    return {
        "active": active,
        "moved": {name: subject.moves for name, subject in subjects.items()},
        "dense_parameters": dense_parameters(subjects["0.1"]),
        "reallocation": rounds(Subject.reallocate),
        "digests": rounds(Subject.digests),
    }


def dense_parameters(subject: Subject) -> int:
    return sum(parameter.numel() for parameter in subject.model.parameters()) - subject.masks.weights


def line(active: Mapping[str, int], ms: Mapping[str, float]) -> Result:
    """Least squares: ms = constant + slope * millions of active weights."""
    x = np.array([active[name] / 1e6 for name in active])
    y = np.array([ms[name] for name in active])
    slope, constant = np.polyfit(x, y, 1)
    left = ((y - constant - slope * x) ** 2).sum()
    r_squared = 1 - left / ((y - y.mean()) ** 2).sum()
    return {"constant_ms": float(constant), "ms_per_million": float(slope), "r_squared": float(r_squared)}


def by_method(amount: Amount) -> Result:
    """One reallocation of each method, alone and with all that its step does beside backward and the optimizer."""
    subjects = {method: Subject(amount, amount.sparsity, method) for method in METHODS}
    moving = [method for method in METHODS if method != "static"]
    moved = {}
    for method in moving:
        subjects[method].restore_to_step()
        moved[method] = subjects[method].reallocate()
    alone = in_rounds(
        {method: subjects[method].reallocate for method in moving},
        amount.rounds,
        before=lambda method: subjects[method].restore_to_step(),
    )
    event = in_rounds(
        {method: subject.whole_event for method, subject in subjects.items()},
        amount.rounds,
        before=lambda method: subjects[method].restore(),
    )
    return {"moved": moved, "alone": compared(alone, "dsr"), "event": compared(event, "dsr")}


def making_masks(amount: Amount) -> Result:
    """Of all layers, from how many weights of each are to be active."""
    network = build_network(settings(amount, amount.sparsity, "dsr"), CPU)
    specs = [layer.spec for layer in network.masks]
    counts = {layer.name: layer.active_units for layer in network.masks}
    weights = {name: value for name, value in network.model.named_parameters() if name in counts}
    generator = torch.Generator().manual_seed(0)

    @torch.no_grad()
    def permutations() -> None:
        for spec in specs:
            mask = torch.zeros(spec.units)
            mask[torch.randperm(spec.units, generator=generator)[: counts[spec.name]]] = 1
            weights[spec.name].mul_(mask.view(spec.shape))

    @torch.no_grad()
    def fresh_weights(way: str) -> None:
        for weight in weights.values():
            weight.fill_(1)

    ways = {OURS: lambda: MaskSet(network.model, specs, counts), "permutations": permutations}
    return compared(in_rounds(ways, amount.rounds, before=fresh_weights), OURS)


# The page


def paragraphs(result: Result) -> list[str]:
    """All but heading and how it was made."""
    return [
        *full_scans_text(result),
        *parts_text(result),
        *densities_text(result["densities"]),
        *methods_text(result["methods"]),
        *masks_text(result["making_masks"]),
    ]


def full_scans_text(result: Result) -> list[str]:
    found = result["full_scans"]
    rows = [
        [
            WAYS[way],
            *(spread(one["ms"][way], 1) for one in found.values()),
            *("" if way == OURS else spread(one["ratio_to_ours"][way], 1) for one in found.values()),
        ]
        for way in WAYS
    ]
    names = [f"{one['moved']:,} moved" for one in found.values()]
    first = next(iter(found.values()))
    return [
        "## Against dense masks and full scans",
        (
            f"{first['layers']} layers, {first['weights']:,} weights, of which {first['active']:,} are active. The "
            "paper's way: masks are float32 tensors; each layer is scanned for what lies below the threshold; then "
            "of each layer all free positions are listed, those just dropped are taken away with `np.setdiff1d`, the "
            "rest is put in a random order whole, of which the first are taken; weights and momentum are multiplied by "
            "the masks. It is written anew from that description in `benchmarks/full_scans.py`, as one plainly would "
            f"today; it is not the paper's file. By default `np.setdiff1d` of NumPy {result['numpy']} first looks for "
            "repeats with `np.unique`; what that alone takes is the difference to the second row, where it is told "
            "that positions are distinct. What dense masks cost by themselves is in the rows below the first. In "
            "torch: bool masks, no difference of sets (what was free is remembered), `torch.randperm` over the free "
            "positions. Beside them ours, whole: deciding, applying, optimizer state, "
            "check of the budget and report. Digests (those of several workers, without sending them) are in the row "
            "before. The plan's broadcast and the all-reduces of several workers are in no row."
        ),
        table(["way", *(f"{name}, ms" for name in names), *(f"{name}, times ours" for name in names)], rows),
        (
            f"Median of {first['rounds']} rounds in which the ways take turns, and the least and the most; times ours: "
            "of the same round. The script then compares what the ways have left, and stops if not all have dropped "
            "exactly the weights below the threshold, grown as many in each layer, in positions that were free before, "
            "and left the weights and momenta of those kept as they were and 0 elsewhere."
        ),
    ]


def parts_text(result: Result) -> list[str]:
    found = result["parts"]
    rows = [
        [
            PARTS[part],
            *(spread(one["ms"][part], 1) for one in found.values()),
            *("" if part == OURS else spread(one["ratio_to_ours"][part], 2) for one in found.values()),
        ]
        for part in PARTS
    ]
    names = [f"{one['moved']:,} moved" for one in found.values()]
    rounds = next(iter(found.values()))["rounds"]
    return [
        "## Where the time goes",
        (
            f"Ours, by part, each measured by itself in {rounds} rounds. The parts need not sum to the whole: each "
            "begins with nothing in the cache, where in the whole one finds what the other left there, and the whole "
            "has a check and a report too. Workers beside rank 0 do not decide."
        ),
        table(["part", *(f"{name}, ms" for name in names), *(f"{name}, ratio" for name in names)], rows),
    ]


def densities_text(found: Result) -> list[str]:
    ours, digests = found["reallocation"], found["digests"]

    def per_million(ms: Mapping[str, float], density: str) -> str:
        return f"{ms['median'] / (found['active'][density] / 1e6):.2f}"

    rows = [
        [
            density,
            f"{active:,}",
            f"{found['moved'][density]:,}",
            spread(ours["ms"][density], 2),
            per_million(ours["ms"][density], density),
            spread(digests["ms"][density], 2),
            per_million(digests["ms"][density], density),
        ]
        for density, active in found["active"].items()
    ]
    head = ["density", "active", "moved", "reallocation, ms", "ms a million active"]
    head += ["digests, ms", "ms a million active"]
    return [
        "## Against the active weights",
        (
            f"`reallocator(clock)` in one process, {100 * SHARE:g} % of the active weights moved at each density, and "
            "beside it the digests that each of several workers makes (masks twice, weights once). Median of "
            f"{ours['rounds']} rounds in which the densities take turns, and the least and the most."
        ),
        table(head, rows),
        (
            f"Straight lines through the medians, by least squares: a reallocation takes {line_text(ours['line'])}; "
            f"the digests {line_text(digests['line'])}. The digests' constant is that they hash "
            f"the {found['dense_parameters']:,} dense parameters as well, and check that what is not active in the "
            "sparse layers is 0, which passes over all of their weights once. The constant of a reallocation is what "
            "each of its operations and layers costs whatever its size."
        ),
    ]


def line_text(line: Mapping[str, float]) -> str:
    return (
        f"{line['constant_ms']:.2f} ms + {line['ms_per_million']:.2f} ms a million active weights "
        f"(R² {line['r_squared']:.4f})"
    )


def methods_text(found: Result) -> list[str]:
    alone, event = found["alone"], found["event"]
    rows = [
        [
            f"`{method}`",
            f"{found['moved'].get(method, 0):,}",
            spread(alone["ms"][method], 1) if method in alone["ms"] else "",
            spread(alone["ratio_to_dsr"][method], 2) if method in alone["ms"] else "",
            spread(event["ms"][method], 1),
            spread(event["ratio_to_dsr"][method], 2),
        ]
        for method in METHODS
    ]
    return [
        "## Methods",
        (
            f"One reallocation of each method, of {100 * SHARE:g} % of the active weights. Alone: "
            "`reallocator(clock)`. With its step: what the method does between backward and the optimizer, masking of "
            "gradients included, and after the optimizer's step, reallocation included. `static` only masks gradients, "
            "which every step does. `rigl` and `sparse_momentum` rank all free positions by their scores: no index of "
            "active weights saves them from that; `sparse_momentum` also updates its momenta at every step, and "
            "`deepr` adds its noise, which lets a few more weights cross 0. Median of "
            f"{alone['rounds']} rounds, and the least and the most; ratios are to `dsr` within a round."
        ),
        table(["method", "moved", "alone, ms", "ratio", "with its step, ms", "ratio"], rows),
    ]


def masks_text(found: Result) -> list[str]:
    ms, ratio = found["ms"], found["ratio_to_ours"]["permutations"]
    return [
        "## Making the masks",
        (
            "Masks of all layers at random, with exactly as many active weights as are asked in each, and the weights "
            f"outside set to 0: `MaskSet` takes {spread(ms[OURS], 0)} ms, a float32 mask from `torch.randperm` over "
            f"each layer {spread(ms['permutations'], 0)} ms, {spread(ratio, 1)} times as long; median of "
            f"{found['rounds']} rounds, and the least and the most."
        ),
    ]


def write_page(path: Path, folder: Path) -> None:
    """From the JSON alone."""
    content = json.loads(path.read_text())
    amount, machine = content["amount"], content["machine"]
    intro = (
        f"{amount['model']['name']} for {amount['classes']:,} classes at sparsity {amount['sparsity']:g} in its "
        f"sparse layers, method dsr with scaling, on the CPU with {machine['threads']} threads. Weights are the "
        "initial ones, momenta those of one step with random gradients; the threshold is such that exactly the wanted "
        "number of active weights lies below it. Weights, masks, momentum and the method are put back before each "
        f"call, and {amount['cache'] / 2**20:.0f} MB of other memory are passed over, both outside the clock: every "
        "call of every way begins with none of it in the processor's cache, as after an optimizer's step."
    )
    versions = {**content["versions"], "numpy": content["numpy"]}
    made = (
        f"Made by `{content['command']}` on {machine['cores']} cores ({machine['processor']}), load average before it "
        f"{content['load_before']}; {', '.join(f'{k} {v}' for k, v in versions.items())}; commit {content['commit']}. "
        "Only ratios within a round carry over to other machines, and those roughly. "
        f"All numbers, with quartiles: [{path.name}]({Path(os.path.relpath(path, folder)).as_posix()})."
    )
    parts = ["# One reallocation", intro, *paragraphs(content), "## How it was made", made]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{NAME}.md").write_text("\n\n".join(parts) + "\n")


if __name__ == "__main__":
    main()
