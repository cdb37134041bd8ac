"""Peak memory of training, sparse against dense.

    python -m benchmarks.memory            (about 2 minutes on 2 cores; a busy machine only takes longer)
    python -m benchmarks.memory --page     (the page anew, from the JSON)

Each measurement is a process of its own: on the CPU the peak of its resident memory beyond what it was just before the
network was built, on a GPU `torch.cuda.max_memory_allocated`. The processes are forked from one that has imported
everything and done nothing else, and take turns.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from functools import partial
from importlib import import_module
from multiprocessing.connection import Connection
from typing import Any

import torch

from benchmarks.harness.page import filled
from benchmarks.harness.record import Result
from benchmarks.harness.rounds import in_rounds, ratio, returned, summary
from benchmarks.harness.runs import Moves, data_of, made_up_batch, settled
from benchmarks.harness.script import page_parser, run
from benchmarks.parts.kept_memory import Meter, kept_bytes
from benchmarks.parts.step_cases import DEEPR, DENSE, DSR, RESNET, STATIC, THREADS, Case, settings, tiny
from dynsparse.training.network import build_network

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
"""Settings with which glibc gives back at once what is freed: blocks of 64 kB and more are mappings of their own."""


def main() -> None:
    parser = page_parser(__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda")
    run("memory", parser, measure, page)


def measure(asked: Namespace) -> Result:
    torch.set_num_threads(1 if asked.tiny else THREADS)
    case = replace(tiny(CASE), rounds=1) if asked.tiny else CASE
    found = in_processes(case, asked.device)
    formats = {name: {way: of_way(runs, ways[DENSE]) for way, runs in ways.items()} for name, ways in found.items()}
    return {"device": asked.device, "steps": STEPS, **asdict(case), "formats": formats}


def in_processes(case: Case, device: str) -> dict[str, dict[str, list[Result]]]:
    """Return what each round found, by memory format and way."""
    ask = json.dumps({"case": asdict(case), "device": device, "threads": torch.get_num_threads()})
    command = [sys.executable, "-c", "from benchmarks import memory; memory.serve()", ask]
    done = subprocess.run(command, env={**os.environ, **MALLOC}, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, dict[str, list[Result]]] = json.loads(done.stdout)
    return found


def serve() -> None:
    """Fork a process for each measurement, from this one that has done nothing but imports; print what they found."""
    asked = json.loads(sys.argv[1])
    case = Case(**asked["case"])
    torch.set_num_threads(asked["threads"])
    import_module("torch._dynamo")  # The first optimizer would, and it would count as memory of training.
    ways = {(name, way): partial(forked, case, way, name, asked["device"]) for name in FORMATS for way in METHODS}
    found = in_rounds(ways, case.rounds, warm_up=0, measure=returned)
    print(json.dumps({name: {way: found[name, way] for way in METHODS} for name in FORMATS}))


def forked(*arguments: Any) -> Result:
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=train, args=(*arguments, theirs))
    process.start()
    theirs.close()
    found: Result = ours.recv()
    process.join()
    return found


def train(case: Case, way: str, memory_format: str, device_name: str, answer: Connection) -> None:
    """Build, settle and train; send the peak in bytes, and what is kept at the end."""
    device = torch.device(device_name)
    config = settings(case, METHODS[way], masks=way != DENSE, channels_last=FORMATS[memory_format])
    with closing(data_of(config)) as data:
        batch = made_up_batch(case.batch, case.image, case.classes, device)
        torch.mm(torch.ones(64, 64, device=device), torch.ones(64, 64, device=device))  # Its threads and workspaces.
        meter, moves = Meter(device), Moves()
        network = build_network(config, device)
        trainer = settled(config, network, data, observers=[moves])
        for _ in range(STEPS):
            trainer.train_step(batch)
        peak = meter.peak()
        trainer.outcomes.catch_up()
        assert trainer.progress.skipped_steps == 0
        answer.send(
            {
                "peak": peak,
                "moved": sum(moves.dropped),
                "reallocations": trainer.progress.reallocations,
                "kept": kept_bytes(trainer),
                "total_parameters": network.total_parameters,
                "sparse_layer_weights": network.sparse_layer_weights,
                "active_weights": network.active_weights,
            }
        )


def of_way(runs: Sequence[Result], dense: Sequence[Result]) -> Result:
    """Summarise a way's rounds, beside the dense ones. The bound is the target for a sparse way, in bytes."""
    peaks, base = [run["peak"] for run in runs], [run["peak"] for run in dense]
    bounds = [1.05 * peak + 8 * float(run["active_weights"]) for peak, run in zip(base, runs, strict=True)]
    return {
        **{key: value for key, value in runs[0].items() if key != "peak"},
        "peak": summary(peaks),
        "beyond_dense": summary([a - b for a, b in zip(peaks, base, strict=True)]),
        "ratio_to_dense": ratio(peaks, base),
        "bound": summary(bounds),
        "ratio_to_bound": ratio(peaks, bounds),
    }


def page(content: Result) -> str:
    return filled("memory", content, TITLES=TITLES, MALLOC=MALLOC)


if __name__ == "__main__":
    main()
