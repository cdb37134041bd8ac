"""Gradients between two hosts in a training step: how much travels, and how long it takes. All, active, compressed.

    python -m benchmarks.allreduce             (about 6 minutes on 2 cores; root, for it makes networks)
    python -m benchmarks.allreduce --page      (the page anew, from the JSON)

Two hosts (network namespaces of this machine) with a link of `--rate` each way, one worker of one thread on each. All
ways are measured in one run, in rounds in which they take turns; bytes are those that the link counted.
"""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from benchmarks.harness import script
from benchmarks.harness.page import filled
from benchmarks.harness.record import Result
from benchmarks.harness.rounds import ratio, summary
from benchmarks.parts.allreduce_worker import ACTIVE, DENSE, NOTHING, Amount
from tests.hosts import PORT, Hosts, why_not

TINY = Amount(model={"name": "small_cnn", "channels": [64, 256]}, image_size=8, classes=10, batch=2, rounds=2)
TITLES = {
    DENSE: "DDP, all gradients",
    ACTIVE: "active gradients (`distributed.gradients: active`)",
    "fp16": "fp16_compress_hook (lossy)",
    "powersgd-1": "PowerSGD, rank 1 (lossy)",
    "powersgd-2": "PowerSGD, rank 2 (lossy)",
    NOTHING: "none: each worker for itself",
}
LAYERS = {"paper": "the paper's sparse layers", "all": "all convolutions and linear layers sparse"}


def main() -> None:
    parser = script.page_parser(__doc__, rounds=Amount.rounds)
    parser.add_argument("--rate", default="1gbit", help="of the link, each way, in tc's units")
    script.run("allreduce", parser, measure, page)


def measure(asked: Namespace) -> Result:
    if (reason := why_not()) is not None:
        sys.exit(f"error: two hosts cannot be had: {reason}")
    torch.set_num_threads(1)
    amount = TINY if asked.tiny else Amount(rounds=asked.rounds)
    layers = {name: summarised(found) for name, found in run(amount, asked.rate).items()}
    return {"rate": asked.rate, "amount": asdict(amount), "layers": layers}


def run(amount: Amount, rate: str) -> dict[str, Any]:
    """Return what the first host's worker found."""
    with TemporaryDirectory() as temporary, Hosts(2, rate) as hosts:
        found = Path(temporary) / "found.json"
        logs = [Path(temporary) / f"host{number}.log" for number in range(2)]
        workers = [
            hosts[number].start(
                *(sys.executable, "-m", "benchmarks.parts.allreduce_worker", json.dumps(asdict(amount)), found),
                log=logs[number],
                RANK=str(number),
                WORLD_SIZE="2",
                MASTER_ADDR=hosts[0].address,
                MASTER_PORT=str(PORT),
            )
            for number in range(2)
        ]
        codes = [worker.wait() for worker in workers]
        if any(codes):
            sys.exit("error: a worker failed:\n" + "\n".join(log.read_text() for log in logs))
        content: dict[str, Any] = json.loads(found.read_text())
        return content


def summarised(found: Mapping[str, Any]) -> Result:
    """Medians and ranges over the rounds, and ratios to the dense way within each round."""
    total, sparse = found["parameters"], found["sparse_layer_weights"]
    kept = {key: value for key, value in found.items() if key != "ways"}
    ways = {name: of_way(way, found["ways"][DENSE]) for name, way in found["ways"].items()}
    return {**kept, "share_sent": (total - sparse + found["active_weights"]) / total, "ways": ways}


def of_way(way: Mapping[str, Any], dense: Mapping[str, Any]) -> Result:
    figures = [(act, what) for what in ("bytes", "seconds") for act in ("reduce", "step")]

    def column(one: Mapping[str, Any], act: str, what: str) -> list[float]:
        return [turn[what] for turn in one[act]]

    return {
        "largest_difference": way["largest_difference"],
        **{f"{act}_{what}": summary(column(way, act, what)) for act, what in figures},
        "ratios": {f"{act}_{what}": ratio(column(way, act, what), column(dense, act, what)) for act, what in figures},
    }


def page(content: Result) -> str:
    return filled("allreduce", content, TITLES=TITLES, LAYERS=LAYERS)


if __name__ == "__main__":
    main()
