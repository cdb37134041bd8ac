"""What being sparse costs on more ranks: measured on a few processes, computed for many GPUs.

    python -m benchmarks.scaling               (about 2 1/2 minutes on 2 cores; a quiet machine)
    python -m benchmarks.scaling --page        (the tables of docs/scaling.md anew, from the JSON)

Processes of one thread each, which talk over gloo and the loopback device. Training steps through the Trainer, with the
sparse parts timed; reallocations of made-up networks, with what is handed to torch.distributed counted; all numbers of
processes in turn. What 8 to 1,024 GPUs would add is computed from the bytes and calls counted and from assumptions that
stand with the tables.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import shlex
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from benchmarks.harness import record
from benchmarks.harness.page import spread, table
from benchmarks.harness.rounds import in_rounds, summary
from benchmarks.parts.scaling.worker import FLAG_WAYS, Amount, Case, Subject, reallocate, settings, train
from dynsparse.masks.allocation import ALLOCATIONS
from dynsparse.training import packing
from dynsparse.training.network import layer_specs
from tests.ranks import run_distributed

NAME = "scaling"
TINY = Amount(
    subjects={
        "small": Subject({"name": "cifar10_WideResNet", "depth": 10, "widen_factor": 0.5}, 8, 10, 0.02, target_moves=50)
    },
    batch=2,
    period=2,
    steps=2,
    training_ranks=(1, 2),
    cases=(Case(3, 4), Case(7, 4), Case(3, 8)),
    traffic_ranks=(1, 2, 3, 4),
    repeats=2,
    calls=3,
    rounds=1,
)
PERIOD = 1000
"""Steps between reallocations in the paper's runs, over which one is spread."""
RESNET50 = Subject({"name": "imagenet_resnet50"}, image=32, classes=1000, threshold=0.01, target_moves=400_000)
CLOCKS = ("wall", "cpu")
Result = Mapping[str, Any]


def main() -> None:
    arguments = parse()
    path = (arguments.output or record.RESULTS) / f"{NAME}.json"
    if not arguments.page:
        result = measured(TINY if arguments.tiny else Amount(), tiny=arguments.tiny)
        print("\n\n".join(text(result) for text in PARTS.values()))
        if arguments.tiny and not arguments.output:
            return
        record.keep(NAME, shlex.join(["python", "-m", "benchmarks.scaling", *sys.argv[1:]]), result, arguments.output)
    write_page(path, arguments.output)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="seconds instead of minutes, and figures without meaning")
    parser.add_argument("--output", metavar="DIR", type=Path, help="write there, instead of to the kept figures")
    parser.add_argument("--page", action="store_true", help="measure nothing; write the page anew")
    return parser.parse_args()


def measured(amount: Amount, *, tiny: bool) -> dict[str, Any]:
    load = round(os.getloadavg()[0], 2)
    return {
        "tiny": tiny,
        "load_before": load,
        "amount": asdict(amount),
        "training": training(amount),
        **traffic(amount),
        "resnet50": resnet50(),
    }


# Training


def training(amount: Amount) -> dict[str, Any]:
    """Of each network what its steps took on each number of ranks."""
    runs: dict[str, dict[int, list[Any]]] = {
        name: {ranks: [] for ranks in amount.training_ranks} for name in amount.subjects
    }
    for _ in range(amount.rounds):
        for name, subject in amount.subjects.items():
            for ranks in amount.training_ranks:
                runs[name][ranks].append(run_distributed(train, ranks, subject, amount))
    return {name: of_network(found) for name, found in runs.items()}


def of_network(runs: Mapping[int, Sequence[Any]]) -> dict[str, Any]:
    """`runs`: of each number of ranks, in each round, what every rank found."""
    first = runs[min(runs)][0][0]
    rounds = {ranks: [of_run(run) for run in found] for ranks, found in runs.items()}
    return {
        **{key: first[key] for key in ("layers", "parameters", "active_weights", "model_sparsity")},
        "dropped": summary([dropped for found in runs.values() for run in found for dropped in run[0]["dropped"]]),
        "ranks": {
            str(ranks): {
                **{clock: over_rounds([one[clock] for one in found]) for clock in CLOCKS},
                "ratio_to_one_rank": {clock: ratios(found, rounds[min(rounds)], clock) for clock in CLOCKS},
                "connections": sorted({rank["connections"] for run in runs[ranks] for rank in run}),
                "gathered_bytes": max(sum(rank["gathered"].get("gather", [])) for run in runs[ranks] for rank in run),
            }
            for ranks, found in rounds.items()
        },
    }


