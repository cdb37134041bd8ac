"""Input and output of a run's network: how an image becomes its input, and which class each output is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dynsparse.config.schema import RunConfig
from pipelines.base import Data
from pipelines.datasets.photographs import PhotographSettings


def differing_class(ours: Sequence[str], theirs: Sequence[str]) -> int | None:
    """Return the first class that has another name on either side; None without any, or where one side has numbers.

    Shards without a list of names have numbers for them.
    """
    if any(list(names) == [str(i) for i in range(len(names))] for names in (ours, theirs)):
        return None
    return next((i for i, (mine, other) in enumerate(zip(ours, theirs, strict=False)) if mine != other), None)


def network_input(config: RunConfig, data: Data) -> dict[str, Any]:
    """Describe a network's input and output as plain data, for its run's folder, checkpoints and exported files.

    - `class_names`: by output; empty if the classes have no names
    - `number_of_classes`
    - `shape`: [channels, height, width]
    - `resize`: pixels that the shorter side of an image is resized to before its central part is taken, or None
    - `mean`, `std`: by channel, in grey levels of 0 to 255: the input is (level - mean) / std
    """
    normalisation = data.normalisation
    return {
        "class_names": list(data.class_names),
        "number_of_classes": config.data.classes,
        "shape": list(config.data.image_shape),
        "resize": config.data.resize if isinstance(config.data, PhotographSettings) else None,
        "mean": list(normalisation.mean) if normalisation else None,
        "std": list(normalisation.std) if normalisation else None,
    }
