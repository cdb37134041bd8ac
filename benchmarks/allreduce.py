"""What travels between two hosts in a training step, and how long it takes: all gradients, the active ones, others.

    python -m benchmarks.allreduce             (about 6 minutes on 2 cores; root, for it makes networks)
    python -m benchmarks.allreduce --page      (the page anew, from the JSON)

Two hosts (network namespaces of this machine) with a link of `--rate` each way, one worker of one thread on each. All
ways are measured in one run, in rounds in which they take turns; bytes are those that the link counted.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from benchmarks.harness import record
from benchmarks.harness.page import spread, table
from benchmarks.harness.record import PAGES
from benchmarks.harness.rounds import summary
from benchmarks.parts.allreduce_worker import ACTIVE, DENSE, NOTHING, Amount
from tests.hosts import PORT, Hosts, why_not

NAME = "allreduce"
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
    arguments = parse()
    pages = arguments.output or PAGES
    if arguments.page:
        write_page((arguments.output or record.RESULTS) / f"{NAME}.json", pages)
        return
    if (reason := why_not()) is not None:
        sys.exit(f"error: two hosts cannot be had: {reason}")
    torch.set_num_threads(1)
    amount = TINY if arguments.tiny else Amount(rounds=arguments.rounds)
    load = os.getloadavg()[0]
    result = {"rate": arguments.rate, "load_before": round(load, 2), "amount": asdict(amount)}
    result["layers"] = {name: summarised(found) for name, found in run(amount, arguments.rate).items()}
    print("\n\n".join(paragraphs(result)))
    if arguments.output or not arguments.tiny:
        command = shlex.join(["python", "-m", "benchmarks.allreduce", *sys.argv[1:]])
        write_page(record.keep(NAME, command, result, arguments.output), pages)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", default="1gbit", help="of the link, each way, in tc's units")
    parser.add_argument("--tiny", action="store_true", help="seconds instead of minutes, and figures without meaning")
    parser.add_argument("--rounds", type=int, default=Amount.rounds, help=f"measured ({Amount.rounds})")
    parser.add_argument("--output", metavar="DIR", type=Path, help="write there, instead of to the kept figures")
    parser.add_argument("--page", action="store_true", help="measure nothing; write the page anew")
    return parser.parse_args()


def run(amount: Amount, rate: str) -> dict[str, Any]:
    """What the first host's worker found."""
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


def summarised(found: Mapping[str, Any]) -> dict[str, Any]:
    """Medians and ranges over the rounds, and ratios to the dense way within each round."""
    dense = found["ways"][DENSE]
    ways = {}
    for name, way in found["ways"].items():
        ways[name] = {
            "largest_difference": way["largest_difference"],
            "reduce_bytes": summary([one["bytes"] for one in way["reduce"]]),
            "step_bytes": summary([one["bytes"] for one in way["step"]]),
            "reduce_seconds": summary([one["seconds"] for one in way["reduce"]]),
            "step_seconds": summary([one["seconds"] for one in way["step"]]),
            "ratios": {
                f"{act}_{what}": summary([a[what] / b[what] for a, b in zip(way[act], dense[act], strict=True)])
                for act in ("reduce", "step")
                for what in ("bytes", "seconds")
            },
        }
    kept = {key: value for key, value in found.items() if key != "ways"}
    total, sparse = found["parameters"], found["sparse_layer_weights"]
    return {**kept, "share_sent": (total - sparse + found["active_weights"]) / total, "ways": ways}


# The page


def paragraphs(result: Mapping[str, Any]) -> list[str]:
    return [part for name, found in result["layers"].items() for part in layers_text(LAYERS[name], found)]


def layers_text(title: str, found: Mapping[str, Any]) -> list[str]:
    rows = [
        [
            TITLES[name],
            f"{way['step_bytes']['median'] / 1e6:.2f}",
            f"{100 * way['ratios']['step_bytes']['median']:.2f} %",
            spread(way["reduce_seconds"], 3),
            spread(way["step_seconds"], 3),
            spread(way["ratios"]["reduce_seconds"], 2),
            spread(way["ratios"]["step_seconds"], 2),
            "the same bits" if way["largest_difference"] == 0 else "others",
        ]
        for name, way in found["ways"].items()
    ]
    rows[-1][-1] = ""  # They are not meant to be the same.
    head = ["gradients that travel", "MB a step", "of dense", "gradients alone, s", "step, s"]
    head += ["ratio, alone", "ratio, step", f"weights after {found['steps']} steps"]
    active, dense = found["ways"][ACTIVE], found["ways"][DENSE]
    counted = found["counted_bytes"] / (4 * found["parameters"])
    on_the_wire = active["step_bytes"]["median"] / dense["step_bytes"]["median"]
    off = on_the_wire / found["share_sent"] - 1
    return [
        f"## At sparsity 0.9, {title}",
        (
            f"{found['parameters']:,} parameters, of which {100 * found['model_sparsity']:.2f} % are held at 0: "
            f"{100 * found['share_sent']:.2f} % of the gradients are active. The hook counts "
            f"{found['counted_bytes'] / 1e6:.2f} MB a step, {100 * counted:.2f} % of all; the link counts "
            f"{100 * on_the_wire:.2f} % of what it counts for all gradients: {100 * off:+.2f} % off the active share, "
            f"{'within' if abs(off) <= 0.02 else 'NOT within'} 2 %."
        ),
        table(head, rows),
    ]


def write_page(path: Path, folder: Path) -> None:
    """From the JSON alone."""
    content = json.loads(path.read_text())
    amount, machine = content["amount"], content["machine"]
    intro = (
        f"{amount['model']['name']} at {amount['image_size']} px, batch {amount['batch']}, by one worker of one thread "
        f"on each of two hosts with a link of {content['rate']} each way. *Gradients alone*: all of them are there at "
        "once, and the time is that until their mean is, with the milliseconds of making them (the last row). *Step*: "
        "forward, backward with the reduction beside it, gradients masked, optimizer step. Median of "
        f"{amount['rounds']} rounds in which all ways take turns, and the least and the most; ratios are to DDP with "
        "all gradients, within a round. Bytes are those that the link counted, with the headers of frames, IP and TCP. "
        "The last column compares all weights with those of DDP with all gradients, from the same start on the same "
        "data. PowerSGD has all gradients in one bucket, for over gloo the collectives of several would be "
        "taken for each other: it sends nothing before the end of backward. A step takes longer on a CPU than on a "
        "GPU, and more of the reduction hides behind it: what carries over is the time of the gradients alone."
    )
    made = (
        f"Made by `{content['command']}` on {machine['cores']} cores ({machine['processor']}), load average before it "
        f"{content['load_before']}; {', '.join(f'{k} {v}' for k, v in content['versions'].items())}; commit "
        f"{content['commit']}. The hosts are network namespaces of one machine, so that both workers share its cores; "
        "the link's rate is held by the kernel's token bucket filter. Figures of another machine are others. "
        f"All numbers: [{path.name}]({Path(os.path.relpath(path, folder)).as_posix()})."
    )
    parts = ["# Gradients between two hosts", intro, *paragraphs(content), "## How it was made", made]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{NAME}.md").write_text("\n\n".join(parts) + "\n")


if __name__ == "__main__":
    main()
