"""The schema of a run: strict, typed, one class a section.

A config is a YAML file plus `section.key=value` overrides. Everything that is
wrong with it is listed at once, each with where it stands, the value, the rule
and the remedy.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, ValidationError, ValidationInfo, field_validator, model_validator

from dynsparse.config.documents import MOST_LEVELS
from dynsparse.config.reading import plain, problems, read, read_file, under
from dynsparse.config.shipped import found
from dynsparse.distributed.allreduce import Gradients
from dynsparse.errors import UserError
from dynsparse.explain import explain_all, kind_of, place
from dynsparse.masks.granularity import Granularity
from dynsparse.methods import AnyMethod
from dynsparse.models import AnyModel, more_names
from dynsparse.optimizers import OptimizerSettings, SgdSettings
from dynsparse.reallocation import OnDesync
from dynsparse.runtime import Backend
from dynsparse.schedules import LrSettings, StepLr
from pipelines.common.paths import PathText
from pipelines.common.settings import AtLeast1, Count, Settings
from pipelines.common.text import cut
from pipelines.datasets.registry import DataSettings

Sparsity = Annotated[float, Field(ge=0, lt=1)]
Patterns = Annotated[list[Annotated[str, Field(max_length=1000)]], Field(max_length=1000)]
MOST_IN_A_BATCH = 1 << 20


class SparsitySettings(Settings):
    """Which layers are sparse, how sparse, and in what units."""

    conv: Sparsity = 0.5
    """Share of the weights of each sparse convolution that are 0."""
    fc: Sparsity = 0.98
    """Share of the weights of each sparse linear layer that are 0."""
    allocation: Literal["uniform", "erk"] = "uniform"
    """uniform: each layer as above; erk: as many weights in all, but small layers are denser (Evci et al. 2020)."""
    granularity: Granularity = 4
    """Unit of a convolution: 4 an element, 3 a kernel row, 2 a kernel slice, 1 a filter."""
    include: Annotated[Patterns, Field(min_length=1)] | None = None
    """Shell patterns of parameter names to make sparse (`layer3.*`), instead of the model's own choice."""
    exclude: Patterns = []
    """Shell patterns of parameter names to keep dense."""


class PenaltySettings(Settings):
    """Pulls the active weights of the sparse layers to 0."""

    l1: Annotated[float, Field(ge=0)] = 0.0
    """Coefficient of the sum of magnitudes."""
    group_lasso: bool = False
    """In convolutions, of the sum of the norms of the kernel slices instead."""


class StartSettings(Settings):
    """What to take over from another run: its folder (the latest state), FOLDER_initial, or a checkpoint."""

    weights_from: Annotated[PathText, Field(min_length=1)] | None = None
    """Weights to begin with."""
    masks_from: Annotated[PathText, Field(min_length=1)] | None = None
    """Masks to begin with, instead of random ones; they decide the sparsity."""


class TrainSettings(Settings):
    """Epochs, batches, optimizer, precision."""

    epochs: AtLeast1 = 10
    start_epoch: Count = 0
    """Epoch that a new run begins with, for schedules; a resumed one goes on where it was."""
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
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """bf16, fp16: forward under autocast, with fp16 the loss is scaled; weights and optimizer stay float32."""
    channels_last: bool = False
    """Memory format of convolution weights and images; faster on GPUs with bf16."""
    compile: bool = False
    """torch.compile the model."""
    max_bad_steps: AtLeast1 = 10
    """Steps in a row to skip because the loss or a gradient is no finite number; then training stops."""
    evaluate_train: bool = False
    """After each epoch, evaluate on the training samples too."""

    def samples_at_once(self, workers: int) -> int:
        """Samples of a worker in one forward pass; in some it may be one more."""
        return self.global_batch_size // (workers * self.micro_batches)

    @field_validator("optimizer", "lr", mode="before")
    @classmethod
    def _named(cls, section: Any, info: ValidationInfo) -> Any:
        """A section without a name is the one that the default is, so that train.lr.table=0.1 says enough."""
        if not isinstance(section, Mapping) or "name" in section:
            return section
        return {"name": {"optimizer": "sgd", "lr": "steps"}[str(info.field_name)], **section}


