"""Memory that work on masks takes beside what is kept, in a GPU's ways: counted on the CPU, without a GPU.

    python -m benchmarks.mask_memory                                     (half an hour)
    python -m benchmarks.mask_memory --networks ViT-L --densities 0.1    (some of it anew, beside what the JSON has)
    python -m benchmarks.mask_memory --page                              (the page anew, from the JSON)

Bytes of tensors are counted exactly. Workspaces within kernels, such as those of a sort, are not in it.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Mapping

import torch
from torch import nn

from benchmarks.harness import record
from benchmarks.harness.page import filled
from benchmarks.harness.record import Result
from benchmarks.harness.script import page_parser, run
from benchmarks.parts.pieces import kept, of_network, vision_transformer
from dynsparse.masks import sparse_layers
from dynsparse.models.resnet50 import ResNet50Settings

NAME = "mask_memory"
NETWORKS: Mapping[str, Callable[[], nn.Module]] = {
    "ResNet-50": lambda: ResNet50Settings(name="imagenet_resnet50").build((3, 224, 224), 1000),
    "ViT-L": lambda: vision_transformer(24),
    "tiny": lambda: vision_transformer(1, width=16),
}
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
DENSITIES = (0.05, 0.1, 0.5, 1.0)


def main() -> None:
    parser = page_parser(__doc__)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=["ResNet-50", "ViT-L"])
    parser.add_argument("--densities", nargs="+", type=float, default=DENSITIES)
    parser.add_argument("--kept", action="store_true", help="count what is kept alone; the rest stays")
    run(NAME, parser, measure, page)


def measure(asked: Namespace) -> Result:
    networks, densities = (["tiny"], [0.1, 0.5]) if asked.tiny else (asked.networks, asked.densities)
    before = record.kept(NAME, asked.output) if record.path_of(NAME, asked.output).exists() else {}
    counts = {"kept": what_is_kept} if asked.kept else {"kept": what_is_kept, "bytes": measured}
    found = {part: before.get(part, {}) for part in ("bytes", "kept")}
    for part, count in counts.items():
        for name in networks:
            more = {str(density): count(name, density) for density in densities}
            found[part][name] = dict(
                sorted({**found[part].get(name, {}), **more}.items(), key=lambda one: float(one[0]))
            )
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


def measured(name: str, density: float) -> dict[str, int]:
    """Print and return the weights of a network's layers, and the extra bytes of each kind of work on its masks."""
    torch.manual_seed(0)
    model = NETWORKS[name]()
    found = {"weights": sum(spec.weights for spec in sparse_layers(model)), **of_network(model, density)}
    for kind, most in found.items():
        print(f"{name}, density {density:g}: {kind} {most:,}", flush=True)
    return found


def page(content: Result) -> str:
    most = [
        count
        for densities in content["bytes"].values()
        for kinds in densities.values()
        for kind, count in kinds.items()
        if kind != "weights"
    ]
    before = record.kept(f"{NAME}_before")
    return filled(NAME, content, before=before, most=max(most), mebibytes=mebibytes, FORMATS=FORMATS)


def mebibytes(count: int | None) -> str:
    """Return bytes in MiB; a dash where they were not counted."""
    return "-" if count is None else f"{count / (1 << 20):.1f}"


if __name__ == "__main__":
    main()
