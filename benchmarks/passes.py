"""What a step passes over memory for beside forward and backward: masks, infinities, the optimizer. Ways side by side.

    python -m benchmarks.passes             (about a minute on 2 cores; a quiet machine)
    python -m benchmarks.passes --page      (the page anew, from the JSON)

One tensor of 25 million weights (a ResNet-50's), on the CPU with 2 threads.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn, optim

from benchmarks.harness import record
from benchmarks.harness.page import spread, table
from benchmarks.harness.record import PAGES
from benchmarks.harness.rounds import compared, in_rounds
from dynsparse.training.precision import all_finite

NAME = "passes"
DENSITIES = (0.5, 0.2, 0.1, 0.05, 0.01)
Ways = Mapping[str, Callable[[], Any]]
PLAIN = "torch's default (`foreach=False`)"
USED = {
    "infinities": "smallest and largest (`torch.aminmax`)",
    "SGD": "`fused=True`",
    "AdamW": "`fused=True`",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="seconds instead of minutes, and figures without meaning")
    parser.add_argument("--rounds", type=int, default=11, help="measured (11)")
    parser.add_argument("--output", metavar="DIR", type=Path, help="write there, instead of to the kept figures")
    parser.add_argument("--page", action="store_true", help="measure nothing; write the page anew")
    arguments = parser.parse_args()
    path = (arguments.output or record.RESULTS) / f"{NAME}.json"
    if not arguments.page:
        weights, rounds = (10_000, 2) if arguments.tiny else (25_000_000, arguments.rounds)
        result = measure(weights, rounds)
        print("\n\n".join(page(result)))
        if arguments.tiny and not arguments.output:
            return
        path = record.keep(
            NAME, shlex.join(["python", "-m", "benchmarks.passes", *sys.argv[1:]]), result, arguments.output
        )
    text = "\n\n".join(page(json.loads(path.read_text()))) + "\n"
    ((arguments.output or PAGES) / f"{NAME}.md").write_text(text)


def measure(weights: int, rounds: int) -> dict[str, Any]:
    torch.set_num_threads(2)
    torch.manual_seed(0)
    gradient = torch.randn(weights)
    return {
        "weights": weights,
        "masks": {str(d): compared(in_rounds(masking(gradient, d), rounds), "masked_fill_") for d in DENSITIES},
        "infinities": compared(in_rounds(checking(gradient), rounds), USED["infinities"]),
        "SGD": compared(in_rounds(stepping(gradient, optim.SGD, momentum=0.9, nesterov=True), rounds), PLAIN),
        "AdamW": compared(in_rounds(stepping(gradient, optim.AdamW), rounds), PLAIN),
    }


def masking(gradient: Tensor, density: float) -> Ways:
    mask = torch.rand(len(gradient)) < density
    inactive, as_float, index = ~mask, mask.float(), mask.nonzero().squeeze(1)

    def by_index() -> None:
        kept = gradient.index_select(0, index)
        gradient.zero_().index_copy_(0, index, kept)

    return {
        "masked_fill_": lambda: gradient.masked_fill_(inactive, 0),
        "by the index: gather, zero, scatter": by_index,
        "times a bool mask": lambda: gradient.mul_(mask),
        "times a float mask (lets NaN pass)": lambda: gradient.mul_(as_float),
    }


def checking(gradient: Tensor) -> Ways:
    gradients = [gradient]
    return {
        USED["infinities"]: lambda: bool(all_finite(gradients)),
        "largest magnitude (`get_total_norm`)": lambda: bool(
            torch.nn.utils.get_total_norm(gradients, norm_type=torch.inf).isfinite()
        ),
        "`isfinite` of each": lambda: bool(gradient.isfinite().all()),
    }


def stepping(gradient: Tensor, kind: Callable[..., optim.Optimizer], **settings: Any) -> Ways:
    kinds: Mapping[str, Mapping[str, bool]] = {
        PLAIN: {"foreach": False},
        "`foreach=True`": {"foreach": True},
        "`fused=True`": {"fused": True},
    }
    ways = {}
    for name, how in kinds.items():
        weight = nn.Parameter(torch.randn_like(gradient))
        weight.grad = gradient
        ways[name] = kind([weight], lr=1e-6, weight_decay=1e-4, **settings, **how).step
    return ways


def page(content: Mapping[str, Any]) -> list[str]:
    intro = (
        f"Beside forward and backward, on the CPU with 2 threads, {content['weights'] / 1e6:g} million weights in one "
        "tensor. Milliseconds are medians of rounds in which the ways take turns, with the least and the most; "
        "ratios are to the first way, within a round."
    )
    text = ["# What a step passes over memory for", intro]
    titles = {f"masks of density {density}": found for density, found in content["masks"].items()}
    titles |= {
        "infinities and NaN": content["infinities"],
        "SGD with Nesterov momentum and weight decay": content["SGD"],
        "AdamW": content["AdamW"],
    }
    for title, found in titles.items():
        text += [f"## {title[0].upper()}{title[1:]}", by_way(found)]
    return text


def by_way(found: Mapping[str, Any]) -> str:
    ratios = next(value for key, value in found.items() if key.startswith("ratio_to_"))
    rows = [[way, spread(ms, 1), spread(ratios[way], 2)] for way, ms in found["ms"].items()]
    return table(["way", "ms", "ratio"], rows)


if __name__ == "__main__":
    main()
