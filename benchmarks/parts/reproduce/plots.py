"""Plots of `benchmarks.reproduce`, drawn from its JSON alone."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes

from benchmarks.harness.plot import plt, save
from benchmarks.harness.record import Result
from benchmarks.parts.reproduce.published import PUBLISHED
from benchmarks.parts.reproduce.recipe import METHODS
from benchmarks.parts.reproduce.table import deviation

MARKERS = "osD^vP*X<>h"
"""Shapes beside colours, so that lines can be told apart in grey and by everyone."""


def accuracy(content: Result, path: Path) -> None:
    """Draw accuracy against sparsity, with error bars of one standard deviation; to the right the upper part.

    What is published stands as a larger empty marker of the same shape.
    """
    figure, panels = plt.subplots(1, 2, figsize=(12, 5), layout="constrained")
    for axes in panels:
        _lines(content, axes)
    means = sorted(row["mean"] for row in content["results"])
    panels[0].legend(fontsize="small")
    panels[0].set(ylabel="test accuracy, %", title=f"{content['data']}: all methods")
    panels[1].set(ylim=(means[len(means) // 3] - 1, means[-1] + 1), title="the same, upper part")
    save(figure, path)


def costs(tables: Sequence[Result], path: Path) -> None:
    """Draw accuracy against FLOPs of training, a panel a sparsity; the lowest, far from the others, are cut off."""
    figure, panels = plt.subplots(len(tables), 1, figsize=(11, 6 * len(tables)), squeeze=False, layout="constrained")
    colours = plt.get_cmap("tab20").colors  # type: ignore[attr-defined]
    names = sorted({row["title"] for table in tables for row in table["rows"]})
    for axes, table in zip(panels[:, 0], tables, strict=True):
        for row in table["rows"]:
            i = names.index(row["title"])
            axes.errorbar(
                row["training"],
                row["mean"],
                yerr=row["sd"],
                marker=MARKERS[i % len(MARKERS)],
                color=colours[2 * i % 20 + (2 * i // 20) % 2],
                capsize=3,
                linestyle="none",
                label=row["title"],
            )
        means = sorted(row["mean"] for row in table["rows"])
        axes.set(
            xscale="log",
            xlabel="FLOPs of training, x of dense",
            ylabel="test accuracy, %",
            ylim=(means[len(means) // 4] - 1, means[-1] + 0.5),
            title=f"{100 * table['sparsity']:g} % sparse",
        )
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1.0, 0.5))
    save(figure, path)


def _lines(content: Result, axes: Axes) -> None:
    colours = plt.get_cmap("tab20").colors  # type: ignore[attr-defined]
    for i, (method, title) in enumerate(METHODS.items()):
        rows = sorted((r for r in content["results"] if r["method"] == method), key=lambda r: r["sparsity"])
        if method == "dense" and rows:
            mean, sd = rows[0]["mean"], rows[0]["sd"]
            axes.axhline(mean, color="black", linestyle=":", label=title)
            axes.axhspan(mean - sd, mean + sd, color="black", alpha=0.08, linewidth=0)
        elif rows:
            # A little apart, so that no line hides another.
            at = {row["sparsity"]: _stretched(row["sparsity"]) + (i - len(METHODS) / 2) * 0.006 for row in rows}
            colour, marker = colours[2 * i % 20 + (2 * i >= 20)], MARKERS[i % len(MARKERS)]
            axes.errorbar(
                list(at.values()),
                [row["mean"] for row in rows],
                yerr=[row["sd"] if row["seeds"] > 1 else math.nan for row in rows],  # One seed has no deviation.
                label=title,
                marker=marker,
                color=colour,
                capsize=3,
                linewidth=1.2,
            )
            theirs = PUBLISHED.get(content["data"], {}).get(method, {})
            shared = [sparsity for sparsity in at if sparsity in theirs]
            axes.plot(
                [at[sparsity] for sparsity in shared],
                [theirs[sparsity] for sparsity in shared],
                marker=marker,
                markersize=9,
                markerfacecolor="none",
                markeredgecolor=colour,
                linestyle="none",
            )
    sparsities = sorted({row["sparsity"] for row in content["results"] if row["sparsity"] > 0})
    axes.set_xticks([_stretched(s) for s in sparsities], [f"{100 * s:g} %" for s in sparsities])
    axes.set_xlabel("sparsity of the sparse layers")
    axes.grid(alpha=0.3)


def _stretched(sparsity: float) -> float:
    """Place on an axis that has equal steps for equal ratios of the weights that are left."""
    return -math.log10(1 - sparsity)


def layers(content: Result, path: Path) -> None:
    """Draw the density of each layer over training, a panel a sparsity."""
    runs = [run for run in content["runs"] if run["method"] == "dsr" and "densities" in run]
    sparsities = sorted({run["sparsity"] for run in runs})
    figure, panels = plt.subplots(
        1, len(sparsities), figsize=(3.2 * len(sparsities) + 2, 4), sharey=True, squeeze=False, layout="constrained"
    )
    for axes, sparsity in zip(panels[0], sparsities, strict=True):
        _layers_at([run["densities"] for run in runs if run["sparsity"] == sparsity], axes)
        axes.axhline(1 - sparsity, color="black", linestyle=":", linewidth=1)
        axes.set(title=f"{100 * sparsity:g} % sparse", xlabel="epoch", yscale="log")
        axes.grid(alpha=0.3)
    panels[0][0].set_ylabel("density of the layer")
    panels[0][-1].legend(fontsize="x-small", loc="center left", bbox_to_anchor=(1.0, 0.5))
    save(figure, path)


def _layers_at(seeds: list[dict[str, list[float]]], axes: Axes) -> None:
    """Draw each layer's density at the end of each epoch: the mean over the seeds, and a band of its deviation."""
    names = list(seeds[0])
    for i, name in enumerate(names):
        columns = list(zip(*(seed[name] for seed in seeds), strict=True))
        epochs = range(1, len(columns) + 1)
        means, sds = [statistics.mean(column) for column in columns], [deviation(column) for column in columns]
        colour = plt.get_cmap("viridis")(i / max(1, len(names) - 1) * 0.9)
        style = ("-", "--", ":")[i % 3]  # Neighbours have nearly the same colour.
        axes.plot(epochs, means, color=colour, linestyle=style, label=name.removesuffix(".weight"))
        low = [max(mean - sd, mean / 10) for mean, sd in zip(means, sds, strict=True)]
        high = [mean + sd for mean, sd in zip(means, sds, strict=True)]
        axes.fill_between(epochs, low, high, color=colour, alpha=0.2, linewidth=0)
