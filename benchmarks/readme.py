"""Write the tables of the README and of pages in docs/ from the JSON in results/.

python -m benchmarks.readme            (a test checks that it has been run)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from benchmarks import fine_tuning, reproduce, scaling, soak
from benchmarks.harness.page import fill_marks
from benchmarks.harness.page import filled as filled_text
from benchmarks.harness.record import ROOT, kept
from benchmarks.parts.reproduce.published import MNIST

STEPS = {
    "static": "static, or between two reallocations",
    "deepr": "DeepR, which reallocates every step",
    "multiplied": "for comparison: masks multiplied in every forward",
}


def mnist() -> str:
    """Accuracy by method and sparsity, of the methods whose accuracy is published."""
    return reproduce.rows_of(kept("reproduce_mnist"), list(MNIST))


def digits() -> str:
    """Accuracy by method and sparsity."""
    return reproduce.rows_of(kept("reproduce_digits"))


def speed() -> str:
    """Times and memory of what makes a run sparse."""
    return filled_text(
        "speed", {name: kept(name) for name in ("reallocation", "steps", "memory", "startup")}, STEPS=STEPS
    )


def goals() -> str:
    """Goals, and how far they were reached."""
    cases = kept("steps")["cases"]
    deepr = [case["ratio_to_dense"]["deepr"]["median"] for case in cases.values()]
    return filled_text("goals", {"cases": cases, "deepr": deepr})


def faults() -> str:
    """Faults that a run lived through, and how long it took to resume."""
    return soak.table(kept("soak"))


def tuned() -> str:
    """Accuracy of fine-tuning beside training from scratch."""
    return fine_tuning.table(kept("fine_tuning"))


PAGES: Mapping[Path, Mapping[str, Callable[[], str]]] = {
    ROOT / "README.md": {"mnist": mnist},
    ROOT / "docs/results/README.md": {"digits": digits, "speed": speed},
    ROOT / "docs/performance.md": {"goals": goals},
    ROOT / "docs/operations.md": {"faults": faults},
    ROOT / "docs/fine-tuning.md": {"fine-tuning": tuned},
    scaling.PAGE: scaling.kept_parts(),
}
"""The tables of each page, between comments of their names."""


def filled(page: Path) -> str:
    """Return the page's text with every table made anew."""
    return fill_marks(page, PAGES[page])


def main() -> None:
    for page in PAGES:
        page.write_text(filled(page))


if __name__ == "__main__":
    main()
