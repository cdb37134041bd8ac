"""Accuracy of every method at several sparsities over several seeds: a table and two plots.

    python -m benchmarks.reproduce                    (make reproduce-digits: under 15 minutes on 2 cores)
    python -m benchmarks.reproduce --data mnist       (where there is internet; so is cifar10)
    python -m benchmarks.reproduce --page             (the page and the plots anew, from the JSON)

Accuracy is that of the last epoch on the test samples, never the best one, which would be chosen on the test set.
Each run is one process with one thread, so that it gives the same bits however many run side by side.
"""

from __future__ import annotations

import os
import statistics
import time
from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.harness import record
from benchmarks.harness.page import filled
from benchmarks.harness.record import PAGES, Result
from benchmarks.harness.script import ScriptParser, link
from benchmarks.parts.reproduce import plots
from benchmarks.parts.reproduce.recipes import METHODS, RECIPES
from benchmarks.parts.reproduce.training import Job, all_runs


def main() -> None:
    asked = parse()
    name = f"reproduce_{asked.data}"
    elsewhere = None if asked.out == PAGES else asked.out  # A quick look replaces no figures.
    if not asked.page:
        os.environ["OMP_NUM_THREADS"] = "1"
        with TemporaryDirectory() as folder:
            record.keep(name, measure(asked, folder), elsewhere)
    for file in write(name, asked.out, elsewhere):
        print(f"written: {file}")


def parse() -> Namespace:
    parser = ScriptParser(__doc__)
    parser.add_argument("--data", choices=sorted(RECIPES), default="digits")
    parser.add_argument("--methods", nargs="+", choices=sorted(METHODS), default=list(METHODS))
    parser.add_argument("--sparsity", type=float, nargs="+", default=[0.9, 0.95, 0.98, 0.99])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--processes", type=int, default=min(8, os.cpu_count() or 1))
    parser.add_argument("--epochs", type=int, help="instead of the recipe's own, for a quick look")
    parser.add_argument("--out", type=Path, default=PAGES, help="folder for the table and the plots")
    parser.add_argument("--page", action="store_true", help="train nothing; write the table and the plots anew")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="change every run's config")
    asked = parser.parse_intermixed_args()
    if "thin" in asked.methods and (unknown := set(asked.sparsity) - set(RECIPES[asked.data].thin)):
        parser.error(f"no widths of the thin network for {sorted(unknown)}; skip it in --methods, or add them here")
    return asked


def measure(asked: Namespace, folder: str) -> Result:
    """Train all, the dense networks first: pruning starts from them."""
    began = time.monotonic()
    runs = [run for jobs in jobs_of(asked, folder) for run in all_runs(jobs, asked.processes)]
    minutes = round((time.monotonic() - began) / 60, 1)
    made = {"data": asked.data, "minutes": minutes, "processes": asked.processes}
    return {**made, "results": described(runs), "runs": runs}


def jobs_of(asked: Namespace, folder: str) -> Iterator[list[Job]]:
    def job(method: str, sparsity: float, seed: int) -> Job:
        return Job(asked.data, method, sparsity, seed, folder, tuple(asked.overrides), asked.epochs)

    if {"dense", "pruning"} & set(asked.methods):
        yield [job("dense", 0.0, seed) for seed in range(asked.seeds)]
    methods = [method for method in METHODS if method in asked.methods and method != "dense"]
    seeds, sparsities = range(asked.seeds), asked.sparsity
    yield [job(method, sparsity, seed) for seed in seeds for sparsity in sparsities for method in methods]


def described(runs: Sequence[Result]) -> list[Result]:
    """Mean and standard deviation over the seeds, for each method and sparsity."""
    groups: dict[tuple[str, float], list[Result]] = {}
    for one in runs:
        groups.setdefault((one["method"], one["sparsity"]), []).append(one)
    rows = []
    for (method, sparsity), members in groups.items():
        values = [member["test_top1"] for member in members]
        sd = statistics.stdev(values) if len(values) > 1 else 0.0
        row = {"method": method, "sparsity": sparsity, "mean": statistics.mean(values), "sd": sd}
        rows.append({**row, "parameters": members[0]["parameters"]})
    return rows


# The page


def write(name: str, folder: Path, kept_in: Path | None) -> list[Path]:
    """Write the page and the plots, from the JSON alone. Returns the files."""
    content = {**record.kept(name, kept_in), "link": link(record.path_of(name, kept_in), folder)}
    folder.mkdir(parents=True, exist_ok=True)
    page, accuracy, layers = (folder / f"{content['data']}{end}" for end in (".md", "_accuracy.svg", "_layers.svg"))
    moves = any("densities" in run for run in content["runs"])
    seeds = len({run["seed"] for run in content["runs"]})
    page.write_text(filled("reproduce", content, seeds=seeds, moves=moves, table=table(content)) + "\n")
    plots.accuracy(content, accuracy)
    if moves:
        plots.layers(content, layers)
    return [page, accuracy, *([layers] if moves else [])]


def table(content: Result) -> str:
    """Write a row a method and a column a sparsity. The dense network is the same in all columns."""
    by = {(row["method"], row["sparsity"]): row for row in content["results"]}
    sparsities = sorted({sparsity for _, sparsity in by if sparsity > 0})
    rows = {}
    for method, title in METHODS.items():
        cells = [by.get((method, sparsity)) or by.get((method, 0.0)) for sparsity in sparsities]
        if any(cells):
            rows[title] = cells
    return filled("reproduce-table", sparsities=sparsities, rows=rows)


if __name__ == "__main__":
    main()
