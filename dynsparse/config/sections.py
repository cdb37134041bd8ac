"""The sections of a config, one class each."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from dynsparse.config.by_epoch import MOST_IN_A_BATCH, GlobalBatch, ImageSize, at, phases_of
from dynsparse.config.recipe import EmaSettings, ShrinkSettings, TeacherSettings
from dynsparse.distributed.allreduce import Gradients
from dynsparse.first_masks.settings import FirstMasks, RandomMasks
from dynsparse.masks.granularity import Granularity, Kind
from dynsparse.masks.splitting import MOST_PARTS
from dynsparse.masks.structure import Structure
from dynsparse.optimizers import OptimizerSettings, ParameterSettings, SgdSettings
from dynsparse.reallocation import OnDesync
from dynsparse.runtime import Backend
from dynsparse.schedules import LrSettings, StepLr
from pipelines.common.paths import PathText
from pipelines.common.settings import AtLeast1, Count, Settings
from pipelines.mixing import MixingSettings
from pipelines.phases import Phase

Sparsity = Annotated[float, Field(ge=0, lt=1)]
Pattern = Annotated[str, Field(max_length=1000)]
Patterns = Annotated[list[Pattern], Field(max_length=1000)]


class SparsitySettings(Settings):
    """The sparse layers, their sparsity and their unit."""

    conv: Sparsity | None = None
    """Fraction of the weights of each sparse convolution that are 0. null: convolutions stay dense."""
    fc: Sparsity | None = None
    """Fraction of the weights of each sparse linear layer that are 0. null: linear layers stay dense."""
    allocation: Literal["uniform", "erk"] = "uniform"
    """uniform: each layer as above. erk: the same total, with small layers denser (Evci et al. 2020)."""
    initial: FirstMasks = RandomMasks(name="random")
    """First masks: a name, or settings with one."""
    granularity: Granularity = 4
    """Unit of a convolution: 4 an element, 3 a kernel row, 2 a kernel slice, 1 a filter."""
    structure: Structure = "free"
    """Pattern of the masks. free: none. fan_in: as many inputs for each output. N:M, such as 2:4: N of M consecutive
    inputs, which is a sparsity of 1 - N/M."""
    include: Annotated[Patterns, Field(min_length=1)] | None = None
    """Shell patterns of parameter names to make sparse (`layer3.*`), instead of the model's own choice."""
    exclude: Patterns = []
    """Shell patterns of parameter names to keep dense."""
    split: Annotated[dict[Pattern, Annotated[int, Field(ge=1, le=MOST_PARTS)]], Field(max_length=1000)] = {}
    """Parameters that pack several layers as equal blocks of rows, by shell patterns, and their number:
    `{"*.qkv.weight": 3}` has query, key and value as layers of their own. nn.MultiheadAttention and the attention
    classes of torchvision and timm that are known to pack them so are split without it; 1 keeps one whole."""

    @property
    def is_said(self) -> bool:
        """Whether the config says how sparse the network is to be."""
        return self.conv is not None or self.fc is not None

    @property
    def shares(self) -> dict[Kind, float]:
        """Fraction of zeros by kind of layer."""
        return {"conv": self.conv or 0.0, "fc": self.fc or 0.0}


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


class EarlyStopSettings(Settings):
    """An early end of a run that no longer gets better: on the validation samples, or the test samples without any."""

    patience: AtLeast1 | None = None
    """Evaluations in a row without a better top-1 after which the run ends; null: it trains all epochs."""
    improvement: Annotated[float, Field(ge=0, le=100)] = 0.0
    """Percentage points by which top-1 must rise to count as better."""

    @model_validator(mode="after")
    def _ends(self) -> EarlyStopSettings:
        if self.improvement and self.patience is None:
            raise ValueError(
                f"improvement is {self.improvement:g}, and patience is not given: no run ends early; set patience, "
                f"such as 3, or leave improvement out"
            )
        return self


