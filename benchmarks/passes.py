"""Passes over memory that a step makes beside forward and backward: masks, infinities, the optimizer. Ways compared.

    python -m benchmarks.passes             (about a minute on 2 cores; a quiet machine)
    python -m benchmarks.passes --page      (the page anew, from the JSON)

One tensor of 25 million weights (a ResNet-50's), on the CPU with 2 threads.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn, optim

from benchmarks.harness.page import filled
from benchmarks.harness.record import Result
from benchmarks.harness.rounds import Act, compared, in_rounds
from benchmarks.harness.script import page_parser, run
from dynsparse.training.precision import all_finite

DENSITIES = (0.5, 0.2, 0.1, 0.05, 0.01)
PLAIN = "torch's default (`foreach=False`)"
USED = {
    "infinities": "smallest and largest (`torch.aminmax`)",
    "SGD": "`fused=True`",
    "AdamW": "`fused=True`",
}
"""The way that the project takes."""


def main() -> None:
    run("passes", page_parser(__doc__, rounds=11), measure, page)


def measure(asked: Namespace) -> Result:
    weights, rounds = (10_000, 2) if asked.tiny else (25_000_000, asked.rounds)
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


def masking(gradient: Tensor, density: float) -> Mapping[str, Act]:
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


def checking(gradient: Tensor) -> Mapping[str, Act]:
    gradients = [gradient]
    return {
        USED["infinities"]: lambda: bool(all_finite(gradients)),
        "largest magnitude (`get_total_norm`)": lambda: bool(
            torch.nn.utils.get_total_norm(gradients, norm_type=torch.inf).isfinite()
        ),
        "`isfinite` of each": lambda: bool(gradient.isfinite().all()),
    }


def stepping(gradient: Tensor, kind: Callable[..., optim.Optimizer], **settings: Any) -> Mapping[str, Act]:
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


def page(content: Result) -> str:
    return filled("passes", content, PLAIN=PLAIN, USED=USED)


if __name__ == "__main__":
    main()
