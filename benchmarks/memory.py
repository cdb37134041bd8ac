"""Peak memory of training, sparse against dense.

    python -m benchmarks.memory            (about 2 minutes on 2 cores; a busy machine only takes longer)
    python -m benchmarks.memory --page     (the page anew, from the JSON)

Each measurement is a process of its own: on the CPU the peak of its resident memory beyond what it was just before the
network was built, on a GPU `torch.cuda.max_memory_allocated`. The processes are forked from one that has imported
everything and done nothing else, and take turns.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn, optim

from benchmarks.harness import record
from benchmarks.harness.page import spread, table
from benchmarks.harness.rounds import summary
from benchmarks.steps import (
    DEEPR,
    DENSE,
    DSR,
    RESNET,
    STATIC,
    THREADS,
    Case,
    Result,
    add_arguments,
    keep,
    load,
    made_up_batch,
    no_data,
    settings,
    settled,
    tiny,
    write_page,
)
from dynsparse.reallocation import ReallocationReport
from dynsparse.training.callbacks import Callback
from dynsparse.training.network import build_network
from dynsparse.training.trainer import Trainer

NAME = "memory"
Found = dict[str, dict[str, list[Result]]]
CASE = replace(RESNET, image=64, batch=8, rounds=2)
STEPS = 3
PERIOD = 2
"""Steps between reallocations of dsr and rigl: so that momentum is there before, and a step comes after."""
FULL, RIGL = "full", "rigl"
METHODS: Mapping[str, Mapping[str, Any]] = {
    DENSE: {"name": "dense"},
    FULL: {"name": "dense"},
    STATIC: {"name": "static"},
    DSR: {"name": "dsr", "period": PERIOD},
    RIGL: {"name": "rigl", "period": PERIOD, "until": 1.0},
    DEEPR: {"name": "deepr"},
}
TITLES = {
    DENSE: "dense: no masks at all",
    FULL: "method `dense`: masks with every weight active",
    STATIC: "`static`",
    DSR: "`dsr`",
    RIGL: "`rigl`",
    DEEPR: "`deepr`",
}
FORMATS = {"contiguous": False, "channels_last": True}
MALLOC = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
"""So that glibc gives back at once what is freed: blocks of 64 kB and more are mappings of their own."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda")
    add_arguments(parser)
    arguments = parser.parse_args()
    path = (arguments.output or record.RESULTS) / f"{NAME}.json"
    if not arguments.page:
        torch.set_num_threads(1 if arguments.tiny else THREADS)
        case = replace(tiny(CASE), rounds=1) if arguments.tiny else CASE
        result = {"load_before": load(), "device": arguments.device, "steps": STEPS, **asdict(case)}
        result["formats"] = summarised(in_processes(case, arguments.device))
        print("\n\n".join(paragraphs(result)))
        keep(NAME, result, arguments)
    write_page(NAME, page, path, arguments)


# Each in a process of its own


def in_processes(case: Case, device: str) -> Found:
    """By memory format and way, what each round found."""
    ask = json.dumps({"case": asdict(case), "device": device, "threads": torch.get_num_threads()})
    command = [sys.executable, "-c", f"from benchmarks import {NAME}; {NAME}.serve()", ask]
    done = subprocess.run(command, env={**os.environ, **MALLOC}, stdout=subprocess.PIPE, text=True, check=True)
    found: Found = json.loads(done.stdout)
    return found


def serve() -> None:
    """Fork a process for each measurement, from this one that has done nothing but imports; print what they found."""
    asked = json.loads(sys.argv[1])
    case = Case(**asked["case"])
    torch.set_num_threads(asked["threads"])
    import_module("torch._dynamo")  # The first optimizer would, and it would count as memory of training.
    context = multiprocessing.get_context("fork")
    found: Found = {name: {way: [] for way in METHODS} for name in FORMATS}
    for number in range(case.rounds):
        turn = number % len(METHODS)
        for name in FORMATS:
            for way in [*METHODS][turn:] + [*METHODS][:turn]:
                ours, theirs = context.Pipe(duplex=False)
                process = context.Process(target=measure, args=(case, way, name, asked["device"], theirs))
                process.start()
                theirs.close()
                found[name][way].append(ours.recv())
                process.join()
    print(json.dumps(found))