class ClipSettings(Settings):
    """Clipping of the gradients that the optimizer uses, masked and reduced over the workers; by norm, then by value.

    The norm before clipping is logged.
    """

    norm: Annotated[float, Field(gt=0, le=1e30)] | None = None
    """Largest norm of all gradients together; larger ones are scaled down to it."""
    value: Annotated[float, Field(gt=0, le=1e30)] | None = None
    """Largest magnitude of each number in a gradient."""

    @property
    def is_on(self) -> bool:
        """Whether anything is clipped."""
        return self.norm is not None or self.value is not None


class TrainSettings(Settings):
    """Epochs, batches, optimizer, precision."""

    epochs: AtLeast1 = 10
    """Number of passes over the training samples in the whole run."""
    start_epoch: Count = 0
    """Epoch that a new run begins with, for schedules; a resumed run continues where it was."""
    global_batch_size: GlobalBatch = 100
    """Samples in one optimizer step, over all workers and micro-batches; or a table by epoch, as for smaller images."""
    image_size: ImageSize | None = None
    """Height and width of the training images, or a table by epoch (progressive resizing). Evaluation keeps
    `data.image_size`, and so does training if this is not given."""
    micro_batches: Annotated[int, Field(ge=1, le=MOST_IN_A_BATCH)] = 1
    """Gradient accumulation: parts in which each worker takes its share of a batch."""
    evaluation_batch_size: Annotated[int, Field(ge=1, le=MOST_IN_A_BATCH)] = 256
    """Samples that one worker evaluates at once."""
    optimizer: OptimizerSettings = SgdSettings()
    parameters: ParameterSettings = ParameterSettings()
    lr: LrSettings = StepLr()
    penalty: PenaltySettings = PenaltySettings()
    clip: ClipSettings = ClipSettings()
    loss: Literal["cross_entropy", "bce"] = "cross_entropy"
    """bce: binary cross-entropy of each class, their mean (Wightman et al. 2021). Both take soft labels."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Fraction of each target that is spread evenly over all classes; 0 leaves the targets as they are."""
    mixing: MixingSettings = MixingSettings()
    teacher: TeacherSettings | None = None
    """A network to learn from beside the labels; null: none."""
    ema: EmaSettings | None = None
    """An average of the weights beside the model; null: none."""
    shrink: ShrinkSettings | None = None
    """Epochs before which the network loses the channels that are of no use; null: it keeps its size."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """bf16, fp16: forward pass under autocast; fp16 also scales the loss. Weights and optimizer stay float32."""
    channels_last: bool = False
    """Memory format of convolution weights and images; faster on GPUs with bf16."""
    compile: bool = False
    """torch.compile the model."""
    cuda_graphs: bool = False
    """Replay each pass of the compiled model as a CUDA graph, so that the host queues it at once. It pays where kernels
    are small. It takes memory of its own for each shape of a batch."""
    semi_structured: bool = False
    """Multiply by 2:4 weights with a GPU's sparse tensor cores, in linear layers and 1x1 convolutions, forward and for
    the gradients of their inputs, where the start of the run measures that it is faster. For transposable `nm`."""
    freeze: Patterns = []
    """Shell patterns of parameter names to keep as they are (`layer1.*`). A frozen sparse layer keeps its mask."""
    max_bad_steps: AtLeast1 = 10
    """Steps in a row to skip because the loss or a gradient is NaN or inf; then training stops."""
    evaluate_train: bool = False
    """Evaluate on the training samples too, as often as on the others."""
    evaluate_every_epochs: AtLeast1 = 1
    """Epochs between two evaluations. The last epoch is always evaluated."""
    early_stop: EarlyStopSettings = EarlyStopSettings()
    deterministic: bool = False
    """Let torch use deterministic algorithms alone: a run repeats bit for bit on a GPU, and is slower there."""

    @property
    def phases(self) -> tuple[Phase, ...]:
        """Ranges of epochs with one global batch and one size of images."""
        return phases_of(self.global_batch_size, self.image_size, self.epochs)

    def since(self, phase: Phase) -> str:
        """Return where a phase begins, for messages; empty if there is one alone."""
        return f" from epoch {phase.first} on" if len(self.phases) > 1 else ""

    def batch_at(self, epoch: int) -> int:
        """Samples in one optimizer step of an epoch, counted from 0."""
        return at(self.global_batch_size, epoch)

    def size_at(self, epoch: int) -> int | None:
        """Height and width of an epoch's training images; None: as the data set has them."""
        return None if self.image_size is None else at(self.image_size, epoch)

    def samples_at_once(self, workers: int, epoch: int) -> int:
        """Samples of a worker in one forward pass of an epoch. Some passes may have one more, or a pair to mix."""
        unit = self.mixing.unit
        return self.batch_at(epoch) // unit // (workers * self.micro_batches) * unit

    @model_validator(mode="after")
    def _pairs(self) -> TrainSettings:
        """Raise ValueError for a batch that cannot be mixed in pairs."""
        for phase in self.phases:
            if (batch := phase.global_batch) % self.mixing.unit:
                raise ValueError(
                    f"global_batch_size is {batch}{self.since(phase)}, and mixing mixes its samples in pairs: "
                    f"take an even number, such as {batch + 1}"
                )
        return self

    @model_validator(mode="after")
    def _in_time(self) -> TrainSettings:
        """Raise ValueError for what would begin after the run, or end before it."""
        ema, until = self.ema, self.mixing.until_epoch
        if ema is not None and ema.start_epoch >= self.epochs:
            raise ValueError(
                f"ema.start_epoch is {ema.start_epoch:g}, and the run has {self.epochs} epochs: the average would stay "
                f"a copy of the weights; set it below that, or leave ema out"
            )
        for epoch in self.shrink.at if self.shrink is not None else ():
            if not self.start_epoch < epoch < self.epochs:
                raise ValueError(
                    f"shrink.at names epoch {epoch}, and the run begins with epoch {self.start_epoch} and has "
                    f"{self.epochs}: a shrink comes between two of them, take one above {self.start_epoch} and below "
                    f"{self.epochs}"
                )
        if until is not None and until <= self.start_epoch:
            raise ValueError(
                f"mixing.until_epoch is {until}, and start_epoch {self.start_epoch}: nothing would be mixed; set it "
                f"above that, or leave mixing out"
            )
        return self

    @model_validator(mode="after")
    def _labels_count(self) -> TrainSettings:
        """Raise ValueError for settings of the labels' loss where the teacher's targets are all of it."""
        defaults = {"label_smoothing": 0.0, "loss": "cross_entropy"}
        changed = {name: getattr(self, name) for name, default in defaults.items() if getattr(self, name) != default}
        if self.teacher is not None and self.teacher.share == 1 and changed:
            name, value = next(iter(changed.items()))
            raise ValueError(
                f"teacher.share is 1, so that labels count for nothing, and {name} is {value}: set share below 1, or "
                f"leave {name} out"
            )
        return self

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
    bucket_mb: Annotated[float, Field(ge=1, le=65_536)] | None = None
    """MiB of gradients that travel together, while the backward pass makes the next ones. null: as torch has it, 25
    after a first bucket of 1. With more than two ranks last bits depend on it."""
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
    wandb: bool = False
    """Show the run at Weights & Biases too. WANDB_MODE, WANDB_API_KEY and WANDB_ENTITY have their usual effect."""
    mlflow: bool = False
    """Show the run in MLflow too, at the server or store that MLFLOW_TRACKING_URI names."""
    project: Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_. +-]{0,127}$")] | None = None
    """W&B's project and MLflow's experiment; default: what WANDB_PROJECT or MLFLOW_EXPERIMENT_NAME says, else
    dynsparse."""
    histograms: bool = True
    """Histograms of the active weights in TensorBoard and W&B, once an epoch."""
    progress: Literal["auto", "bar", "lines", "none"] = "auto"
    """auto: a bar in a terminal, lines elsewhere."""
    profile: Annotated[int, Field(ge=1, le=1000)] | None = None
    """Steps to record with torch.profiler soon after each start; each worker writes a trace into the run's folder."""
    memory_history: bool = False
    """Record the origin of each allocation on GPUs, for the snapshot that is written when memory runs out. It costs
    time and memory."""
