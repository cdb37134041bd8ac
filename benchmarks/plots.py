"""Pages and plots of `benchmarks.reproduce`, made from its JSON alone.

python -m benchmarks.plots benchmarks/results/reproduce_digits.json     (draws them anew)
"""

from __future__ import annotations

import json
import os
import statistics
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # No display is needed.

from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from benchmarks.harness.record import PAGES

Content = dict[str, Any]

NOTES = {
    "digits": (
        "At 99 % uniform densities leave the last layer 10 of its 1,000 weights, one a class. What never "
        "moves weights between layers (static, DeepR, SET, RigL with uniform densities) is held back there; "
        "dynamic sparse reparameterization moves them, ERK begins with more of them in small layers, and tied "
        "weights leave no position empty. Sparse momentum shares the weights by the mean momentum of each "
        "layer. A neuron whose weights are all new, and so 0, is divided by next to nothing in BatchNorm, "
        "which makes its gradients huge: such neurons draw the weights to themselves, and the more of them "
        "there are, at 99 % or with a larger fraction to move, the worse it gets."
    )
}

# Beside colour, so that lines can be told apart in grey and by everyone.
MARKERS = "osD^vP*X<>h"


def write(path: Path, methods: Mapping[str, str], folder: Path) -> list[Path]:
    """The page and the plots for one JSON; returns the files."""
    content: Content = json.loads(path.read_text())
    folder.mkdir(parents=True, exist_ok=True)
    name = content["data"]
    files = [folder / f"{name}.md", folder / f"{name}_accuracy.svg"]
    files[0].write_text(page(content, methods, Path(os.path.relpath(path, folder)), NOTES.get(name, "")))
    accuracy(content, methods, files[1])
    if any("densities" in run for run in content["runs"]):
        files.append(folder / f"{name}_layers.svg")
        layers(content, files[2])
    return files


def table(content: Content, methods: Mapping[str, str]) -> str:
    """Markdown: a row a method, a column a sparsity."""
    by = {(row["method"], row["sparsity"]): row for row in content["results"]}
    sparsities = sorted({sparsity for _, sparsity in by if sparsity > 0})
    lines = ["| method | " + " | ".join(f"{100 * s:.0f} %" for s in sparsities) + " |"]
    lines.append("| --- |" + " --- |" * len(sparsities))
    for method, title in methods.items():
        cells = [by.get((method, s)) or by.get((method, 0.0)) for s in sparsities]
        if any(cells):
            shown = [f"{row['mean']:.2f} ± {row['sd']:.2f}" if row else "" for row in cells]
            lines.append(f"| {title} | " + " | ".join(shown) + " |")
    return "\n".join(lines)


def page(content: Content, methods: Mapping[str, str], path: Path, notes: str) -> str:
    """The table, the plots, what they tell, and how they were made; `path` of the JSON, from the page."""
    name = content["data"]
    seeds = len({run["seed"] for run in content["runs"]})
    versions = ", ".join(f"{key} {value}" for key, value in content["versions"].items())
    machine = content["machine"]
    head = (
        f"Test accuracy after the last epoch, in percent: mean ± standard deviation of {seeds} seeds. Sparsity is that "
        "of the sparse layers; the thin dense network has as many parameters in all as the sparse ones."
    )
    lines = [
        f"# Every method on {name}",
        "",
        head,
        "",
        table(content, methods),
        "",
        f"![Accuracy against sparsity]({name}_accuracy.svg)",
        "",
    ]
    lines += [notes, ""] if notes else []
    if any("densities" in run for run in content["runs"]):
        lines += [
            (
                "Where dynamic sparse training moves the weights: the density of each layer over training, mean over "
                "the seeds, the band one standard deviation."
            ),
            "",
            f"![Density of each layer over training]({name}_layers.svg)",
            "",
        ]
    made = (
        f"Made by `{content['command']}` in {content['minutes']} minutes with {content['processes']} processes on "
        f"{machine['cores']} cores ({machine['processor']}); {versions}; commit {content['commit']}. "
        f"All numbers, with a digest of each run's weights: [{path.name}]({path.as_posix()})."
    )
    return "\n".join([*lines, made, ""])


