"""The verb `inspect`: validate a checkpoint, and print its facts, its size by part and its table of layers."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dynsparse.flops import in_words
from dynsparse.masks.outputs import dead_outputs
from dynsparse.tables import align
from dynsparse.tools.opening import Opened, looking_up, open_checkpoint
from dynsparse.training.checkpoint import checkpoint_of
from dynsparse.training.progress import is_of_now
from pipelines.common.command_line import Parser
from pipelines.common.paths import argument
from pipelines.common.text import one_line

PARTS = ("weights", "masks", "explored", "optimizer state", "initial weights", "rest")
HELD = (
    "every byte is as it was written (CRC of each entry, SHA-256 of the content), and nothing in it was executed",
    "each layer has as many stored values and moments as its mask has bits set; all numbers are finite",
    "active weights make up the budget; outside the masks weights are 0",
)


def main(arguments: list[str]) -> None:
    """Print a checkpoint. Raises UserError if it is missing, damaged or inconsistent."""
    parser = Parser(
        prog="python -m dynsparse inspect",
        description="Check a checkpoint and print what it is, what it takes of the disk and its table of layers. "
        "Needs no data.",
    )
    parser.add_argument("checkpoint", metavar="CKPT", type=argument, help="a checkpoint, or a run's folder: its latest")
    parser.add_argument("--json", action="store_true", help="for programs")
    parsed = parser.parse_args(arguments)
    with looking_up(parsed.checkpoint):
        path = checkpoint_of(parsed.checkpoint)
    found = describe(open_checkpoint(path))
    print(json.dumps(found, indent=2) if parsed.json else text(found), flush=True)


def describe(opened: Opened) -> dict[str, Any]:
    """Return all that is printed as plain data: bytes, counts, fractions, accuracy in percent."""
    progress, config, network = opened.saved["progress"], opened.config, opened.network
    return {
        "file": str(opened.path),
        "run": config.run_name,
        "model": config.model.name,
        "method": config.method.name,
        "data": config.data.name,
        "seed": config.seed,
        "step": opened.step,
        "epoch": progress["epoch"],
        "epochs": config.train.epochs,
        **{key: progress[key] for key in ("test_top1", "validation_top1", "best_top1", "reallocations")},
        **{key: progress.get(key) for key in ("evaluated_at", "ema_test_top1", "ema_validation_top1", "best_by")},
        "world_size": len(opened.saved["ranks"]),
        "versions": dict(opened.saved["versions"]),
        "bytes": {"file": opened.path.stat().st_size, **bytes_by_part(opened.path, opened.saved)},
        "layers": {row.pop("name"): row for row in _layers(opened)},
        "active_weights": network.active_weights,
        "sparse_layer_weights": network.sparse_layer_weights,
        "total_parameters": network.total_parameters,
        "parameters": network.parameters,
        "shrunk": network.shrunk_line,
        "sparsity": network.sparsity,
        "model_sparsity": network.model_sparsity,
        "tied": bool(network.tied),
        "ever_active": network.masks.ever_active,
        "dense_flops": network.costs and network.costs.reference,
        "inference_flops": network.inference_flops,
        "inference_flops_of_dense": network.inference_flops_of_dense,
        "training_flops_of_dense": training_flops_of_dense(progress),
        "mask_digest": opened.mask_digest,
        "weight_digest": opened.weight_digest,
        "summary_agrees": True if opened.summary() else None,
    }


def _layers(opened: Opened) -> Iterator[dict[str, Any]]:
    explored, flops = opened.network.masks.explored(), opened.network.layer_flops
    dead = dead_outputs(opened.network.masks)
    for layer in opened.network.layers:
        spec, magnitudes = layer.spec, layer.values().abs()
        yield {
            "name": layer.name,
            "shape": list(spec.shape),
            "unit": list(spec.shape[spec.mask_dims :]),
            "weights": spec.weights,
            "active": layer.active_weights,
            "density": layer.active_weights / spec.weights,
            "sparsity": layer.sparsity,
            "at_zero": int((magnitudes == 0).count_nonzero()),
            "magnitude": {"min": float(magnitudes.min()), "mean": float(magnitudes.mean(dtype=torch.float64))}
            | {"max": float(magnitudes.max())},
            "explored": explored.get(layer.name),
            "dead_outputs": dead.get(layer.name),
            "flops": flops.get(layer.name),
        }


def training_flops_of_dense(progress: Mapping[str, Any]) -> float | None:
    """Return FLOPs of training over those of the dense network; None for older checkpoints, and before a step."""
    dense = progress.get("dense_training_flops")
    return progress["training_flops"] / dense if dense else None


def bytes_by_part(path: Path, saved: Mapping[str, Any]) -> dict[str, int]:
    """Return the bytes of each of PARTS in the file, compressed; {} where entries and tensors do not match.

    torch.save numbers storages in the order in which it meets them. So the tensors of the state, in its order, are the
    entries by number.
    """
    with zipfile.ZipFile(path) as archive:
        entries = [entry for entry in archive.infolist() if Path(entry.filename).parent.name == "data"]
    entries.sort(key=lambda entry: int(Path(entry.filename).name))
    storages: dict[int, tuple[str, int]] = {}
    for part, tensor in _tensors(saved):
        storage = tensor.untyped_storage()
        storages.setdefault(storage._cdata, (part, storage.nbytes()))
    if [size for _, size in storages.values()] != [entry.file_size for entry in entries]:
        return {}
    taken = dict.fromkeys(PARTS, 0)
    for (part, _), entry in zip(storages.values(), entries, strict=True):
        taken[part] += entry.compress_size
    taken["rest"] += path.stat().st_size - sum(taken.values())
    return taken


def _tensors(value: Any, part: str = "rest", keys: tuple[str, ...] = ()) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of a state in its order, each with the part that it belongs to."""
    if isinstance(value, Tensor):
        yield part, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _tensors(item, _part((*keys, str(key)), part), (*keys, str(key)))
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item, part, (*keys, ""))


