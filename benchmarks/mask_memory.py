"""Memory that work on masks takes beside what is kept, in a GPU's ways: counted on the CPU, without a GPU.

    python -m benchmarks.mask_memory --networks ViT-L --densities 0.1

Bytes of tensors are counted exactly. Workspaces within kernels, such as those of a sort, are not in it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import nn

from benchmarks.harness import record
from benchmarks.harness.script import plain_parser
from benchmarks.parts.pieces import of_network, vision_transformer
from dynsparse.masks import sparse_layers
from dynsparse.models.resnet50 import ResNet50Settings

NETWORKS: Mapping[str, Callable[[], nn.Module]] = {
    "ResNet-50": lambda: ResNet50Settings(name="imagenet_resnet50").build((3, 224, 224), 1000),
    "ViT-L": lambda: vision_transformer(24),
    "tiny": lambda: vision_transformer(1, width=16),
}
DENSITIES = (0.05, 0.1, 0.5, 1.0)


def main() -> None:
    parser = plain_parser(__doc__)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=["ResNet-50", "ViT-L"])
    parser.add_argument("--densities", nargs="+", type=float, default=DENSITIES)
    asked = parser.parse_args()
    found = {name: {str(one): measured(name, one) for one in asked.densities} for name in asked.networks}
    record.keep("mask_memory", {"bytes": found}, asked.output)


def measured(name: str, density: float) -> dict[str, int]:
    """Print and return the weights of a network's layers, and the extra bytes of each kind of work on its masks."""
    torch.manual_seed(0)
    model = NETWORKS[name]()
    found = {"weights": sum(spec.weights for spec in sparse_layers(model)), **of_network(model, density)}
    for kind, most in found.items():
        print(f"{name}, density {density:g}: {kind} {most:,}", flush=True)
    return found


if __name__ == "__main__":
    main()
