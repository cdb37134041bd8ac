"""Sizes of the paper's ResNet-50 at full width, counted from the code without drawing its weights."""

from __future__ import annotations

import pickle
from typing import Any

import torch
from torch import nn

from benchmarks.harness.rounds import in_rounds, summary
from benchmarks.parts.scaling.computed import PERIOD
from benchmarks.parts.scaling.worker import Subject, settings
from dynsparse.masks.allocation import ALLOCATIONS
from dynsparse.training import packing
from dynsparse.training.network import layer_specs

RESNET50 = Subject({"name": "imagenet_resnet50"}, image=32, classes=1000, threshold=0.01, target_moves=400_000)


def resnet50() -> dict[str, Any]:
    config = settings(RESNET50, global_batch=2, period=PERIOD)
    everywhere = config.model_copy(update={"sparsity": config.sparsity.model_copy(update={"include": ["*"]})})
    with torch.device("meta"):
        model = config.model.build(config.data.image_shape, config.data.classes)
    specs = layer_specs(config, model)
    units = ALLOCATIONS[config.sparsity.allocation](specs, config.sparsity.shares)
    inactive = sum((spec.units - units[spec.name]) * spec.unit_size for spec in specs)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    sizes = {
        "layers": len(specs),
        "layers_if_all": len(layer_specs(everywhere, model)),
        "parameters": parameters,
        "parameter_tensors": len(list(model.parameters())),
        "active_share": 1 - inactive / parameters,
        "buffer_bytes": sum(buffer.numel() * buffer.element_size() for buffer in packing.buffers(model).values()),
    }
    state = rank_state(model)
    return {**sizes, "rank_state_bytes": len(state), "rank_state_unpickling_seconds": unpickling_seconds(state)}


def rank_state(model: nn.Module) -> bytes:
    """Pickle what each rank hands to rank 0 at a save (`RunState.of_this_rank`).

    Values do not matter; the addresses that torch pickles with storages may make a difference of a few bytes.
    """
    state = {
        "buffers": packing.pack_buffers(model.to_empty(device="cpu")),
        "random": packing.random_state(torch.device("cpu")),
        "sums": torch.zeros(3, dtype=torch.float64),
        "bad_samples": {},
    }
    return pickle.dumps(state)


def unpickling_seconds(pickled: bytes, repeats: int = 9) -> dict[str, float]:
    """Time the unpickling of one rank's state, by one thread."""
    return summary(in_rounds({"unpickle": lambda: pickle.loads(pickled)}, repeats)["unpickle"])
