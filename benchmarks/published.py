"""Accuracy of this project's runs beside published figures, for the README."""

from __future__ import annotations

from benchmarks.harness.record import kept
from benchmarks.parts.reproduce.recipe import METHODS

SPARSITIES = (0.9, 0.95, 0.98, 0.99)
MNIST = {
    "dsr": (98.44, 98.32, 98.14, 97.75),
    "pruning": (98.55, 98.47, 98.12, 97.47),
    "set": (98.39, 98.14, 97.74, 95.80),
    "deepr": (98.19, 98.06, 98.21, 94.0),
    "static": (97.94, 96.68, 82.81, 49.49),
}
"""Test accuracy of 784-300-100-10 on MNIST by Mostafa & Wang (ICML 2019), at each of `SPARSITIES`."""


def beside_published() -> str:
    """Return a table of Markdown with a row for each method: ours on the digits, theirs on MNIST."""
    ours = {(row["method"], row["sparsity"]): row["mean"] for row in kept("reproduce_digits")["results"]}
    lines = [
        "| method | " + " | ".join(f"{100 * sparsity:.0f} % sparse" for sparsity in SPARSITIES) + " |",
        "| --- |" + " --- |" * len(SPARSITIES),
    ]
    for method, theirs in MNIST.items():
        pairs = zip(SPARSITIES, theirs, strict=True)
        cells = (f"{ours[method, sparsity]:.2f} / {figure:.2f}" for sparsity, figure in pairs)
        lines.append(f"| {METHODS[method]} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
