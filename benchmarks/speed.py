"""The README's table of speed, from what the scripts have kept."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from benchmarks.harness.page import spread, table
from benchmarks.harness.record import RESULTS

Found = Mapping[str, Any]


def speed() -> str:
    rows = [
        *reallocations(kept("reallocation")),
        *steps(kept("steps")),
        memory(kept("memory")),
        *start(kept("startup")),
    ]
    return table(["ResNet-50 at 90 %, two CPU threads, unless said otherwise", "median (least to most)", "of"], rows)


def kept(name: str) -> Found:
    content: Found = json.loads((RESULTS / f"{name}.json").read_text())
    return content


def reallocations(found: Found) -> list[list[str]]:
    where = "[reallocation](docs/results/reallocation.md)"
    rows = []
    for amount in found["full_scans"].values():
        times = {way: spread(ratio, 1) for way, ratio in amount["ratio_to_ours"].items()}
        rows += [
            [f"a reallocation, {amount['moved']:,} weights moved", f"{spread(amount['ms']['ours'], 0)} ms", where],
            ["the straightforward way (`np.setdiff1d`, permutation)", f"{times['numpy']} times as long", where],
            ["the same, `assume_unique=True`", f"{times['numpy, unique']} times as long", where],
            ["full scans written in torch", f"{times['torch']} times as long", where],
            ["ours, with the digests of several workers", f"{times['ours with digests']} times as long", where],
        ]
    return rows


def steps(found: Found) -> list[list[str]]:
    ways = {
        "static": "static, or between two reallocations",
        "deepr": "DeepR, which reallocates every step",
        "multiplied": "for comparison: masks multiplied in every forward",
    }
    return [
        [
            f"a training step of {case['title']}, {title}",
            f"{spread(case['ratio_to_dense'][way], 3)} of dense{added(case, way)}",
            "[steps](docs/results/steps.md)",
        ]
        for case in found["cases"].values()
        for way, title in ways.items()
        if way in case["ratio_to_dense"]
    ]


def added(case: Found, way: str) -> str:
    """Timed by itself: whole steps vary by more."""
    if way == "multiplied":  # It adds inside of the forward pass, which is not timed by itself.
        return ""
    share = case["added"][way]["share_of_dense"]["median"]
    return f"; what it adds, by itself: {100 * share:.1f} %"


def memory(found: Found) -> list[str]:
    case = found["formats"]["contiguous"]["dsr"]
    return [
        f"peak memory, {found['image']} pixels, batch {found['batch']}, a reallocation included",
        f"{spread(case['ratio_to_dense'], 3)} of dense, {case['ratio_to_bound']['median']:.2f} of the bound",
        "[memory](docs/results/memory.md)",
    ]


def start(found: Found) -> list[list[str]]:
    where = "[startup](docs/results/startup.md)"
    return [
        ["all masks made", f"{spread(found['masks']['ms']['0.9'], 0)} ms", where],
        [
            "process start to the end of the first step",
            f"{spread(found['start']['ratio_to_dense']['dsr'], 2)} of dense",
            where,
        ],
    ]