def accuracy(content: Content, methods: Mapping[str, str], path: Path) -> None:
    """Accuracy against sparsity, a line a method, error bars of one standard deviation; to the right the upper part."""
    figure, panels = plt.subplots(1, 2, figsize=(12, 5), layout="constrained")
    for axes in panels:
        _lines(content, methods, axes)
    means = sorted(row["mean"] for row in content["results"])
    panels[0].legend(fontsize="small")
    panels[0].set(ylabel="test accuracy, %", title=f"{content['data']}: all methods")
    panels[1].set(ylim=(means[len(means) // 3] - 1, means[-1] + 1), title="the same, upper part")
    _save(figure, path)


def _lines(content: Content, methods: Mapping[str, str], axes: Axes) -> None:
    colours = plt.get_cmap("tab20").colors  # type: ignore[attr-defined]
    for i, (method, title) in enumerate(methods.items()):
        rows = sorted((r for r in content["results"] if r["method"] == method), key=lambda r: r["sparsity"])
        if method == "dense" and rows:
            axes.axhline(rows[0]["mean"], color="black", linestyle=":", label=title)
        elif rows:
            axes.errorbar(
                # A little apart, so that no line hides another.
                [_stretched(row["sparsity"]) + (i - len(methods) / 2) * 0.006 for row in rows],
                [row["mean"] for row in rows],
                yerr=[row["sd"] for row in rows],
                label=title,
                marker=MARKERS[i % len(MARKERS)],
                color=colours[2 * i % 20 + (2 * i >= 20)],
                capsize=3,
                linewidth=1.2,
            )
    sparsities = sorted({row["sparsity"] for row in content["results"] if row["sparsity"] > 0})
    axes.set_xticks([_stretched(s) for s in sparsities], [f"{100 * s:g} %" for s in sparsities])
    axes.set_xlabel("sparsity of the sparse layers")
    axes.grid(alpha=0.3)


def _stretched(sparsity: float) -> float:
    """Equal steps for equal ratios of the weights that are left."""
    import math

    return -math.log10(1 - sparsity)


def layers(content: Content, path: Path) -> None:
    """The density of each layer over training, a panel a sparsity."""
    runs = [run for run in content["runs"] if "densities" in run]
    sparsities = sorted({run["sparsity"] for run in runs})
    figure, panels = plt.subplots(
        1, len(sparsities), figsize=(3.2 * len(sparsities), 4), sharey=True, squeeze=False, layout="constrained"
    )
    for axes, sparsity in zip(panels[0], sparsities, strict=True):
        _layers_at([run["densities"] for run in runs if run["sparsity"] == sparsity], axes)
        axes.axhline(1 - sparsity, color="black", linestyle=":", linewidth=1)
        axes.set(title=f"{100 * sparsity:g} % sparse", xlabel="epoch", yscale="log")
        axes.grid(alpha=0.3)
    panels[0][0].set_ylabel("density of the layer")
    panels[0][0].legend(fontsize="small")
    _save(figure, path)


def _layers_at(seeds: list[dict[str, list[list[float]]]], axes: Axes) -> None:
    names = list(seeds[0])
    for i, name in enumerate(names):
        columns = list(zip(*(seed[name] for seed in seeds), strict=False))  # The same epochs in every seed.
        epochs = [points[0][0] for points in columns]
        means = [statistics.mean(value for _, value in points) for points in columns]
        sds = [statistics.pstdev([value for _, value in points]) for points in columns]
        colour = plt.get_cmap("viridis")(i / max(1, len(names) - 1) * 0.9)
        axes.plot(epochs, means, color=colour, label=name if len(names) <= 8 or i in (0, len(names) - 1) else None)
        low = [max(mean - sd, mean / 10) for mean, sd in zip(means, sds, strict=True)]
        high = [mean + sd for mean, sd in zip(means, sds, strict=True)]
        axes.fill_between(epochs, low, high, color=colour, alpha=0.2, linewidth=0)


def _save(figure: Any, path: Path) -> None:
    # No date and fixed ids, so that drawing anew changes nothing.
    with matplotlib.rc_context({"svg.hashsalt": "dynsparse"}):
        figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def main() -> None:
    from benchmarks.reproduce import METHODS

    for path in map(Path, sys.argv[1:]):
        for file in write(path, METHODS, PAGES):
            print(f"written: {file}")


if __name__ == "__main__":
    main()
