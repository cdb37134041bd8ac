"""Accuracy on the digits: dynamic sparse against static sparse, and dense, over several seeds.

    python -m benchmarks.digits_methods --sparsity 0.98 --seeds 5

Every run is the config of its method (configs/digits_*.yaml); test accuracy is
that of the last epoch, never the best one, which would be chosen on the test set.
"""

from __future__ import annotations

import argparse
import math
import statistics
from typing import Any

import torch

from benchmarks.record import keep
from dist_train import build_parts
from dynsparse import config as schema
from dynsparse.runtime import Worker
from dynsparse.training.loop import Trainer
from dynsparse.training.network import align

METHODS = ("dsr", "static", "dense")


def train(method: str, sparsity: float, seed: int, epochs: int | None) -> dict[str, Any]:
    overrides = [f"seed={seed}", "log.tensorboard=false"]
    if method != "dense":
        overrides.append(f"sparsity.fc={sparsity}")
    if epochs is not None:
        overrides.append(f"train.epochs={epochs}")
    config = schema.load(f"configs/digits_{method}.yaml", overrides)
    summary = Trainer(config, *build_parts(config, Worker()), Worker()).fit()
    return {
        "seed": seed,
        "test_top1": summary.test_top1,
        "sparsity": summary.sparsity,
        "layers": {name: layer["sparsity_after"] for name, layer in summary.layers.items()},
        "weight_digest": summary.weight_digest,
    }


def describe(runs: list[dict[str, Any]]) -> dict[str, Any]:
    values = [run["test_top1"] for run in runs]
    return {"mean": statistics.mean(values), "sd": statistics.stdev(values) if len(values) > 1 else 0.0, "runs": runs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sparsity", type=float, default=0.98)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, help="instead of the configs' own, for a quick look")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # The order of sums, and so the last bits, depend on it.

    results: dict[str, list[dict[str, Any]]] = {method: [] for method in METHODS}
    for seed in range(arguments.seeds):
        for method in METHODS:
            results[method].append(train(method, arguments.sparsity, seed, arguments.epochs))
            print(f"seed {seed}  {method:7}  {results[method][-1]['test_top1']:.2f} %", flush=True)

    described = {method: describe(runs) for method, runs in results.items()}
    pairs = zip(results["dsr"], results["static"], strict=True)
    gains = [dynamic["test_top1"] - static["test_top1"] for dynamic, static in pairs]
    error = statistics.stdev(gains) / math.sqrt(len(gains)) if len(gains) > 1 else 0.0
    rows: list[tuple[str, ...]] = [("method", "sparsity", "top-1 mean", "sd", "least", "most")]
    for method, found in described.items():
        values = [run["test_top1"] for run in found["runs"]]
        sparsity = found["runs"][0]["sparsity"]
        numbers = (found["mean"], found["sd"], min(values), max(values))
        rows.append((method, f"{sparsity:.2f}", *(f"{number:.2f}" for number in numbers)))
    print(f"\n{align(rows)}\n\ndsr - static: {statistics.mean(gains):.2f} +- {error:.2f} points (standard error)")
    path = keep(
        f"digits_methods_{arguments.sparsity}",
        f"python -m benchmarks.digits_methods --sparsity {arguments.sparsity} --seeds {arguments.seeds}",
        {"methods": described, "dsr_minus_static": {"mean": statistics.mean(gains), "standard_error": error}},
    )
    print(f"written to {path.relative_to(path.parents[2])}")


if __name__ == "__main__":
    main()
