"""The schema of a run's checkpoint: its parts, their types and their ranges."""

from __future__ import annotations

import math
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from dynsparse.training.progress import Count, Progress

Size = Annotated[int, Field(ge=1, lt=1 << 40)]


class Part(BaseModel):
    """Strict. Unknown keys are left alone: they are of another version."""

    model_config = ConfigDict(strict=True, extra="ignore", arbitrary_types_allowed=True)


class SavedProgress(Progress):
    """Progress in a checkpoint, which always says these two."""

    epoch: Count
    step: Count


class SavedLayer(Part):
    shape: Annotated[list[Size], Field(min_length=1, max_length=8)]
    mask_dims: Size
    mask: Tensor
    explored: Tensor | None = None
    explored_inactive: Tensor | None = None

    @property
    def units(self) -> int:
        return math.prod(self.shape[: self.mask_dims])

    @property
    def unit_size(self) -> int:
        return math.prod(self.shape[self.mask_dims :])


class SavedMasks(Part):
    budget: Count
    layers: dict[str, SavedLayer]


class SavedRandom(Part):
    cpu: Tensor
    cuda: Tensor | None = None


class SavedRank(Part):
    buffers: dict[str, Tensor]
    random: SavedRandom
    sums: Tensor
    bad_samples: dict[int, str] = {}


class SavedPosition(Part):
    seed: int
    samples: Count
    global_batch: Size
    listing: str | None = None
    split: str | None = None
    epoch: Count
    batch: Count


class Named(Part):
    name: str


class SavedTrain(Part):
    optimizer: Named


class SavedConfig(Part):
    """As much of it as is compared with the config that goes on. `config.parse` reads the whole."""

    seed: int
    method: Named
    train: SavedTrain
    sparsity: dict[str, Any]


class SavedScale(Part):
    """Of GradScaler, where there is one."""

    scale: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    growth_factor: Annotated[float, Field(gt=1, allow_inf_nan=False)]
    backoff_factor: Annotated[float, Field(gt=0, lt=1)]
    growth_interval: Size
    growth_tracker: Annotated[int, Field(alias="_growth_tracker", ge=0)]


class SavedInput(Part):
    """`network_input.network_input`."""

    class_names: list[str]
    number_of_classes: Size
    shape: Annotated[list[Size], Field(min_length=3, max_length=3)]
    resize: Size | None
    mean: list[float] | None
    std: list[float] | None


class SavedRun(Part):
    """Everything that a run writes, as `RunState.save` does. Sparse weights and moments: [active units, unit size]."""

    config: SavedConfig
    versions: dict[str, str]
    progress: SavedProgress
    weights: dict[str, Tensor]
    masks: SavedMasks
    optimizer: dict[str, dict[str, Tensor | float | None]]
    method: dict[str, Any]
    data: SavedPosition
    ranks: Annotated[list[SavedRank], Field(min_length=1)]
    loss_scale: SavedScale | Annotated[dict[str, Any], Field(max_length=0)] = {}
    initial_weights: dict[str, Tensor] = {}
    input: SavedInput | None = None
    evaluated_on: dict[str, str] | None = None
    """Older checkpoints have neither."""
