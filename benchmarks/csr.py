"""Whether a sparse linear layer runs faster as a CSR matrix than dense, on the CPU.

    python -m benchmarks.csr                (about 2 minutes on 2 cores; a quiet machine)
    python -m benchmarks.csr --page         (the page anew, from the JSON)

`SparseLinear`, which `dynsparse.tools.export.csr.load` gives a network, beside `torch.nn.functional.linear` on the same
weights with their zeros, and at 0.95 beside other ways to multiply. Outputs are compared too.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shlex
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import scipy.sparse
import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.harness import record
from benchmarks.harness.page import spread, table
from benchmarks.harness.record import PAGES
from benchmarks.harness.rounds import compared
from dynsparse.tools.export.csr import RUN_BELOW, RUN_FROM, SparseLinear, to_csr

NAME = "csr"
DENSE, OURS = "dense", "CSR"
OTHERS_AT = 0.95
"""The sparsity at which the other ways are measured too."""
TITLES = {
    DENSE: "dense: `F.linear(x, w)`",
    OURS: "CSR on the left: `(w @ x.T).T`, `torch.mv` for one row",
    "int64": "the same, int64 indices",
    "right": "CSR on the right: `F.linear(x, w)`",
    "scipy": "SciPy: `(w @ x.T).T`, one thread",
}
TOLERANCE = 1e-5
"""Of the largest output: sums of float32 in another order."""
Result = dict[str, Any]
Ways = Mapping[str, Callable[[], Any]]


class Amount(NamedTuple):
    """How much is measured. Layers are (out, in)."""

    layers: Sequence[tuple[int, int]] = ((100, 300), (300, 784), (1000, 2048), (4096, 4096))
    sparsities: Sequence[float] = (0.8, 0.9, 0.95, 0.98)
    batches: Sequence[int] = (1, 8, 64, 256)
    rounds: int = 9
    turn: float = 0.005
    """Seconds that the dense way computes in a turn, at least, in three calls at least."""


TINY = Amount(layers=((30, 80),), batches=(1, 8), rounds=2, turn=0.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="seconds instead of minutes, and figures without meaning")
    parser.add_argument("--rounds", type=int, default=Amount().rounds, help=f"measured ({Amount().rounds})")
    parser.add_argument("--output", metavar="DIR", type=Path, help="write there, instead of to the kept figures")
    parser.add_argument("--page", action="store_true", help="measure nothing; write the page anew")
    arguments = parser.parse_args()
    path = (arguments.output or record.RESULTS) / f"{NAME}.json"
    if not arguments.page:
        result = measure(TINY if arguments.tiny else Amount(rounds=arguments.rounds))
        if arguments.tiny and not arguments.output:
            print("\n\n".join(page({**result, "machine": record.machine(), "versions": {}})))
            return
        command = shlex.join(["python", "-m", "benchmarks.csr", *sys.argv[1:]])
        path = record.keep(NAME, command, result, arguments.output)
    text = "\n\n".join(page(json.loads(path.read_text()))) + "\n"
    print(text)
    ((arguments.output or PAGES) / f"{NAME}.md").write_text(text)


def measure(amount: Amount) -> Result:
    """Every case with one thread and with all."""
    load, before = round(os.getloadavg()[0], 2), torch.get_num_threads()
    threads = sorted({1, os.cpu_count() or 1})
    cases = []
    try:
        for number in threads:
            torch.set_num_threads(number)
            cases += [{"threads": number, **case} for case in by_case(amount)]
    finally:
        torch.set_num_threads(before)
    return {"load_before": load, "mkl": torch.backends.mkl.is_available(), "threads": threads, "cases": cases}


@torch.no_grad()
def by_case(amount: Amount) -> Iterator[Result]:
    generator = torch.Generator().manual_seed(0)
    for out, into in amount.layers:
        for sparsity in amount.sparsities:
            mask = torch.rand(out, into, generator=generator) >= sparsity
            weight = torch.randn(out, into, generator=generator) * mask
            for batch in amount.batches:
                images = torch.randn(batch, into, generator=generator)
                ways = ways_of(weight, mask, images, others=sparsity == OTHERS_AT)
                case = {"out": out, "in": into, "sparsity": sparsity, "batch": batch}
                yield {**case, "difference": difference(ways), **timed(ways, amount)}


def ways_of(weight: Tensor, mask: Tensor, x: Tensor, *, others: bool) -> Ways:
    """Each gives x times the weight's transpose: [batch, out]."""
    matrix = to_csr(weight, mask)
    ours = SparseLinear(matrix, None)
    ways: dict[str, Callable[[], Any]] = {DENSE: lambda: functional.linear(x, weight), OURS: lambda: ours(x)}
    if others:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            parts = matrix.crow_indices().long(), matrix.col_indices().long(), matrix.values()
            long = SparseLinear(torch.sparse_csr_tensor(*parts, weight.shape, check_invariants=True), None)
        of_scipy, array = scipy.sparse.csr_matrix(weight.numpy()), x.numpy()
        ways["int64"] = lambda: long(x)
        ways["right"] = lambda: functional.linear(x, matrix)
        ways["scipy"] = lambda: (of_scipy @ array.T).T
    return ways