def _part(keys: tuple[str, ...], above: str) -> str:
    top = {"weights": "weights", "masks": "masks", "optimizer": "optimizer state", "initial_weights": "initial weights"}
    if len(keys) == 1:
        return top.get(keys[0], "rest")
    return "explored" if above == "masks" and keys[-1] in ("explored", "explored_inactive") else above


def text(found: Mapping[str, Any]) -> str:
    """Return the description as text for people."""
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    facts: list[tuple[str, ...]] = [
        ("run", f"{found['run']}: {found['model']} by {found['method']} on {found['data']}, seed {found['seed']}"),
        ("progress", f"step {found['step']:,}, {found['epoch']} of {found['epochs']} epochs"),
        ("accuracy", accuracies(found)),
        ("reallocations", f"{found['reallocations']:,}"),
        ("workers", f"{found['world_size']}"),
        ("written by", versions),
        ("FLOPs", _costs(found)),
        ("ever active", _share(found["ever_active"])),
        ("size", _sizes(found["bytes"])),
        *([("shrunk", found["shrunk"])] if found["shrunk"] else []),
        ("digests", f"masks {found['mask_digest']}, weights {found['weight_digest']}"),
    ]
    width = max(len(name) for name, _ in facts)
    lines = [one_line(found["file"]), *(f"  {name.ljust(width)}  {one_line(value)}" for name, value in facts)]
    held = [*HELD, *(["masks and weights are those of summary.json"] if found["summary_agrees"] else [])]
    whole = "\n".join([*lines, "", _table(found), "", *(f"holds: {line}" for line in held)])
    return "\n".join(line.rstrip() for line in whole.splitlines())


def accuracies(progress: Mapping[str, Any]) -> str:
    """Return the accuracies of a checkpoint's progress, with the data that chose the best epoch."""
    when = "" if is_of_now(progress) else f" (measured after step {progress['evaluated_at']:,})"
    now, average, best = _accuracies(progress), _accuracies(progress, "ema_"), _percent(progress["best_top1"])
    now += f"; averaged weights: {average}" if average else ""
    by = " of the averaged weights" if progress.get("best_by") == "ema" else ""
    if progress["validation_top1"] is None:
        return f"{now}; highest so far{by} {best}, chosen on the test data{when}"
    return f"{now}; best validation so far{by} {best}{when}"


def _accuracies(progress: Mapping[str, Any], of: str = "") -> str:
    """Return accuracies on test and validation samples; "" where the average of the weights, `of` "ema_", has none."""
    test, validation = progress.get(f"{of}test_top1"), progress.get(f"{of}validation_top1")
    found = [f"validation {_percent(validation)}"] if validation is not None else []
    return ", ".join(found if of and test is None else [f"test {_percent(test)}", *found])


def _sizes(taken: Mapping[str, int]) -> str:
    parts = ", ".join(f"{part} {size:,}" for part, size in taken.items() if part != "file" and size)
    return f"{taken['file']:,} bytes" + (f": {parts}" if parts else "")


def _costs(found: Mapping[str, Any]) -> str:
    """Return FLOPs of inference and training over those of the dense network."""
    if found["dense_flops"] is None:
        return "-"
    inference = f"{in_words(found['inference_flops'])} an image, {found['inference_flops_of_dense']:.3f} of dense"
    training = found["training_flops_of_dense"]
    return inference if training is None else f"{inference}; training so far {training:.3f} of dense"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f} % of the weights of all sparse layers"


def _table(found: Mapping[str, Any]) -> str:
    head = "layer", "shape", "unit", "weights", "active", "sparsity", "|w| min", "mean", "max", "at 0"
    rows: list[tuple[str, ...]] = [(*head, "explored", "dead outputs", "FLOPs")]
    for name, row in found["layers"].items():
        shape, unit = "x".join(map(str, row["shape"])), "x".join(map(str, row["unit"])) or "1"
        magnitudes = (f"{row['magnitude'][key]:.2g}" for key in ("min", "mean", "max"))
        explored = "" if row["explored"] is None else f"{100 * row['explored']:.2f} %"
        counts = _counts(row["weights"], row["active"])
        flops = in_words(row["flops"])
        dead = "" if row["dead_outputs"] is None else f"{row['dead_outputs']:,}"
        rows.append((name, shape, unit, *counts, *magnitudes, f"{row['at_zero']:,}", explored, dead, flops))
    total, weights, active = found["total_parameters"], found["sparse_layer_weights"], found["active_weights"]
    of_layers = sum(row["flops"] or 0 for row in found["layers"].values()) or None
    for name, of, left, flops_of in (
        ("tied layers" if found["tied"] else "sparse layers", weights, active, of_layers),
        ("whole model", total, total - weights + active, found["inference_flops"]),
    ):
        rows.append((name, "", "", *_counts(of, left), *[""] * 6, in_words(flops_of)))
    return align(rows)


def _counts(weights: int, active: int) -> tuple[str, str, str]:
    return f"{weights:,}", f"{active:,}", f"{100 * (1 - active / max(1, weights)):.2f} %"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f} %"
