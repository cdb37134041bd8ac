"""The last words of a run: accuracy, sparsity of each layer before and after, where to look."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from dynsparse.tables import align
from dynsparse.training.callbacks.base import Display, Summary


class ClosingTable(Display):
    """Prints to standard output at the end."""

    def __init__(self, folder: Path, *, tensorboard: bool) -> None:
        self.folder = folder
        self.tensorboard = tensorboard

    def on_end(self, summary: Summary) -> None:
        print(f"\n{closing_text(summary, self.folder, tensorboard=self.tensorboard)}", flush=True)


def closing_text(summary: Summary, folder: Path, *, tensorboard: bool) -> str:
    """Return the text that `ClosingTable` prints."""
    rows: list[tuple[str, ...]] = [("layer", "active", "sparsity before", "sparsity after")]
    for name, layer in summary.layers.items():
        before, after = (f"{100 * layer[key]:.2f} %" for key in ("sparsity_before", "sparsity_after"))
        rows.append((name, f"{layer['active_weights']:,}", before, after))
    rows.append(("all sparse layers", f"{summary.active_weights:,}", "", f"{100 * summary.sparsity:.2f} %"))
    rows.append(("whole model", "", "", f"{100 * summary.model_sparsity:.2f} %"))
    facts: list[tuple[str, ...]] = [
        *_accuracies(summary),
        *_of_average(summary),
        *_when(summary),
        ("reallocations", str(summary.reallocations)),
        ("epochs, steps", f"{summary.epochs}, {summary.steps}"),
        ("workers", str(summary.world_size)),
        *_costs(summary),
        *_dead(summary),
    ]
    if summary.reason:
        facts.append(("ended early", summary.reason))
    if summary.bad_files:
        facts.append(("bad training files, replaced", str(summary.bad_files)))
    if summary.skipped_steps:
        facts.append(("steps skipped", str(summary.skipped_steps)))
    status = summary.status
    if status == "failed":
        status = f"ended by an error after step {summary.steps} (epoch {summary.epochs + 1})"
    elif status == "stopped":
        status = f"stopped after step {summary.steps} (epoch {summary.epochs + 1}); resume with --resume auto"
    lines = [f"{summary.name}: {status}", "", align(rows), "", align(facts), "", f"results in {folder}"]
    if tensorboard:
        lines.append(f"TensorBoard: {_tensorboard()} --logdir {folder}")
    return "\n".join(lines)


def _costs(summary: Summary) -> list[tuple[str, ...]]:
    """Return FLOPs over those of the dense network, and how much of the network weights have moved through."""
    found: list[tuple[str, ...]] = []
    if summary.inference_flops_of_dense is not None:
        found.append(("FLOPs of inference, x of dense", f"{summary.inference_flops_of_dense:.3f}"))
    if summary.training_flops_of_dense is not None:
        found.append(("FLOPs of training, x of dense", f"{summary.training_flops_of_dense:.3f}"))
    if summary.ever_active is not None:
        foreseen = summary.ever_active_forecast
        words = "" if foreseen is None else f", forecast {100 * foreseen:.2f} %"
        found.append(("weights ever active", f"{100 * summary.ever_active:.2f} %{words}"))
    return found


def _dead(summary: Summary) -> list[tuple[str, ...]]:
    """Return the layers with outputs that no active weight leads to. Of the last layer these are classes."""
    dead = {name: count for name, layer in summary.layers.items() if (count := layer.get("dead_outputs"))}
    if not dead:
        return []
    names = list(dead)
    shown = [f"{dead[name]:,} in {name}" for name in (names if len(names) <= 3 else [*names[:2], names[-1]])]
    if len(names) > 3:
        shown.insert(2, f"{sum(dead[name] for name in names[2:-1]):,} in {len(names) - 3} others")
    return [("outputs without weights", ", ".join(shown))]


def _accuracies(summary: Summary) -> list[tuple[str, ...]]:
    """Return each accuracy with the samples that it was measured on, and how its epoch was chosen."""
    if summary.best_top1_on != "validation":
        return [
            ("test accuracy", _percent(summary.test_top1)),
            ("highest of all epochs, chosen on the test data", _percent(summary.best_top1)),
        ]
    found: list[tuple[str, ...]] = [
        ("validation accuracy", _percent(summary.validation_top1)),
        ("best validation accuracy", _percent(summary.best_top1)),
    ]
    if summary.test_top1 is None:
        return found
    return [
        ("test accuracy", _percent(summary.test_top1)),
        ("test accuracy of the epoch best in validation", _percent(summary.test_top1_at_best)),
        *found,
    ]


def _of_average(summary: Summary) -> list[tuple[str, ...]]:
    """Return the accuracies of the average of the weights, as far as there are any."""
    found = {"test": summary.ema_test_top1, "validation": summary.ema_validation_top1}
    rows: list[tuple[str, ...]] = [
        (f"{on} accuracy of the averaged weights", _percent(top1)) for on, top1 in found.items() if top1 is not None
    ]
    return [*rows, ("the best epoch is chosen by", "the averaged weights")] if summary.best_by == "ema" else rows


def _when(summary: Summary) -> list[tuple[str, ...]]:
    """Return the step after which the accuracies were measured, where others came after it."""
    if summary.evaluated_at in (None, summary.steps):
        return []
    return [("accuracies measured after step", f"{summary.evaluated_at:,}")]


def _tensorboard() -> str:
    """Return the command beside this interpreter, which need not be on the PATH."""
    beside = Path(sys.executable).with_name("tensorboard")
    return os.path.relpath(beside) if beside.exists() else "tensorboard"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f} %"
