"""Linear layers as CSR matrices on the CPU: whether they run faster than dense ones.

    python -m benchmarks.csr                (about 2 minutes on 2 cores; a quiet machine)
    python -m benchmarks.csr --page         (the page anew, from the JSON)

`SparseLinear`, which `dynsparse.tools.export.csr.load` gives a network, beside `torch.nn.functional.linear` on the same
weights with their zeros, and at 0.95 beside other ways to multiply. Outputs are compared too.
"""

from __future__ import annotations

import math
import os
import time
import warnings
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import scipy.sparse
import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.harness.page import filled
from benchmarks.harness.record import Result
from benchmarks.harness.rounds import Act, compared, in_rounds
from benchmarks.harness.script import page_parser, run
from dynsparse.inference.csr_layers import SparseLinear, to_csr
from dynsparse.tools.export.csr import RUN_BELOW, RUN_FROM

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
"""Largest difference, as a fraction of the largest output: sums of float32 in another order."""


class Amount(NamedTuple):
    """The amount that is measured. Layers are (out, in)."""

    layers: Sequence[tuple[int, int]] = ((100, 300), (300, 784), (1000, 2048), (4096, 4096))
    sparsities: Sequence[float] = (0.8, 0.9, 0.95, 0.98)
    batches: Sequence[int] = (1, 8, 64, 256)
    rounds: int = 9
    turn: float = 0.005
    """Seconds that the dense way computes in a turn, at least, in three calls at least."""


TINY = Amount(layers=((30, 80),), batches=(1, 8), rounds=2, turn=0.0)


def main() -> None:
    run("csr", page_parser(__doc__, rounds=Amount().rounds), measure, page)


def measure(asked: Namespace) -> Result:
    """Measure every case with one thread and with all."""
    amount, before = TINY if asked.tiny else Amount(rounds=asked.rounds), torch.get_num_threads()
    threads = sorted({1, os.cpu_count() or 1})
    cases = []
    try:
        for number in threads:
            torch.set_num_threads(number)
            cases += [{"threads": number, **case} for case in by_case(amount)]
    finally:
        torch.set_num_threads(before)
    return {"mkl": torch.backends.mkl.is_available(), "threads": threads, "cases": cases}


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


def ways_of(weight: Tensor, mask: Tensor, x: Tensor, *, others: bool) -> Mapping[str, Act]:
    """Ways to multiply x by the weight's transpose: [batch, out]."""
    matrix = to_csr(weight, mask)
    ours = SparseLinear(matrix, None)
    ways: dict[str, Act] = {DENSE: lambda: functional.linear(x, weight), OURS: lambda: ours(x)}
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


def difference(ways: Mapping[str, Act]) -> float:
    """Return the largest difference of any way from the dense one, over the largest output."""
    dense = ways[DENSE]()
    found = max(float((torch.as_tensor(way()) - dense).abs().max()) for way in ways.values()) / float(dense.abs().max())
    assert found <= TOLERANCE, found
    return found


def timed(ways: Mapping[str, Act], amount: Amount) -> Result:
    """Time one call: the fastest of each turn. Whatever else runs on the machine interrupts some, not the fastest."""
    one = min(seconds(ways[DENSE]) for _ in range(5))  # A single call may be the one that was interrupted.
    calls = min(50, max(3, math.ceil(amount.turn / one)))
    times = in_rounds(ways, amount.rounds, measure=lambda way: min(seconds(way) for _ in range(calls)))
    return {"calls": calls, **compared(times, DENSE)}


def seconds(way: Act) -> float:
    began = time.perf_counter()
    way()
    return time.perf_counter() - began


def page(content: Result) -> str:
    names = {"TITLES": TITLES, "OTHERS_AT": OTHERS_AT, "RUN_BELOW": RUN_BELOW, "RUN_FROM": RUN_FROM}
    cases = [{**case, "name": f"{case['in']} to {case['out']}"} for case in content["cases"]]
    return filled("csr", content, names, cases=cases, won=won(cases), by_layer=by_layer)


def won(cases: Sequence[Result]) -> dict[tuple[str, float], list[float]]:
    """Ratios over batches and threads, by layer and sparsity."""
    found: dict[tuple[str, float], list[float]] = {}
    for case in cases:
        found.setdefault((case["name"], case["sparsity"]), []).append(case["ratio_to_dense"][OURS]["median"])
    return found


def by_layer(cases: Sequence[Result], threads: int) -> dict[str, dict[float, list[Result]]]:
    """Cases by layer and sparsity, in each a case a batch."""
    found: dict[str, dict[float, list[Result]]] = {}
    for case in cases:
        if case["threads"] == threads:
            found.setdefault(case["name"], {}).setdefault(case["sparsity"], []).append(case)
    return found


if __name__ == "__main__":
    main()