def difference(ways: Ways) -> float:
    """The largest between the outputs of any way and the dense one, over the largest output."""
    dense = ways[DENSE]()
    found = max(float((torch.as_tensor(way()) - dense).abs().max()) for way in ways.values()) / float(dense.abs().max())
    assert found <= TOLERANCE, found
    return found


def timed(ways: Ways, amount: Amount) -> Result:
    """Of one call, the fastest of each turn: whatever else runs on the machine interrupts some, and not the fastest."""
    began = time.perf_counter()
    ways[DENSE]()
    calls = min(50, max(3, math.ceil(amount.turn / (time.perf_counter() - began))))
    times: dict[str, list[float]] = {way: [] for way in ways}
    order = list(ways)
    for number in range(-1, amount.rounds):  # The first warms up.
        for way in order:
            fastest = min(seconds(ways[way]) for _ in range(calls))
            if number >= 0:
                times[way].append(fastest)
        order.append(order.pop(0))
    return {"calls": calls, **compared(times, DENSE)}


def seconds(way: Callable[[], Any]) -> float:
    began = time.perf_counter()
    way()
    return time.perf_counter() - began


# The page


def page(content: Mapping[str, Any]) -> list[str]:
    """Paragraphs."""
    cases, machine = content["cases"], content["machine"]
    text = [
        "# Linear layers as CSR matrices",
        (
            "`python -m dynsparse export CKPT --format csr` writes sparse layers as CSR matrices, and the network that "
            "`dynsparse.tools.export.csr.load` makes of the file multiplies them in its linear layers. Here such a "
            "layer stands beside the dense one with the same weights, zeros included: random masks, float32, on the "
            f"CPU ({machine['processor']}, {machine['cores']} cores). The ratio is the time as CSR over the time "
            f"dense, the median of {cases[0]['rounds']} rounds in which the ways take turns, and the least and the "
            "most; below 1 CSR is faster. Of a turn the fastest call counts: one that nothing else on the machine "
            "interrupted."
        ),
        conclusion(cases),
        *quietness(content),
        (
            f"So `load` runs a linear layer as CSR from {RUN_FROM:,} weights on and up to a density of {RUN_BELOW}; in "
            "smaller ones what a call costs outweighs the product."
        ),
    ]
    for threads in content["threads"]:
        these = [case for case in cases if case["threads"] == threads]
        text += [f"## {_threads(threads).capitalize()}", by_layer(these)]
    text += [
        "## Ways to multiply",
        (
            f"At {OTHERS_AT}, time over the dense time of the round. The matrix has to stand on the left: from the "
            "right torch has MKL multiply by a transposed matrix. int32 indices are what MKL takes; int64 ones are "
            "converted at each call. SciPy knows one thread."
        ),
    ]
    text += [by_way([case for case in cases if len(case["ms"]) > 2])]
    text += [
        "## What this does not show",
        (
            f"Outputs agree to {max(case['difference'] for case in cases):.0e} of the largest: sums in another order. "
            "Convolutions run dense, as torch has no sparse ones, and so does everything on a GPU. Masks here are "
            "random, as evenly spread as a mask can be. Needs a torch built with MKL, which is torch on x86. Figures "
            "of another processor are others."
        ),
        "## How it was made",
        (
            f"By `{content.get('command', 'python -m benchmarks.csr')}`, load average before it "
            f"{content['load_before']}; {', '.join(f'{k} {v}' for k, v in content['versions'].items())}; commit "
            f"{content.get('commit')}. All numbers: [csr.json](../../benchmarks/results/csr.json)."
        ),
    ]
    return text


