"""Keeping gradients inside the masks: ways to do it, side by side.

    python -m benchmarks.mask_gradients

One tensor of 25 million weights (a ResNet-50's), at several densities, 2 threads. Times are medians in one process,
ratios against `masked_fill_`, which the package uses.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.record import keep
from dynsparse.training.network import align

DENSITIES = (0.5, 0.2, 0.1, 0.05, 0.01)


def median_ms(act: Callable[[], Any], repeats: int) -> tuple[float, float]:
    """Median and interquartile range, after one run to warm up."""
    act()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        act()
        times.append(1000 * (time.perf_counter() - began))
    low, _, high = statistics.quantiles(times, n=4)
    return statistics.median(times), high - low


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=int, default=25_000_000)
    parser.add_argument("--repeats", type=int, default=15)
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    rows: list[tuple[str, ...]] = [("density", "way", "median ms", "spread", "ratio")]
    results = []
    for density in DENSITIES:
        gradient = torch.randn(arguments.weights)
        mask = torch.rand(arguments.weights) < density
        inactive, as_float, index = ~mask, mask.float(), mask.nonzero().squeeze(1)

        def gather_and_scatter(gradient: torch.Tensor = gradient, index: torch.Tensor = index) -> None:
            kept = gradient[index]
            gradient.zero_()
            gradient[index] = kept

        ways: dict[str, Callable[[], Any]] = {
            "masked_fill_ by a bool mask": lambda g=gradient, i=inactive: g.masked_fill_(i, 0),
            "mul_ by a bool mask": lambda g=gradient, m=mask: g.mul_(m),
            "mul_ by a float mask": lambda g=gradient, m=as_float: g.mul_(m),
            "gather, zero, scatter": gather_and_scatter,
        }
        measured = {way: median_ms(act, arguments.repeats) for way, act in ways.items()}
        base = measured["masked_fill_ by a bool mask"][0]
        for way, (median, spread) in measured.items():
            rows.append((f"{density}", way, f"{median:.1f}", f"{spread:.1f}", f"{median / base:.2f}"))
            found = {"median_ms": median, "iqr_ms": spread, "ratio": median / base}
            results.append({"density": density, "way": way, **found})
    print(align(rows))
    keep("mask_gradients", "python -m benchmarks.mask_gradients", {"weights": arguments.weights, "results": results})


if __name__ == "__main__":
    main()