def of_run(ranks: Sequence[Any]) -> dict[str, dict[str, float]]:
    """Of one run, by clock: ms of a step, of its sparse parts, of a reallocation; and shares of a step.

    A step takes as long as on the rank where it takes longest, and so does each part.
    """
    return {clock: of_steps([slowest(step, kind) for step in steps_of(ranks)]) for kind, clock in enumerate(CLOCKS)}


def steps_of(ranks: Sequence[Any]) -> Iterable[Sequence[Any]]:
    """Of each step what all ranks say."""
    return zip(*(rank["steps"] for rank in ranks), strict=True)


def slowest(step: Sequence[Any], kind: int) -> dict[str, float]:
    """Milliseconds of one step's parts by one clock, and whether it reallocated."""
    parts = {part: max(1000 * rank[part][kind] for rank in step) for part in step[0] if part != "due"}
    return {**parts, "due": step[0]["due"]}


def of_steps(steps: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Medians in ms, and shares of a step without a reallocation."""
    plain, due = [step for step in steps if not step["due"]], [step for step in steps if step["due"]]
    step, sparse = (statistics.median(one[part] for one in plain) for part in ("step", "every"))
    reallocation = statistics.median(one["after_step"] for one in due)
    return {
        "step_ms": step,
        "masking_ms": sparse,
        "reallocation_ms": reallocation,
        "verify_ms": statistics.median(one["verify"] for one in due),
        "sparse_ms": sparse + reallocation / PERIOD,
        "share_masking": sparse / step,
        "share_reallocation": reallocation / PERIOD / step,
        "share": (sparse + reallocation / PERIOD) / step,
    }


def over_rounds(rounds: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    return {name: summary([one[name] for one in rounds]) for name in rounds[0]}


def ratios(found: Sequence[Any], base: Sequence[Any], clock: str) -> dict[str, Any]:
    """Round by round."""
    names = ("step_ms", "sparse_ms", "reallocation_ms", "share")
    pairs = list(zip(found, base, strict=True))
    return {name: summary([one[clock][name] / other[clock][name] for one, other in pairs]) for name in names}


# Traffic


def traffic(amount: Amount) -> dict[str, Any]:
    """Of each case, and of the stop flags, what they took and handed over on each number of ranks."""
    runs: dict[int, list[Any]] = {ranks: [] for ranks in amount.traffic_ranks}
    for _ in range(amount.rounds):
        for ranks, found in runs.items():
            found.append(run_distributed(reallocate, ranks, amount.cases, amount.calls, amount.repeats))
    cases = [
        {
            **case._asdict(),
            "weights": case.weights,
            "ranks": {
                str(ranks): of_calls([[rank["cases"][number] for rank in run] for run in found])
                for ranks, found in runs.items()
            },
        }
        for number, case in enumerate(amount.cases)
    ]
    flags = {str(ranks): of_flags(found) for ranks, found in runs.items()}
    connections = {
        str(ranks): sorted({rank["connections"] for run in found for rank in run}) for ranks, found in runs.items()
    }
    return {"cases": cases, "flags": flags, "connections": connections}


Calls = Sequence[Sequence[Sequence[Any]]]
"""What each took and handed over, by round, rank and repeat."""


def of_flags(runs: Sequence[Sequence[Any]]) -> dict[str, Any]:
    """`runs[round][rank]`. Of each way to ask what it took and handed over, and the ring's time to doubling's."""
    by_way: dict[str, Calls] = {way: [[rank["flags"][way] for rank in run] for run in runs] for way in FLAG_WAYS}
    turns = {way: slowest_ms(calls, CLOCKS.index("wall")) for way, calls in by_way.items()}
    ratio = summary([ring / doubling for ring, doubling in zip(turns["ring"], turns["doubling"], strict=True)])
    return {**{way: of_calls(calls) for way, calls in by_way.items()}, "ring_to_doubling": ratio}


def of_calls(runs: Calls) -> dict[str, Any]:
    """Milliseconds on the slowest rank, and what each rank hands over, the same each time."""
    times = {f"{clock}_ms": summary(slowest_ms(runs, kind)) for kind, clock in enumerate(CLOCKS)}
    by_rank = zip(*runs, strict=True)
    return {**times, "sent": [always_sent([one["sent"] for run in rank for one in run]) for rank in by_rank]}


def slowest_ms(runs: Calls, kind: int) -> list[float]:
    """Of each repeat of each round, on the rank where it takes longest by this clock."""
    return [1000 * max(one["taken"][kind] for one in ranks) for run in runs for ranks in zip(*run, strict=True)]


def always_sent(sent: Sequence[Mapping[str, Any]]) -> dict[str, list[int]]:
    """Bytes of each call of a rank, by function. RuntimeError if it does not hand over as much each time."""
    first = dict(sent[0])
    if any(dict(other) != first for other in sent):
        raise RuntimeError(f"repeats differ in what a rank hands over: {sent}")
    return first


def resnet50() -> dict[str, Any]:
    """Sizes of the paper's ResNet-50 at full width: counted, from the code, without drawing its weights."""
    config = settings(RESNET50, global_batch=2, period=PERIOD)
    everywhere = config.model_copy(update={"sparsity": config.sparsity.model_copy(update={"include": ["*"]})})
    with torch.device("meta"):
        model = config.model.build(config.data.image_shape, config.data.classes)
    specs = layer_specs(config, model)
    units = ALLOCATIONS[config.sparsity.allocation](specs, {"conv": config.sparsity.conv, "fc": config.sparsity.fc})
    inactive = sum((spec.units - units[spec.name]) * spec.unit_size for spec in specs)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    sizes = {
        "layers": len(specs),
        "layers_if_all": len(layer_specs(everywhere, model)),
        "parameters": parameters,
        "parameter_tensors": len(list(model.parameters())),
        "active_share": 1 - inactive / parameters,
        "buffer_bytes": sum(buffer.numel() * buffer.element_size() for buffer in packing.buffers(model).values()),
    }
    state = rank_state(model)
    return {**sizes, "rank_state_bytes": len(state), "rank_state_unpickling_seconds": unpickling_seconds(state)}


def rank_state(model: nn.Module) -> bytes:
    """What each rank hands to rank 0 at a save (`RunState.of_this_rank`), pickled.

    Values do not matter; the addresses that torch pickles with storages may make a difference of a few bytes.
    """
    state = {
        "buffers": packing.pack_buffers(model.to_empty(device="cpu")),
        "random": packing.random_state(torch.device("cpu")),
        "sums": torch.zeros(3, dtype=torch.float64),
        "bad_samples": {},
    }
    return pickle.dumps(state)


def unpickling_seconds(pickled: bytes, repeats: int = 9) -> dict[str, float]:
    """Of one rank's state, by one thread."""
    return summary(in_rounds({"unpickle": lambda: pickle.loads(pickled)}, repeats)["unpickle"])


# Computed for many GPUs


class Link(NamedTuple):
    """How the ranks are assumed to be joined."""

    name: str
    latency: float
    """alpha: seconds for a message to get from one rank to another, whatever its size."""
    bandwidth: float
    """beta: bytes a second that a rank sends, and receives at once."""


class Plan(NamedTuple):
    """What a reallocation hands to torch.distributed, as counted."""

    head: int
    """Bytes of the broadcast that do not depend on the layers."""
    layer: int
    """Bytes of it for each layer."""
    digests: tuple[int, ...]
    """Bytes of each message of each comparison."""

    def bytes(self, layers: int) -> int:
        """Of the broadcast."""
        return self.head + self.layer * layers


LINKS = (Link("25 Gbit/s Ethernet", 50e-6, 25e9 / 8), Link("200 Gbit/s InfiniBand", 5e-6, 200e9 / 8))
GPUS = (8, 64, 512, 1024)
STEP = 0.1
"""Seconds of a training step, assumed: 256 images on each GPU."""
FLAGS = 24
"""Bytes of the question before each step whether any rank is to stop, has failed, or is to save."""


def tree(ranks: int, size: int, link: Link) -> float:
    """Seconds to send `size` bytes from one rank to all, each that has them passing them on: log2(ranks) hops."""
    return (ranks - 1).bit_length() * (link.latency + size / link.bandwidth)


def exchanges(ranks: int) -> int:
    """One after the other in a recursive doubling (`sync.largest_`)."""
    whole = ranks.bit_length() - 1
    return whole if ranks == 1 << whole else whole + 2


def messages(rank: int, ranks: int) -> int:
    """That a rank sends in a recursive doubling: those beyond a power of 2 one, to a partner, who answers each."""
    whole = ranks.bit_length() - 1
    spare = ranks - (1 << whole)
    return 1 if rank >= 1 << whole else whole + (rank < spare)


def doubling(ranks: int, size: float, link: Link) -> float:
    """Seconds of a recursive doubling, `size` bytes each way at once in each exchange."""
    return exchanges(ranks) * (link.latency + size / link.bandwidth)


def ring(ranks: int, size: float, link: Link) -> float:
    """Seconds of an all-reduce around a ring, `size` bytes a hop: 2 (ranks - 1) hops, one after the other."""
    return 2 * (ranks - 1) * (link.latency + size / link.bandwidth)


def plan_of(cases: Sequence[Mapping[str, Any]]) -> Plan:
    """From what was counted.

    RuntimeError if the broadcast does not grow by the same bytes with each layer, or if some rank of some case hands
    over anything but it and its messages of as many comparisons.
    """
    counted = {case["layers"]: sent for case in cases for sent in connected(case)}
    few, many = min(counted), max(counted)
    sizes = {layers: sum(sent[0]["broadcast"]) for layers, sent in counted.items()}
    layer = (sizes[many] - sizes[few]) // (many - few)
    one_each = counted[few][0]["send"][:: messages(0, len(counted[few]))]
    plan = Plan(sizes[few] - layer * few, layer, tuple(one_each))
    for case in cases:
        for sent in connected(case):
            if sent != [expected(plan, case["layers"], rank, len(sent)) for rank in range(len(sent))]:
                raise RuntimeError(f"{case['layers']} layers of {case['width']}: {sent} is not {plan}")
    return plan


def expected(plan: Plan, layers: int, rank: int, ranks: int) -> dict[str, list[int]]:
    """What a rank hands over in a reallocation."""
    sends = [size for size in plan.digests for _ in range(messages(rank, ranks))]
    return {"broadcast": [plan.bytes(layers)], "send": sends}


def connected(case: Mapping[str, Any]) -> list[list[dict[str, list[int]]]]:
    """What each rank handed over where there was more than one."""
    return [found["sent"] for ranks, found in case["ranks"].items() if int(ranks) > 1]


def extrapolated(cases: Sequence[Mapping[str, Any]], layers: int, ranks: int, link: Link) -> dict[str, float]:
    """Seconds of one reallocation's traffic, and shares of steps of `STEP` with one each `PERIOD` steps or each step.

    With digests compared by recursive doubling, as they are, and by gloo's all-reduce, a ring, as they were.
    """
    plan = plan_of(cases)
    broadcast = tree(ranks, plan.bytes(layers), link)
    by_doubling = sum(doubling(ranks, size, link) for size in plan.digests)
    by_ring = sum(ring(ranks, size, link) for size in plan.digests)
    return {
        "broadcast": broadcast,
        "digests_doubling": by_doubling,
        "digests_ring": by_ring,
        "share_doubling": (broadcast + by_doubling) / (PERIOD * STEP),
        "share_ring": (broadcast + by_ring) / (PERIOD * STEP),
        "share_every_step_doubling": (broadcast + by_doubling) / STEP,
        "share_every_step_ring": (broadcast + by_ring) / STEP,
    }


def growing(sizes: Mapping[str, Any]) -> dict[str, Callable[[int, Link], float]]:
    """Seconds of all else that ranks say to each other, by their number, for a network of these sizes."""
    gradients, state = 4 * sizes["parameters"], sizes["rank_state_bytes"]
    rows = 8 * (sizes["layers_if_all"] + sizes["parameter_tensors"])
    share = sizes["active_share"]
    return {
        f"flags before each step, {FLAGS} bytes, recursive doubling": lambda n, link: doubling(n, FLAGS, link),
        "not done: the same by gloo's ring": lambda n, link: ring(n, FLAGS, link),
        f"all gradients, {gradients / 1e6:.0f} MB, ring: bytes": lambda n, link: (
            2 * (n - 1) / n * gradients / link.bandwidth
        ),
        f"active gradients, {100 * share:.0f} % of them: bytes": lambda n, link: (
            2 * (n - 1) / n * share * gradients / link.bandwidth
        ),
        "either, ring: hops of each bucket": lambda n, link: ring(n, 0, link),
        f"at a save: {state / 1e3:.0f} kB of each rank to rank 0": lambda n, link: (
            n * link.latency + (n - 1) * state / link.bandwidth
        ),
        "at a resume: the state of all ranks to each": lambda n, link: tree(n, n * state, link),
        f"where ranks differ: {rows:,} bytes of each to all": lambda n, link: (
            (n - 1) * (link.latency + rows / link.bandwidth)
        ),
    }


# The page


def training_text(result: Result) -> str:
    """What a step spends on being sparse."""
    amount = result["amount"]
    rows = [
        [name, ranks, *training_cells(found)]
        for name, network in result["training"].items()
        for ranks, found in network["ranks"].items()
    ]
    head = ["network", "processes", "step, ms", "masking, ms", "a reallocation, ms"]
    head += ["share of wall time", "share of CPU time", "CPU time of the sparse parts, to 1 process"]
    head += ["their share, to 1 process"]
    described = "; ".join(
        f"{name}: {network['parameters']:,} parameters, {100 * network['model_sparsity']:.1f} % of them held at 0, "
        f"{network['layers']} sparse layers with {network['active_weights']:,} active weights, of which a reallocation "
        f"moved {spread(network['dropped'], 0)}"
        for name, network in result["training"].items()
    )
    about = (
        f"{described}. Batch {amount['batch']} of each process, method dsr. A figure is the median of "
        f"{amount['rounds']} rounds in which the numbers of processes take turns, and the least and the most; of a "
        f"round it is the median of {amount['steps']} steps, each as long as on the process where it took longest."
    )
    return f"{warning(result)}{about}\n\n{table(head, rows)}"


def training_cells(found: Mapping[str, Any]) -> list[str]:
    wall, cpu, ratio = found["wall"], found["cpu"], found["ratio_to_one_rank"]["cpu"]
    return [
        spread(wall["step_ms"], 0),
        spread(wall["masking_ms"], 2),
        spread(wall["reallocation_ms"], 1),
        percent(wall["share"]),
        percent(cpu["share"]),
        spread(ratio["sparse_ms"], 2),
        spread(ratio["share"], 2),
    ]


def percent(share: Mapping[str, float]) -> str:
    return f"{spread({name: 100 * value for name, value in share.items()}, 2)} %"


def traffic_text(result: Result) -> str:
    """What a reallocation says to the others."""
    plan = plan_of(result["cases"])
    rows = [
        [
            str(case["layers"]),
            f"{case['weights']:,}",
            ranks,
            over_ranks(sum(map(len, sent.values())) for sent in found["sent"]),
            over_ranks(sum(map(sum, sent.values())) for sent in found["sent"]),
            spread(found["wall_ms"], 1),
            spread(found["cpu_ms"], 1),
        ]
        for case in result["cases"]
        for ranks, found in case["ranks"].items()
    ]
    digests = " and ".join(str(size) for size in plan.digests)
    about = (
        f"Counted, in every row with more than one process, and each time: one broadcast of {plan.head} + {plan.layer} "
        f"x layers bytes, the same on each process, and the messages of {len(plan.digests)} comparisons, of {digests} "
        "bytes each: log2(n) of them from each process to others, where n is a power of 2. No all-reduce."
    )
    head = ["layers", "weights", "processes", "calls of each", "bytes each hands over", "ms", "CPU ms of a process"]
    return f"{warning(result)}{about}\n\n{table(head, rows)}"


def over_ranks(counts: Iterable[int]) -> str:
    """One number where all ranks have the same."""
    found = set(counts)
    return " to ".join(f"{count:,}" for count in sorted({min(found), max(found)}))


def flags_text(result: Result) -> str:
    """Small collectives by the number of processes."""
    rows = [
        [
            ranks,
            *(over_ranks(sum(map(sum, sent.values())) for sent in found[way]["sent"]) for way in ("doubling", "ring")),
            str(exchanges(int(ranks))),
            str(2 * (int(ranks) - 1)),
            *(spread(found[way]["wall_ms"], 3) for way in ("doubling", "ring")),
            "" if ranks == "1" else spread(found["ring_to_doubling"], 2),
            " or ".join(map(str, result["connections"][ranks])),
        ]
        for ranks, found in result["flags"].items()
    ]
    head = ["processes", "bytes each hands over, doubling", "ring", "hops, doubling", "ring"]
    head += ["a call, ms, doubling", "ring", "ring to doubling", "connections of each process"]
    amount = result["amount"]
    about = (
        f"Times are of {amount['calls']} calls in a row on the slowest process, per call; the two ways take turns, "
        f"{amount['repeats']} times in each of {amount['rounds']} rounds of all numbers of processes. The ratio is of "
        "turns next to each other."
    )
    return f"{warning(result)}{about}\n\n{table(head, rows)}"


def reallocation_text(result: Result) -> str:
    """One reallocation's traffic on many GPUs."""
    sizes = result["resnet50"]
    rows = []
    for link in LINKS:
        for ranks in GPUS:
            found = extrapolated(result["cases"], sizes["layers_if_all"], ranks, link)
            times = [f"{1000 * found[name]:.2f}" for name in ("broadcast", "digests_doubling", "digests_ring")]
            shares = [f"{100 * found[f'share_{way}']:.4f} %" for way in ("doubling", "ring")]
            shares += [f"{100 * found[f'share_every_step_{way}']:.1f} %" for way in ("doubling", "ring")]
            rows.append([link.name, f"{ranks:,}", *times, *shares])
    head = ["link", "GPUs", "plan, ms", "digests, doubling, ms", "not done: gloo's ring, ms"]
    head += [f"share at period {PERIOD:,}, doubling", "ring", "share every step (DeepR), doubling", "ring"]
    size = plan_of(result["cases"]).bytes(sizes["layers_if_all"])
    about = (
        f"Computed for a ResNet-50 with all of its {sizes['layers_if_all']} convolutions and linear layers sparse: a "
        f"plan of {size:,} bytes. (The paper's choice of layers has {sizes['layers']}.)"
    )
    return f"{about}\n\n{table(head, rows)}"


def growth_text(result: Result) -> str:
    """What else grows."""
    sizes = result["resnet50"]
    rows = [
        [what, link.name, *(f"{1000 * seconds(ranks, link):.3g}" for ranks in GPUS)]
        for what, seconds in growing(sizes).items()
        for link in LINKS
    ]
    head = ["computed, ms", "link", *(f"{ranks:,} GPUs" for ranks in GPUS)]
    held = ", ".join(f"{sizes['rank_state_bytes'] * ranks / 1e6:.1f} MB at {ranks:,}" for ranks in GPUS)
    unpickling = sizes["rank_state_unpickling_seconds"]
    about = (
        f"Each rank's own state: {sizes['buffer_bytes']:,} bytes of BatchNorm statistics, "
        f"{sizes['rank_state_bytes']:,} with random state, sums and pickle's overhead. What rank 0 holds of it after "
        f"the gather of a save, and deflates and writes: {held}. Unpickling one took {spread(in_ms(unpickling), 1)} ms "
        f"here; rank 0 unpickles them one after the other: {GPUS[-1] * unpickling['median']:.1f} s for {GPUS[-1]:,}, "
        "before the step after a save begins."
    )
    return f"{warning(result)}{table(head, rows)}\n\n{about}"


def in_ms(seconds: Mapping[str, float]) -> dict[str, float]:
    return {name: 1000 * value for name, value in seconds.items()}


def made_text(result: Result) -> str:
    """How it was made."""
    machine = result.get("machine") or record.machine()
    versions = ", ".join(f"{name} {version}" for name, version in result.get("versions", {}).items())
    return (
        f"{warning(result)}Made by `{result.get('command')}` on {machine['cores']} cores ({machine['processor']}), "
        f"load average before it {result['load_before']}; {versions}; commit {result.get('commit')}."
    )


def warning(result: Result) -> str:
    return "**Made with `--tiny`: what was timed here means nothing.**\n\n" if result["tiny"] else ""


PARTS: Mapping[str, Callable[[Result], str]] = {
    "scaling-training": training_text,
    "scaling-traffic": traffic_text,
    "scaling-flags": flags_text,
    "scaling-reallocation": reallocation_text,
    "scaling-growth": growth_text,
    "scaling-made": made_text,
}


def kept_parts() -> dict[str, Callable[[], str]]:
    """The parts of docs/scaling.md, from the kept figures."""
    return {name: partial(_kept, text) for name, text in PARTS.items()}


def _kept(text: Callable[[Result], str]) -> str:
    return text(json.loads((record.RESULTS / f"{NAME}.json").read_text()))


def write_page(path: Path, output: Path | None) -> None:
    """From the JSON alone: the tables between their marks in docs/scaling.md, or all in a page in another folder."""
    if output is None:
        from benchmarks import readme  # It imports this module for what stands on its pages.

        page = readme.ROOT / "docs/scaling.md"
        page.write_text(readme.filled(page))
        return
    content = json.loads(path.read_text())
    parts = [f"## {(text.__doc__ or '').rstrip('.')}\n\n{text(content)}" for text in PARTS.values()]
    (output / f"{NAME}.md").write_text("\n\n".join(["# Scaling", *parts]) + "\n")


if __name__ == "__main__":
    main()