def measure(case: Case, way: str, memory_format: str, device_name: str, answer: Connection) -> None:
    """Build, settle and train; send the peak in bytes, and what is kept at the end."""
    device = torch.device(device_name)
    config = settings(case, METHODS[way], masks=way != DENSE, channels_last=FORMATS[memory_format])
    with closing(no_data(config)) as data:
        batch = made_up_batch(case, device)
        torch.mm(torch.ones(64, 64, device=device), torch.ones(64, 64, device=device))  # Its threads and workspaces.
        meter = Meter(device)
        network = build_network(config, device)
        moves = Moves()
        trainer = settled(config, network, data, observers=[moves])
        for _ in range(STEPS):
            trainer.train_step(batch)
        peak = meter.peak()
        assert trainer.progress.skipped_steps == 0
        answer.send(
            {
                "peak": peak,
                "moved": moves.moved,
                "reallocations": trainer.progress.reallocations,
                "kept": kept_bytes(trainer),
                "total_parameters": network.total_parameters,
                "sparse_layer_weights": network.sparse_layer_weights,
                "active_weights": network.active_weights,
            }
        )


class Moves(Callback):
    """Counts the weights that reallocations dropped."""

    def __init__(self) -> None:
        self.moved = 0

    def on_reallocation(self, report: ReallocationReport) -> None:
        self.moved += sum(report.dropped.values())


class Meter:
    """The most memory held since it was made, beyond what was held then, in bytes."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self._before = torch.cuda.memory_allocated(device)
        else:
            Path("/proc/self/clear_refs").write_text("5")  # The peak begins anew.
            self._before = resident("VmRSS")

    def peak(self) -> int:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) - self._before
        return resident("VmHWM") - self._before


def resident(kind: str) -> int:
    """Bytes of this process's physical memory: VmRSS now, VmHWM at most so far."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{kind}:"))


def kept_bytes(trainer: Trainer) -> int:
    """In tensors and arrays that masks, method and reallocator hold between steps, beside the network's own."""
    own = [*trainer.model.parameters(), *trainer.model.buffers()]
    seen = {id(tensor) for tensor in own}
    memory = {tensor.untyped_storage().data_ptr() for tensor in own}
    waiting: list[object] = [trainer.masks, trainer.sparse.method, trainer.sparse.reallocator]
    total = 0
    while waiting:
        thing = waiting.pop()
        if id(thing) in seen or isinstance(thing, (nn.Module, optim.Optimizer)):
            continue
        seen.add(id(thing))
        if isinstance(thing, np.ndarray):
            thing = torch.from_numpy(thing)
        if isinstance(thing, Tensor):
            storage = thing.untyped_storage()
            total += storage.nbytes() if storage.data_ptr() not in memory else 0
            memory.add(storage.data_ptr())
        else:
            waiting += parts(thing)
    return total


def parts(thing: object) -> list[object]:
    """What an object of the package or a container holds."""
    if isinstance(thing, Mapping):
        return list(thing.values())
    if isinstance(thing, (list, tuple, set, frozenset)):
        return list(thing)
    if type(thing).__module__.startswith("dynsparse."):
        slots = [getattr(thing, name) for name in getattr(type(thing), "__slots__", ()) if hasattr(thing, name)]
        return [*slots, *vars(thing).values()] if hasattr(thing, "__dict__") else slots
    return []


def summarised(found: Mapping[str, Mapping[str, Sequence[Result]]]) -> Result:
    """Over the rounds, by format and way; ratios within a round."""
    return {name: {way: of_way(runs, ways[DENSE]) for way, runs in ways.items()} for name, ways in found.items()}


def of_way(runs: Sequence[Result], dense: Sequence[Result]) -> Result:
    pairs = [(run["peak"], base["peak"], bound(base["peak"], run)) for run, base in zip(runs, dense, strict=True)]
    return {
        **{key: value for key, value in runs[0].items() if key != "peak"},
        "peak": summary([peak for peak, _, _ in pairs]),
        "beyond_dense": summary([peak - base for peak, base, _ in pairs]),
        "ratio_to_dense": summary([peak / base for peak, base, _ in pairs]),
        "bound": summary([most for _, _, most in pairs]),
        "ratio_to_bound": summary([peak / most for peak, _, most in pairs]),
    }


def bound(dense: float, run: Result) -> float:
    """The target for a sparse way, in bytes."""
    return 1.05 * dense + 8 * float(run["active_weights"])


