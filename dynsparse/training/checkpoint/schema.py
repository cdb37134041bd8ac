"""The schema of a run's checkpoint: its parts, their types and their ranges."""

from __future__ import annotations

import math
from functools import cached_property
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from dynsparse.config.recipe import BestBy
from dynsparse.masks.bits import unpack_bits
from dynsparse.training.progress import Count, Progress

Size = Annotated[int, Field(ge=1, lt=1 << 40)]


class Part(BaseModel):
    """A part whose types are strict. Unknown keys pass: another version wrote them."""

    model_config = ConfigDict(strict=True, extra="ignore", arbitrary_types_allowed=True)


class SavedProgress(Progress):
    """Progress in a checkpoint, which always says these two."""

    epoch: Count
    step: Count


class SavedBlock(Part):
    """Place of a layer that is a block of rows of a parameter, see `RowBlock`."""

    parameter: str
    start: Count
    rows: Size


class SavedLayer(Part):
    """Mask of a layer, packed to bits, and which of its positions were ever active. Format 1 has `explored`."""

    shape: Annotated[list[Size], Field(min_length=1, max_length=8)]
    mask_dims: Size
    mask: Tensor
    explored: Tensor | None = None
    explored_inactive: Tensor | None = None
    block: SavedBlock | None = None
    """None, as in older checkpoints: the layer is a whole parameter."""

    @property
    def units(self) -> int:
        """Units in the layer."""
        return math.prod(self.shape[: self.mask_dims])

    @property
    def unit_size(self) -> int:
        """Weights in a unit."""
        return math.prod(self.shape[self.mask_dims :])

    @cached_property
    def active_units(self) -> int:
        """Bits set in the mask, which must have a bit for each unit."""
        return int(unpack_bits(self.mask, self.units).count_nonzero())


class SavedMasks(Part):
    """Masks of all sparse layers by name, and their budget in weights."""

    budget: Count
    layers: dict[str, SavedLayer]

    @property
    def by_parameter(self) -> dict[str, list[SavedLayer]]:
        """The layers in each parameter that has any, in the order of their rows."""
        found: dict[str, list[SavedLayer]] = {}
        for name, layer in self.layers.items():
            found.setdefault(layer.block.parameter if layer.block else name, []).append(layer)
        for layers in found.values():
            layers.sort(key=lambda layer: layer.block.start if layer.block else 0)
        return found


class SavedRandom(Part):
    """States of torch's generators, uint8."""

    cpu: Tensor
    cuda: Tensor | None = None


class SavedRank(Part):
    """State that differs from rank to rank. `sums` is float64 [3]: loss, top-1 hits, samples of the epoch."""

    buffers: dict[str, Tensor]
    random: SavedRandom
    sums: Tensor
    ema_buffers: dict[str, Tensor] | None = None
    bad_samples: dict[int, str] = {}


class SavedPosition(Part):
    """Position in the sample order, and what the order depends on."""

    seed: int
    samples: Count
    global_batch: Size
    batches: list[Annotated[list[Count], Field(min_length=2, max_length=2)]] | None = None
    listing: str | None = None
    split: str | None = None
    repeated_augmentation: Size = 1
    epoch: Count
    batch: Count


class Named(Part):
    """Section of a config, as far as its kind."""

    name: str


class SavedEmaSettings(Part):
    """Section `train.ema`, as far as it is compared."""

    best_by: BestBy = "model"


class SavedTrain(Part):
    """Section `train`, as far as it is compared."""

    optimizer: Named
    start_epoch: Count = 0
    ema: SavedEmaSettings | None = None


class SavedEma(Part):
    """Average of the weights. Those of sparse layers are [active units, unit size]."""

    updates: Count
    weights: dict[str, Tensor]


class SavedModel(Part):
    """Section `model`, as far as it is compared."""

    weights: str | None = None


class SavedStart(Part):
    """Section `start`."""

    weights_from: str | None = None
    masks_from: str | None = None


class SavedConfig(Part):
    """Config of the run, as far as it is compared with that of a resume. `config.parse` reads the whole."""

    seed: int
    model: SavedModel = SavedModel()
    method: Named
    start: SavedStart = SavedStart()
    train: SavedTrain
    sparsity: dict[str, Any]


class SavedScale(Part):
    """State of GradScaler, where there is one."""

    scale: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    growth_factor: Annotated[float, Field(gt=1, allow_inf_nan=False)]
    backoff_factor: Annotated[float, Field(gt=0, lt=1)]
    growth_interval: Size
    growth_tracker: Annotated[int, Field(alias="_growth_tracker", ge=0)]


class SavedInput(Part):
    """Input and classes of the network: see `network_input.network_input`."""

    class_names: list[str]
    number_of_classes: Size
    shape: Annotated[list[Size], Field(min_length=3, max_length=3)]
    resize: Size | None
    mean: list[float] | None
    std: list[float] | None


class SavedKept(Part):
    """Channels that a module has kept: int64, rising."""

    outputs: Tensor | None = None
    inputs: Tensor | None = None


class SavedShrinkage(Part):
    """A shrink (`train.shrink`): the epoch that it came before, and what each module that changed has kept."""

    epoch: Count
    modules: dict[str, SavedKept]


class SavedRun(Part):
    """Everything that `RunState.save` saves. Sparse weights and moments are [active units, unit size].

    Those of a parameter that packs several layers have one dimension.
    """

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
    gradient_norms: Tensor | None = None
    ema: SavedEma | None = None
    teacher: str | None = None
    """Digest of the run's teacher."""
    shrinkages: list[SavedShrinkage] = []
    input: SavedInput | None = None
    evaluated_on: dict[str, str] | None = None
    """Older checkpoints have neither this nor `input` nor `gradient_norms`."""
