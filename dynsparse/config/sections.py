"""The sections of a config, one class each."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from dynsparse.distributed.allreduce import Gradients
from dynsparse.masks.granularity import Granularity
from dynsparse.optimizers import OptimizerSettings, SgdSettings
from dynsparse.reallocation import OnDesync
from dynsparse.runtime import Backend
from dynsparse.schedules import LrSettings, StepLr
from pipelines.common.paths import PathText
from pipelines.common.settings import AtLeast1, Count, Settings

Sparsity = Annotated[float, Field(ge=0, lt=1)]
Patterns = Annotated[list[Annotated[str, Field(max_length=1000)]], Field(max_length=1000)]
MOST_IN_A_BATCH = 1 << 20


class SparsitySettings(Settings):
    """The sparse layers, their sparsity and their unit."""

    conv: Sparsity = 0.5
    """Fraction of the weights of each sparse convolution that are 0."""
    fc: Sparsity = 0.98
    """Fraction of the weights of each sparse linear layer that are 0."""
    allocation: Literal["uniform", "erk"] = "uniform"
    """uniform: each layer as above. erk: the same total, with small layers denser (Evci et al. 2020)."""
    granularity: Granularity = 4
    """Unit of a convolution: 4 an element, 3 a kernel row, 2 a kernel slice, 1 a filter."""
    include: Annotated[Patterns, Field(min_length=1)] | None = None
    """Shell patterns of parameter names to make sparse (`layer3.*`), instead of the model's own choice."""
    exclude: Patterns = []
    """Shell patterns of parameter names to keep dense."""


class PenaltySettings(Settings):
    """A penalty that pulls the active weights of the sparse layers to 0."""

    l1: Annotated[float, Field(ge=0)] = 0.0
    """Coefficient of the sum of magnitudes."""
    group_lasso: bool = False
    """Sum the norms of the kernel slices of convolutions instead."""


class StartSettings(Settings):
    """Weights and masks from another run: its folder (the latest state), FOLDER_initial, or a checkpoint."""

    weights_from: Annotated[PathText, Field(min_length=1)] | None = None
    """Weights to begin with."""
    masks_from: Annotated[PathText, Field(min_length=1)] | None = None
    """Masks to begin with, instead of random ones; they decide the sparsity."""


class TrainSettings(Settings):
    """Epochs, batches, optimizer, precision."""

    epochs: AtLeast1 = 10
    """Number of passes over the training samples in the whole run."""
    start_epoch: Count = 0
    """Epoch that a new run begins with, for schedules; a resumed run continues where it was."""
    global_batch_size: Annotated[int, Field(ge=1, le=MOST_IN_A_BATCH)] = 100
    """Samples in one optimizer step, over all workers and micro-batches."""
    micro_batches: Annotated[int, Field(ge=1, le=MOST_IN_A_BATCH)] = 1
    """Gradient accumulation: parts in which each worker takes its share of a batch."""
    evaluation_batch_size: Annotated[int, Field(ge=1, le=MOST_IN_A_BATCH)] = 256
    """Samples that one worker evaluates at once."""
    optimizer: OptimizerSettings = SgdSettings()
    lr: LrSettings = StepLr()
    penalty: PenaltySettings = PenaltySettings()
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Fraction of each target that is spread evenly over all classes; 0 is the plain cross-entropy."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """bf16, fp16: forward pass under autocast; fp16 also scales the loss. Weights and optimizer stay float32."""
    channels_last: bool = False
    """Memory format of convolution weights and images; faster on GPUs with bf16."""
    compile: bool = False
    """torch.compile the model."""
    max_bad_steps: AtLeast1 = 10
    """Steps in a row to skip because the loss or a gradient is NaN or inf; then training stops."""
    evaluate_train: bool = False
    """After each epoch, evaluate on the training samples too."""

    def samples_at_once(self, workers: int) -> int:
        """Samples of a worker in one forward pass. Some passes may have one more."""
        return self.global_batch_size // (workers * self.micro_batches)

    @field_validator("optimizer", "lr", mode="before")
    @classmethod
    def _named(cls, section: Any, info: ValidationInfo) -> Any:
        """Name a section that has no name as its default is, so that train.lr.table=0.1 says enough."""
        if not isinstance(section, Mapping) or "name" in section:
            return section
        return {"name": {"optimizer": "sgd", "lr": "steps"}[str(info.field_name)], **section}


class DistributedSettings(Settings):
    """Communication between the workers."""

    backend: Backend = "auto"
    """auto: NCCL where there are GPUs, gloo on the CPU otherwise."""
    timeout_seconds: Annotated[float, Field(gt=0, le=7 * 24 * 3600)] = 300
    """Seconds that a worker waits for the others before it gives up. Set it above the longest time one works alone."""
    gradients: Gradients = "dense"
    """Gradients that the ranks exchange each step. dense: all of them. active: only those of active weights, so that
    bytes fall with the density. auto: the faster of both, measured in the first steps. With more than two ranks the two
    differ in rounding, so runs with auto do not repeat bit for bit."""
    on_desync: OnDesync = "abort"
    """Action when ranks hold different masks or weights: abort and name the layers, or repair from rank 0."""

    @property
    def timeout(self) -> timedelta:
        """`timeout_seconds`, as torch wants it."""
        return timedelta(seconds=self.timeout_seconds)


class CheckpointSettings(Settings):
    """Saving. The initial, the latest and the best state are always kept.

    Checkpoints are written in the background, while training goes on.
    """

    every_epochs: AtLeast1 = 1
    """Epochs between two saves."""
    every_steps: AtLeast1 | None = None
    """Steps between two saves, in addition: also within an epoch."""
    every_minutes: Annotated[float, Field(gt=0, le=7 * 24 * 60)] | None = None
    """Longest time between two saves, in minutes. The next save follows at the end of a step."""
    keep: AtLeast1 = 2
    """Number of most recent checkpoints to keep. If the newest is damaged, a run resumes from the one before. With 1
    there is no earlier one, and the run is lost."""


class LogSettings(Settings):
    """Logs and progress."""

    every_steps: AtLeast1 = 50
    """Steps between two readings of loss and learning rate."""
    tensorboard: bool = True
    """Write TensorBoard events into the run's folder."""
    histograms: bool = True
    """Histograms of the active weights in TensorBoard, once an epoch."""
    progress: Literal["auto", "bar", "lines", "none"] = "auto"
    """auto: a bar in a terminal, lines elsewhere."""
