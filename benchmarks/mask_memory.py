"""Memory that work on masks takes beside what is kept, in a GPU's ways: counted on the CPU, without a GPU.

    python -m benchmarks.mask_memory                                     (an hour)
    python -m benchmarks.mask_memory --networks ViT-L --densities 0.1    (some of it anew, beside what the JSON has)
    python -m benchmarks.mask_memory --only methods                      (one part anew: kept, bytes, methods or meta)
    python -m benchmarks.mask_memory --page                              (the page anew, from the JSON)

Bytes of tensors are counted exactly. Workspaces within kernels, such as those of a sort, are not in it.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial

import torch
from torch import nn

from benchmarks.harness import record
from benchmarks.harness.page import filled
from benchmarks.harness.record import Result
from benchmarks.harness.script import page_parser, run
from benchmarks.parts.pieces import (
    METHODS,
    kept,
    language_model,
    of_method,
    of_network,
    vgg16,
    vision_transformer,
    without_values,
)
from benchmarks.parts.reproduce.recipe import merged
from dynsparse.masks import sparse_layers
from dynsparse.models.resnet50 import ResNet50Settings

NAME = "mask_memory"
NETWORKS: Mapping[str, Callable[[], nn.Module]] = {
    "ResNet-50": lambda: ResNet50Settings(name="imagenet_resnet50").build((3, 224, 224), 1000),
    "ViT-L": lambda: vision_transformer(24),
    "VGG-16": vgg16,
    "tiny": lambda: vision_transformer(1, width=16),
}
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
DENSITIES = (0.05, 0.1, 0.5, 1.0)
PARTS = ("bytes", "kept", "methods", "meta")
METHODS_AT = 0.1
"""Density of the table of methods."""
BLOCKS = 32
"""Blocks of the language model."""


def main() -> None:
    parser = page_parser(__doc__)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=["ResNet-50", "ViT-L", "VGG-16"])
    parser.add_argument("--densities", nargs="+", type=float, default=DENSITIES)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="count these parts; the others stay")
    parser.add_argument("--works", nargs="+", default=(), help="in the part bytes, such as 'event of rigl'; all")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), help="in the part methods")
    run(NAME, parser, measure, page)


def measure(asked: Namespace) -> Result:
    networks, densities = (["tiny"], [0.1, 0.5]) if asked.tiny else (asked.networks, asked.densities)
    before = record.kept(NAME, asked.output) if record.path_of(NAME, asked.output).exists() else {}
    found: Result = {part: before.get(part, {}) for part in PARTS}
    commits: Result = before.get("commits", {})
    counts: dict[str, Callable[[str, float], Result]] = {
        "bytes": partial(measured, only=asked.works),
        "kept": what_is_kept,
    }
    for part, count in counts.items():
        for name in networks if part in asked.only else ():
            known = found[part].get(name, {})
            more = {str(density): count(name, density) for density in densities}
            commits = merged(commits, {part: {name: stamped(more)}})
            more = merged(known, more)
            found[part][name] = dict(sorted(more.items(), key=lambda one: float(one[0])))
    if "methods" in asked.only:
        methods = of_methods("tiny" if asked.tiny else "ResNet-50", asked.methods)
        found["methods"] |= methods
        commits = merged(commits, {"methods": stamped(methods)})
    if "meta" in asked.only:
        found["meta"] = {str(density): on_meta(0 if asked.tiny else BLOCKS, density) for density in (0.1, 0.5)}
        commits = merged(commits, {"meta": stamped(found["meta"])})
    return {**found, "commits": commits}


def stamped(counts: Result) -> Result:
    """Return this commit in place of each count: later calls count some of them anew."""
    return {key: stamped(count) if isinstance(count, dict) else record.commit() for key, count in counts.items()}


def commits_in(stamps: Result) -> list[str]:
    """Return the commits that counts are of, each once."""
    found: dict[str, None] = {}
    for stamp in stamps.values():
        found |= dict.fromkeys(commits_in(stamp) if isinstance(stamp, dict) else [stamp])
    return list(found)


def of_methods(network: str, methods: Sequence[str]) -> dict[str, dict[str, int]]:
    """Return the extra bytes of methods' events at METHODS_AT, printed as they come."""
    found = {}
    for name in methods:
        torch.manual_seed(0)
        model = NETWORKS[network]()
        found[name] = {
            "weights": sum(spec.weights for spec in sparse_layers(model)),
            "extra": of_method(model, METHODS_AT, name),
        }
        print(f"event of {name}: {found[name]['extra']:,}", flush=True)
    return found


def on_meta(blocks: int, density: float) -> dict[str, int]:
    """Return what a language model's masks keep, and extra bytes of work on them, counted without its memory."""
    model = language_model(blocks)
    found = {"weights": sum(spec.weights for spec in sparse_layers(model)), **without_values(model, density)}
    for kind, count in found.items():
        print(f"on meta, density {density:g}: {kind} {count:,}", flush=True)
    return found


def what_is_kept(name: str, density: float) -> dict[str, float]:
    """Return a network's weights and active ones, and the bytes kept by memory format of its weights."""
    found: dict[str, float] = {}
    for title, memory_format in FORMATS.items():
        torch.manual_seed(0)
        model = NETWORKS[name]().to(memory_format=memory_format)  # type: ignore[call-overload]
        found[title] = kept(model, density)
        weights = sum(spec.weights for spec in sparse_layers(model))
        found |= {"weights": weights, "active weights": density * weights}
    return found


def measured(name: str, density: float, only: Collection[str] = ()) -> dict[str, int]:
    """Print and return the weights of a network's layers, and the extra bytes of kinds of work on its masks."""
    torch.manual_seed(0)
    model = NETWORKS[name]()
    found = {"weights": sum(spec.weights for spec in sparse_layers(model)), **of_network(model, density, only)}
    for kind, most in found.items():
        print(f"{name}, density {density:g}: {kind} {most:,}", flush=True)
    return found


def page(content: Result) -> str:
    most = [
        count
        for densities in content["bytes"].values()
        for kinds in densities.values()
        for kind, count in kinds.items()
        if kind != "weights" and "deepr" not in kind  # It takes whole layers.
    ]
    before = record.kept(f"{NAME}_before")
    words = {"mebibytes": mebibytes, "FORMATS": FORMATS, "commits_in": commits_in}
    return filled(NAME, content, words, before=before, most=max(most))


def mebibytes(count: int | None) -> str:
    """Return bytes in MiB; a dash where they were not counted."""
    return "-" if count is None else f"{count / (1 << 20):.1f}"


if __name__ == "__main__":
    main()