class DistributedSettings(Settings):
    """How the workers talk."""

    backend: Backend = "auto"
    """auto: NCCL where there are GPUs, gloo on the CPU otherwise."""
    timeout_seconds: Annotated[float, Field(gt=0, le=7 * 24 * 3600)] = 300
    """How long a worker waits for the others before it gives up: it must be longer than any pause that is none."""
    gradients: Gradients = "dense"
    """What travels between the ranks each step. active: the gradients of active weights alone, bytes fall with the
    density; dense: all; auto: whatever proves faster in steps at the start. With more than two ranks the two differ in
    rounding, so that runs repeat bit for bit only where it is set."""
    on_desync: OnDesync = "abort"
    """When ranks hold different masks or weights: stop and name the layers, or take over rank 0's."""

    @property
    def timeout(self) -> timedelta:
        return timedelta(seconds=self.timeout_seconds)


class CheckpointSettings(Settings):
    """When to save, and what to keep. The initial, the latest and the best state are always kept.

    Checkpoints are written in the background, while training goes on.
    """

    every_epochs: AtLeast1 = 1
    every_steps: AtLeast1 | None = None
    """Save in mid-epoch too."""
    every_minutes: Annotated[float, Field(gt=0, le=7 * 24 * 60)] | None = None
    """Save after the step at which so long has passed since the last save, for whatever reason that was."""
    keep: AtLeast1 = 2
    """Number of most recent checkpoints to keep. Where the newest is damaged, the one before is resumed from: with 1
    there is none, and one that is damaged is a run that is lost."""


class LogSettings(Settings):
    """What observers get to see."""

    every_steps: AtLeast1 = 50
    """Steps between two readings of loss and learning rate."""
    tensorboard: bool = True
    histograms: bool = True
    """Histograms of the active weights in TensorBoard, once an epoch."""
    progress: Literal["auto", "bar", "lines", "none"] = "auto"
    """auto: a bar in a terminal, lines elsewhere."""


class RunConfig(Settings):
    """One run of training."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.=+-]{0,199}$")] | None = None
    """Name of the run's folder, one plain word; default {model}_{job_idx}."""
    job_idx: Count = 0
    """Number of the run, for lists of experiments."""
    runs: PathText = "runs"
    """Folder of all runs."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    model: AnyModel
    sparsity: SparsitySettings = SparsitySettings()
    method: AnyMethod
    start: StartSettings = StartSettings()
    data: DataSettings
    train: TrainSettings = TrainSettings()
    distributed: DistributedSettings = DistributedSettings()
    checkpoint: CheckpointSettings = CheckpointSettings()
    log: LogSettings = LogSettings()

    @model_validator(mode="after")
    def _sections_fit(self) -> RunConfig:
        """Raise ValueError for sections that are right alone and wrong together."""
        method, start, train = self.method, self.start, self.train
        if train.start_epoch >= train.epochs:
            raise ValueError(f"train.start_epoch is {train.start_epoch}; it must be below train.epochs, {train.epochs}")
        if train.lr.warmup_epochs >= train.epochs:
            raise ValueError(
                f"train.lr.warmup_epochs is {train.lr.warmup_epochs:g}; the rate would never reach its value in "
                f"{train.epochs} epochs (train.epochs): set train.lr.warmup_epochs below that, or train longer"
            )
        if method.starts == "dense" and self.sparsity.allocation != "uniform":
            raise ValueError(
                f"sparsity.allocation is {self.sparsity.allocation}, and method {method.name} starts from a dense "
                f"network and shares out by a rule of its own: leave it at uniform"
            )
        if self.data.dtype == "float16" and train.precision == "fp32":
            raise ValueError(
                "data.dtype is float16, which the network's float32 weights cannot be multiplied with: "
                "set train.precision=bf16 or fp16, or data.dtype=float32"
            )
        if method.needs_weights and start.weights_from is None:
            raise ValueError(
                f"method.name is {method.name}, which starts from a trained dense network: set start.weights_from to "
                f"its run"
            )
        method.require_epochs(train.epochs)
        if start.masks_from is not None and method.starts != "sparse":
            raise ValueError(f"start.masks_from does not go with method {method.name}, which starts without masks")
        if method.starts == "tied" and start.weights_from is not None:
            raise ValueError(f"start.weights_from does not go with method {method.name}, whose weights are others")
        if method.starts == "tied" and train.penalty.group_lasso and self.sparsity.granularity > 2:
            raise ValueError(
                f"train.penalty.group_lasso with method {method.name} needs units that hold whole kernel slices: "
                f"set sparsity.granularity to 2 or 1"
            )
        return self

    @property
    def run_name(self) -> str:
        return self.name or f"{self.model.name.replace('/', '_')}_{self.job_idx}"

    @property
    def folder(self) -> Path:
        return Path(self.runs) / self.run_name

    def require_split(self, workers: int) -> None:
        """Raise UserError unless each worker gets a sample for each of its micro-batches. Parts may differ by one."""
        train = self.train
        parts = workers * train.micro_batches
        if train.global_batch_size < parts:
            raise UserError(
                f"train.global_batch_size is {train.global_batch_size}; each of {workers} workers x "
                f"{train.micro_batches} micro-batches needs a sample: take {parts} or more"
            )

    def as_dict(self) -> dict[str, Any]:
        """Plain data that `parse` reads back to an equal config."""
        return self.model_dump()

    def as_yaml(self) -> str:
        return yaml.safe_dump(self.as_dict(), sort_keys=False)


def load(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a YAML file, apply `section.key=value` overrides, check. UserError lists all that is wrong."""
    return parse(read_mapping(path), overrides, source=str(path))