def quietness(content: Mapping[str, Any]) -> list[str]:
    """What is to be known of figures that were taken beside other work."""
    if content["load_before"] <= content["machine"]["cores"] / 2:
        return []
    cores = content["machine"]["cores"]
    return [
        (
            f"**The machine was busy** (load average {content['load_before']} before it began, {cores} cores). One "
            "thread in short calls is hardly touched by that. Where several threads wait for each other, and in calls "
            "of many milliseconds, ratios are rough, and those far above 1 are of threads that had no core."
        )
    ]


def conclusion(cases: Sequence[Mapping[str, Any]]) -> str:
    """Of each layer and sparsity, in how many cases CSR is faster, and from what to what."""
    found: dict[tuple[str, float], list[float]] = {}
    for case in cases:
        found.setdefault((_name(case), case["sparsity"]), []).append(_ratio(case)["median"])
    rows = [
        [
            name,
            f"{sparsity:g}",
            f"{sum(ratio < 1 for ratio in ratios)} of {len(ratios)}",
            f"{min(ratios):.2f} to {max(ratios):.2f}",
        ]
        for (name, sparsity), ratios in found.items()
    ]
    return table(["layer", "sparsity", "batches and threads at which CSR is faster", "ratios"], rows)


def by_layer(cases: Sequence[Mapping[str, Any]]) -> str:
    batches = sorted({case["batch"] for case in cases})
    rows: dict[tuple[Any, ...], list[str]] = {}
    for case in cases:
        layer = case["in"], case["out"]
        if (*layer, 0) not in rows:
            same = [one for one in cases if (one["in"], one["out"], one["sparsity"]) == (*layer, case["sparsity"])]
            rows[(*layer, 0)] = [_name(case), "dense, ms", *(f"{one['ms'][DENSE]['median']:.3f}" for one in same)]
        rows.setdefault((*layer, case["sparsity"]), [_name(case), f"{case['sparsity']:g}"]).append(
            spread(_ratio(case), 2)
        )
    return table(["layer", "sparsity", *(f"batch {batch}" for batch in batches)], rows.values())


def by_way(cases: Sequence[Mapping[str, Any]]) -> str:
    ways = [way for way in TITLES if way != DENSE]
    rows = [
        [
            f"{_name(case)}, batch {case['batch']}, {_threads(case['threads'])}",
            *(spread(case[f"ratio_to_{DENSE}"][way], 2) for way in ways),
        ]
        for case in cases
    ]
    return table(["case", *(TITLES[way] for way in ways)], rows)


def _ratio(case: Mapping[str, Any]) -> Mapping[str, float]:
    found: Mapping[str, float] = case[f"ratio_to_{DENSE}"][OURS]
    return found


def _name(case: Mapping[str, Any]) -> str:
    return f"{case['in']} to {case['out']}"


def _threads(number: int) -> str:
    return "one thread" if number == 1 else f"{number} threads"


if __name__ == "__main__":
    main()
