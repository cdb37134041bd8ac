"""An epoch and a reallocation as one plain dictionary each.

metrics.jsonl holds these dictionaries, a line each, and the report page reads them back. TensorBoard, W&B and MLflow
show their numbers, under the tags that are listed here. What depends on the clock stands under "timing": all else is
the same in every repetition of a run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from dynsparse.reallocation import ReallocationReport
from dynsparse.training.callbacks.base import EpochReport, ShrinkReport
from dynsparse.training.evaluate import Evaluation, Evaluations
from dynsparse.training.run.log_records import own_numbers

STEP_TAGS = {
    "loss": "loss/batch",
    "lr": "lr",
    "images_per_second": "throughput/images_per_second",
    "gradient_norm": "gradients/norm_of_a_step",
    "gradient_bytes": "communication/gradient_bytes_per_step",
}
"""Tag of each number of a step's report."""

EPOCH_TAGS = {
    "train_loss": "loss/train",
    "train_top1": "accuracy/train_top1",
    "sparsity": "sparsity/sparse_layers",
    "model_sparsity": "sparsity/model",
    "ever_active": "sparsity/ever_active",
    "inference_flops_of_dense": "flops/inference_of_dense",
    "training_flops_of_dense": "flops/training_of_dense",
    "budget": "active/budget",
    "active_weights": "active/total",
    "bad_files": "data/bad_files",
    "skipped_steps": "loss/skipped_steps",
    "gradient_norm": "gradients/norm",
    "gradient_norm_max": "gradients/norm_max",
    **{
        f"{split}_{key}": f"{group}/{tag}"
        for split in ("test", "validation", "train_evaluation", "ema_test", "ema_validation")
        for group, key, tag in (
            ("loss", "loss", split),
            ("accuracy", "top1", f"{split}_top1"),
            ("accuracy", "top5", f"{split}_top5"),
        )
    },
}
"""Tag of each number of an epoch that is shown."""

LAYER_TAGS = {
    "dropped": "dropped",
    "grown": "grown",
    "active": "active/layers",
    "sparsity": "sparsity/layers",
    "explored": "exploration",
    "dead_outputs": "dead_outputs",
    "flops": "flops/layers",
}
"""Beginning of the tag of each number of a layer; the layer's name ends it."""


def epoch_record(report: EpochReport) -> dict[str, Any]:
    """Return what an epoch reports. Accuracies are in percent; numbers may be NaN or infinite."""
    return {
        "kind": "epoch",
        "epoch": report.epoch,
        "step": report.step,
        "lr": report.lr,
        "train_loss": report.train_loss,
        "train_top1": report.train_top1,
        **_evaluation("test", report.results.test),
        **_evaluation("validation", report.results.validation),
        **_evaluation("train_evaluation", report.results.train),
        **_of_average(report.results.ema),
        "best_top1": report.best_top1,
        **({"best_top1_on": report.results.selected_on} if report.results.selecting else {}),
        "budget": report.budget,
        "active_weights": sum(report.active.values()),
        "sparsity": report.total_sparsity,
        "model_sparsity": report.model_sparsity,
        **_known(
            ever_active=report.ever_active,
            inference_flops_of_dense=report.inference_flops_of_dense,
            training_flops_of_dense=report.training_flops_of_dense,
        ),
        "bad_files": report.bad_files,
        "skipped_steps": report.skipped_steps,
        **_known(gradient_norm=report.gradient_norm, gradient_norm_max=report.gradient_norm_max),
        "layers": _layers(
            active=report.active,
            sparsity=report.sparsity,
            explored=report.explored,
            dead_outputs=report.dead_outputs,
            flops=report.flops,
        ),
        "timing": {
            "seconds": report.seconds,
            **_known(
                images_per_second=report.images_per_second,
                gradient_bytes_per_step=report.gradient_bytes,
            ),
        },
    }


def shrink_record(report: ShrinkReport) -> dict[str, Any]:
    """Return what a shrink reports: sizes of the network from now on, and of the layers that have changed."""
    before, after = report.before, report.after
    changed = {name: now for name, now in after.layers.items() if now != before.layers[name]}
    return {
        "kind": "shrink",
        "step": report.step,
        "epoch": report.epoch,
        "parameters": after.parameters,
        "parameters_before": before.parameters,
        **_known(dense_flops=after.dense_flops, dense_flops_before=before.dense_flops),
        "channels": {
            name: {"inputs": now[0], "outputs": now[1]} | _before(before.layers[name]) for name, now in changed.items()
        },
        "timing": {"seconds": report.seconds},
    }


def _before(sizes: tuple[int, int]) -> dict[str, int]:
    return {"inputs_before": sizes[0], "outputs_before": sizes[1]}


def shrink_scalars(report: ShrinkReport) -> Iterator[tuple[str, float]]:
    """Tags and values of the network's size after a shrink."""
    yield "size/parameters", report.after.parameters
    if report.after.dense_flops is not None:
        yield "size/dense_flops", report.after.dense_flops
    for name, (inputs, outputs) in report.after.layers.items():
        yield f"channels/inputs/{name}", inputs
        yield f"channels/outputs/{name}", outputs


def reallocation_record(report: ReallocationReport) -> dict[str, Any]:
    """Return what a reallocation reports, the method's own numbers among it. Counts are in weights."""
    return {
        "kind": "reallocation",
        "step": report.step,
        "epoch": report.epoch,
        "dropped": sum(report.dropped.values()),
        "grown": sum(report.grown.values()),
        **report.scalars,
        "layers": _layers(dropped=report.dropped, grown=report.grown, active=report.active, explored=report.explored),
        "repaired": list(report.repaired),
        "timing": {"seconds": report.seconds},
    }


def _evaluation(split: str, result: Evaluation | None) -> dict[str, float]:
    if result is None:
        return {}
    numbers = {f"{split}_loss": result.loss, f"{split}_top1": result.top1, f"{split}_top5": result.top5}
    return {**numbers, f"{split}_left_out": result.left_out} if result.left_out else numbers


def _of_average(results: Evaluations | None) -> dict[str, float]:
    if results is None:
        return {}
    return {**_evaluation("ema_test", results.test), **_evaluation("ema_validation", results.validation)}


def _known(**numbers: float | None) -> dict[str, float]:
    return {key: number for key, number in numbers.items() if number is not None}


def _layers(**columns: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Return the numbers of each active layer, given each number by layer. Tied layers have no "explored"."""
    return {
        layer: {key: column[layer] for key, column in columns.items() if layer in column} for layer in columns["active"]
    }


def epoch_scalars(record: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Tags and values of an epoch's own numbers."""
    return ((tag, record[key]) for key, tag in EPOCH_TAGS.items() if key in record)


def reallocation_scalars(record: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Tags and values of a reallocation's own numbers."""
    moved = {"dropped": record["dropped"], "grown": record["grown"], "repaired": len(record["repaired"])}
    numbers = {**record["timing"], **moved, **own_numbers(record)}
    return ((f"reallocation/{key}", value) for key, value in numbers.items())


def layer_scalars(record: Mapping[str, Any], weights: Mapping[str, int]) -> Iterator[tuple[str, float]]:
    """Tags and values of the layers' numbers. `weights` are each layer's, active or not."""
    for name, layer in record["layers"].items():
        numbers = {**layer, "sparsity": 1 - layer["active"] / weights[name]}
        yield from ((f"{LAYER_TAGS[key]}/{name}", value) for key, value in numbers.items())