def read_mapping(path: str | Path) -> dict[Any, Any]:
    """The sections that a config's file holds, unchecked. UserError if it cannot be read or holds none."""
    raw = plain(read_file(found(path), "--config", "configs/"), [RunConfig])
    if not isinstance(raw, dict):
        raise UserError(f"{path}: {kind_of(raw)}; a config is a mapping of sections, as those in configs/ are")
    return raw


def parse(
    raw: Mapping[str, Any],
    overrides: Sequence[str] = (),
    source: str = "config",
    flags: Mapping[tuple[str, ...], str] | None = None,
) -> RunConfig:
    """A checked config from plain data and overrides. UserError lists all that is wrong.

    `flags` are options of the command line by the keys that they have set, so that an error names the option.
    """
    merged, overridden, wrong = merge(raw, overrides)
    if unfit := [f"{place(keys, '', source, overridden, flags or {})}: {what}" for keys, what in problems(merged)]:
        raise UserError(*wrong, *unfit)
    try:
        config = RunConfig.model_validate(merged)
    except ValidationError as error:
        wrong += explain_all(error, RunConfig, source, overridden, flags, {"model": more_names})
    if wrong:
        raise UserError(*wrong)
    return config


def merge(raw: Mapping[str, Any], overrides: Sequence[str]) -> tuple[dict[str, Any], list[tuple[str, ...]], list[str]]:
    """The data with the overrides in it, the paths of those, and an error for each that is none."""
    merged = _copy(raw)
    overridden: list[tuple[str, ...]] = []
    wrong: list[str] = []
    for text in overrides:
        try:
            overridden.append(_override(merged, text))
        except UserError as error:
            wrong += error.lines
    return merged, overridden, wrong


def json_schema() -> str:
    """JSON Schema of the config, for editors."""
    schema = RunConfig.model_json_schema()
    return json.dumps({"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}, indent=2) + "\n"


def _copy(raw: Any, level: int = 0) -> Any:
    """With its mappings copied, as far down as a config can go."""
    if level > MOST_LEVELS or not isinstance(raw, Mapping):
        return raw
    return {key: _copy(value, level + 1) for key, value in raw.items()}


def _override(config: dict[str, Any], text: str) -> tuple[str, ...]:
    """Set one `section.key=value` in place; returns its path."""
    path, equals, value = text.partition("=")
    keys = tuple(path.strip().split("."))
    if not equals or not all(keys):
        raise UserError(f"'{cut(text)}' is no override; write section.key=value, such as train.epochs=20")
    if re.search(r"^#|\s#", value) and not re.search("[\"']", value):
        raise UserError(
            f"'{cut(text)}': what follows # would be a comment; put the value in quotes of its own, '\"...\"'"
        )
    types: list[Any] = [RunConfig]
    for key in keys:
        types = under(types, key)
    put(config, keys, plain(read(value, f"'{cut(text)}'"), types), f"'{cut(text)}'")
    return keys


def put(config: dict[str, Any], keys: Sequence[str], value: Any, source: str) -> None:
    """Set a key in place, making the sections above it. UserError, naming `source`, if one of them is no section."""
    section = config
    for key in keys[:-1]:
        section = section.setdefault(key, {})
        if not isinstance(section, dict):
            raise UserError(f"{source}: {key} {kind_of(section)}, no section; its keys cannot be set")
    section[keys[-1]] = value
