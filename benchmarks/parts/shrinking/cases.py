"""Cases: the networks, and the length of their runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.parts.reproduce.recipe import merged
from dynsparse.config import loading
from dynsparse.config.schema import RunConfig

DENSE, UNSTRUCTURED, STARVED, SHRUNK = "dense", "RigL", "Chase", "Chase, shrunk"
ASKED = ("channel_sparsity", "channel_floor", "residual")
"""Settings of Chase that are told with a case's figures."""
Document = Mapping[str, Any]


@dataclass(frozen=True)
class Case:
    """A network and the length of its runs."""

    network: str
    """A model of timm."""
    size: int
    """Height and width of the images."""
    epochs: int
    batch: int = 64
    period: int = 50
    """Steps between two events."""
    channel_sparsity: float = 0.7
    """Fraction of the channels that die: of those inside the blocks, or of all with `residual`."""
    channel_floor: float = 0.2
    """Fraction of an even share of the living that each group keeps."""
    residual: bool = False
    """Let channels die that several layers write, too."""
    photographs: str = ""
    """Folder of Imagenette; else images are made up, and accuracies mean nothing."""
    samples: int = 2_560
    """Number of made-up images."""
    options: Document | None = None
    """Options of the network."""

    @property
    def data(self) -> Document:
        """The section `data` of the config."""
        if not self.photographs:
            shape = [3, self.size, self.size]
            made_up = {"number_of_classes": 10, "samples": self.samples, "test_samples": 10}
            return {"name": "synthetic", "shape": shape, "loader": "torch", "threads": 1, **made_up}
        return {
            "name": "imagenet",
            "path": self.photographs,
            "image_size": self.size,
            "evaluation_resize": self.size + self.size // 8,
            "number_of_classes": 10,
            "threads": 1,
        }

    def config(self, way: str, seed: int) -> RunConfig:
        """Return the config of a run."""
        document = {
            "seed": seed,
            "model": {"name": f"timm/{self.network}", "options": {"zero_init_last": False, **(self.options or {})}},
            "data": self.data,
            "train": {
                "precision": "bf16",
                "channels_last": True,
                "epochs": self.epochs,
                "global_batch_size": self.batch,
                "optimizer": {"name": "sgd", "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4},
                "lr": {"name": "cosine", "peak": 0.1, "warmup_epochs": 1},
            },
        }
        return loading.parse(merged(document, self._settings(way)), source=way)

    def _settings(self, way: str) -> dict[str, Any]:
        if way == DENSE:
            return {"method": {"name": "dense"}, "sparsity": {"conv": 0.0, "fc": 0.0}}
        sparse = {"sparsity": {"conv": 0.9, "fc": 0.0, "allocation": "erk", "exclude": ["conv1.*"]}}
        rigl = {"period": self.period, "fraction": 0.3, "until": 0.8}
        if way == UNSTRUCTURED:
            return {**sparse, "method": {"name": "rigl", **rigl}}
        which = {"channel_floor": self.channel_floor, "residual": self.residual}
        dying = {"channel_sparsity": self.channel_sparsity, "channels_until": 0.5, **which}
        train = {"shrink": {"at": list(self.shrinks)}} if way == SHRUNK else {}
        return {**sparse, "method": {"name": "chase", **rigl, **dying}, "train": train}

    @property
    def shrinks(self) -> range:
        """Epochs before which the network shrinks: each, until an epoch after the last channels have died."""
        return range(1, self.epochs // 2 + 2)