# The page


def page(content: Result) -> list[str]:
    return [
        "# Peak memory of training",
        *introduction(content),
        *paragraphs(content),
        "## What is kept",
        *kept(content),
    ]


def introduction(content: Result) -> list[str]:
    ways = content["formats"]["contiguous"]
    dense, static = ways[DENSE]["peak"]["median"], ways[STATIC]
    fixed = 12 * ways[DENSE]["total_parameters"]
    reallocations = ", ".join(f"`{way}` {ways[way]['reallocations']}" for way in (DSR, RIGL, DEEPR))
    return [
        (
            f"{content['title']}, {content['image']} px, batch {content['batch']}, SGD with momentum, on the "
            f"{'GPU' if content['device'] == 'cuda' else 'CPU'}; {100 * content['sparsity']:g} % of "
            f"{static['sparse_layer_weights']:,} weights in the sparse layers are 0. Building the network and its "
            f"masks, the throw-away pass before the first step, and {content['steps']} steps, with reallocations "
            f"among them ({reallocations}). No checkpoints and no data pipeline, on either side."
        ),
        (
            f"Weights, gradients and momentum take {fixed / 1e6:.0f} MB, {100 * fixed / dense:.0f} % of the dense "
            f"peak; the rest is activations and workspaces of kernels. That they are few is the hard case: they grow "
            "with batch and image, and are the same sparse and dense, while masks depend on the weights alone."
        ),
        how(content["device"]),
    ]


def how(device: str) -> str:
    if device == "cuda":
        return "Peaks are those of torch's allocator (`max_memory_allocated`): exact, without what the driver takes."
    environment = ", ".join(f"`{name}={value}`" for name, value in MALLOC.items())
    return (
        "Each figure comes from a process of its own: its largest resident memory (VmHWM, begun anew just before the "
        "network is built) less its resident memory at that moment. glibc keeps freed memory for later, by rules that "
        f"depend on what was freed before; in these processes ({environment}) every block of 64 kB and more is a "
        "mapping that the system has back at once, dense and sparse alike, so that the peak is that of tensors in use. "
        "Without these settings all peaks are higher, by amounts that vary from run to run."
    )


def paragraphs(content: Result) -> list[str]:
    return [part for name, ways in content["formats"].items() for part in format_text(name, ways, content["rounds"])]


def format_text(name: str, ways: Mapping[str, Result], rounds: int) -> list[str]:
    rows = [
        [
            TITLES[way],
            spread(millions(found["peak"]), 1),
            spread(millions(found["beyond_dense"]), 1),
            spread(found["ratio_to_dense"], 3),
            *([""] * 3 if way in (DENSE, FULL) else against_bound(found)),
        ]
        for way, found in ways.items()
    ]
    head = ["training", "peak, MB", "beyond dense, MB", "of dense", "bound, MB", "of the bound", ""]
    return [
        f"## {name}",
        (
            f"Median of {rounds} processes each, and the least and the most. Bound: 1.05 x the dense peak of the round "
            "+ 8 bytes an active weight."
        ),
        table(head, rows),
    ]


def against_bound(found: Result) -> list[str]:
    within = "within" if found["ratio_to_bound"]["median"] <= 1 else "NOT within"
    return [f"{found['bound']['median'] / 1e6:.1f}", spread(found["ratio_to_bound"], 3), within]


def millions(found: Mapping[str, float]) -> dict[str, float]:
    return {key: value / 1e6 for key, value in found.items()}


def kept(content: Result) -> list[str]:
    """The bytes that masks and method keep between steps."""
    rows = [
        [
            TITLES[way],
            name,
            f"{found['kept'] / 1e6:.2f}",
            f"{found['kept'] / found['sparse_layer_weights']:.3f}",
            f"{found['kept'] / found['active_weights']:.2f}",
            f"{found['moved']:,}",
        ]
        for way in METHODS
        if way != DENSE
        for name, found in ((name, ways[way]) for name, ways in content["formats"].items())
    ]
    return [
        (
            "Exact: the bytes of all tensors that masks, method and reallocator hold after the last step, beside the "
            "network's own (weights, buffers) and the optimizer's. Weights are those of the sparse layers."
        ),
        table(["training", "format", "MB", "bytes a weight", "bytes an active weight", "weights moved before"], rows),
    ]


if __name__ == "__main__":
    main()
