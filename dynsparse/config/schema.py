"""The schema of a run: strict, typed, one class a section."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field, model_validator

from dynsparse.config.own_method import with_own_method
from dynsparse.config.sections import (
    CheckpointSettings,
    DistributedSettings,
    LogSettings,
    SparsitySettings,
    StartSettings,
    TrainSettings,
)
from dynsparse.errors import UserError
from dynsparse.first_masks.settings import IN_CONFIG, Beside, RandomMasks, contradiction
from dynsparse.methods import AnyMethod
from dynsparse.models import AnyModel
from pipelines.common.paths import PathText
from pipelines.common.settings import Count, Settings
from pipelines.datasets.registry import DataSettings


class RunConfig(Settings):
    """One run of training."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.=+-]{0,199}$")] | None = None
    """Name of the run's folder, one plain word; default {model}_{job_idx}."""
    job_idx: Count = 0
    """Number of the run, for lists of experiments."""
    runs: PathText = "runs"
    """Folder of all runs."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Seed of the initial weights, masks, growth, order of samples and augmentation."""
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
        if method.starts != "dense" and start.masks_from is None and not self.sparsity.is_said:
            raise ValueError(
                f"sparsity is not said, and method {method.name} needs it: give the fraction of zeros in convolutions "
                f"and linear layers, such as sparsity='{{conv: 0.9, fc: 0.9}}'"
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
        if method.needs_weights and start.weights_from is None and self.model.weights is None:
            raise ValueError(
                f"method.name is {method.name}, which starts from a trained dense network: set start.weights_from to "
                f"its run, or model.weights to a file"
            )
        method.require_epochs(train.epochs)
        if train.image_size is not None and not self.data.crops:
            raise ValueError(
                f"train.image_size is set, and data.name {self.data.name} does not crop images to a size: leave it "
                f"out, or use imagenet, parquet or webdataset"
            )
        if start.masks_from is not None and method.starts != "sparse":
            raise ValueError(f"start.masks_from does not go with method {method.name}, which starts without masks")
        return self

    @model_validator(mode="after")
    def _repeats(self) -> RunConfig:
        """Raise ValueError where a run is to repeat bit for bit, and a setting chooses by the clock."""
        if not self.train.deterministic:
            return self
        if self.distributed.gradients == "auto":
            raise ValueError(
                "train.deterministic is on and distributed.gradients is auto, which chooses by the clock: set it to "
                "dense or active"
            )
        if self.data.decoding.place == "auto":
            raise ValueError(
                "train.deterministic is on and data.decode is auto, which chooses by the clock: set it to gpu or cpu"
            )
        return self

    @model_validator(mode="after")
    def _semi_structured_fits(self) -> RunConfig:
        """Raise ValueError where no layer can train by 2:4 kernels, or the choice by the clock is not wanted."""
        train, pattern = self.train, self.method.pattern(self.sparsity.structure)
        if not train.semi_structured:
            return self
        if pattern != "2:4 transposable":
            raise ValueError(
                f"train.semi_structured is on, and the masks are {pattern}: set method.name to nm, method.transposable "
                f"to true and sparsity.structure to 2:4"
            )
        if train.precision == "fp32":
            raise ValueError(
                "train.semi_structured is on and train.precision is fp32: its kernels take 16 bits; set bf16 or fp16"
            )
        for name, why in (
            ("compile", "replaces the layers' kernels"),
            ("deterministic", "forbids a choice by the clock"),
        ):
            if getattr(train, name):
                raise ValueError(f"train.semi_structured and train.{name} are on, which {why}: leave one of them off")
        return self

    @model_validator(mode="after")
    def _cuda_graphs_fit(self) -> RunConfig:
        """Raise ValueError for CUDA graphs of what is not compiled, or whose gradients add up outside of them."""
        train = self.train
        if not train.cuda_graphs:
            return self
        if not train.compile:
            raise ValueError(
                "train.cuda_graphs is on and train.compile off, and it replays what is compiled: set train.compile=true"
            )
        if train.micro_batches > 1:
            raise ValueError(
                f"train.cuda_graphs is on and train.micro_batches is {train.micro_batches}: a replay overwrites the "
                f"gradients of the one before, which are to add up; leave one of them out"
            )
        return self

    @model_validator(mode="after")
    def _density_fits(self) -> RunConfig:
        if self.start.masks_from is not None and getattr(self.method, "density", None) is not None:
            raise ValueError(
                f"start.masks_from and method.density both say the first density of method {self.method.name}: give one"
            )
        if self.start.masks_from is not None and getattr(self.method, "exploration", None) is not None:
            raise ValueError(
                "method.exploration chooses the period by the sparsity, which start.masks_from leaves to its masks: "
                "give method.period, or the sparsity in place of masks"
            )
        return self

    @model_validator(mode="after")
    def _tied_fit(self) -> RunConfig:
        """Raise ValueError for sections that do not go with tied weights."""
        method, start, train = self.method, self.start, self.train
        if method.starts == "tied" and self.sparsity.split:
            raise ValueError(
                f"sparsity.split does not go with method {method.name}, which ties whole parameters: leave it out"
            )
        if method.starts == "tied" and start.weights_from is not None:
            raise ValueError(f"start.weights_from does not go with method {method.name}, whose weights are others")
        if method.starts == "tied" and train.penalty.group_lasso and self.sparsity.granularity > 2:
            raise ValueError(
                f"train.penalty.group_lasso with method {method.name} needs units that hold whole kernel slices: "
                f"set sparsity.granularity to 2 or 1"
            )
        return self

    @model_validator(mode="after")
    def _shrink_fits(self) -> RunConfig:
        """Raise ValueError for a network that has no masks of its own, or masks with a pattern, and is to shrink."""
        method, optimizer = self.method, self.train.optimizer.name
        if self.train.shrink is None:
            return self
        if method.starts == "tied":
            raise ValueError(
                f"train.shrink does not go with method {method.name}, whose weights are tied: leave it out"
            )
        if method.name == "dense":
            raise ValueError("train.shrink does not go with method dense, which uses every channel: leave it out")
        if self.sparsity.structure != "free":
            raise ValueError(
                f"train.shrink does not go with sparsity.structure {self.sparsity.structure}, whose pattern breaks as "
                f"inputs go: set the structure to free, or leave train.shrink out"
            )
        if optimizer == "torch/Adafactor":
            raise ValueError(
                "train.shrink does not go with train.optimizer torch/Adafactor, whose state mixes channels: take "
                "another optimizer, or leave train.shrink out"
            )
        return self

    @model_validator(mode="after")
    def _trained_weights_fit(self) -> RunConfig:
        """Raise ValueError for weights to start from that contradict each other, or the method."""
        if self.model.weights is not None and self.start.weights_from is not None:
            raise ValueError("model.weights and start.weights_from both name the weights to begin with: give one")
        if self.model.weights is not None and self.method.starts == "tied":
            raise ValueError(f"model.weights does not go with method {self.method.name}, whose weights are others")
        return self

    @model_validator(mode="after")
    def _frozen_are_there(self) -> RunConfig:
        if self.train.freeze and self.method.starts == "tied":
            raise ValueError(f"train.freeze does not go with method {self.method.name}, whose weights have other names")
        return self

    @model_validator(mode="after")
    def _first_masks_fit(self) -> RunConfig:
        """Raise ValueError for first masks that are chosen where there is nothing to choose, or to choose from."""
        start, method, initial = self.start, self.method, self.sparsity.initial
        if isinstance(initial, RandomMasks):
            return self
        if method.starts != "sparse":
            raise ValueError(
                f"sparsity.initial is {initial.name}, and method {method.name} starts without masks: leave it out"
            )
        if start.masks_from is not None:
            raise ValueError("sparsity.initial and start.masks_from both say the first masks: give one")
        if line := contradiction(initial, self._beside_first_masks, IN_CONFIG):
            raise ValueError(line)
        if initial.name == "magnitude" and self.model.weights is None and start.weights_from is None:
            raise ValueError(
                "sparsity.initial is magnitude, and fresh weights tell nothing: set model.weights to a trained network"
            )
        return self

    @property
    def _beside_first_masks(self) -> Beside:
        sparsity, method = self.sparsity, self.method
        return Beside(
            sparsity.allocation,
            sparsity.structure,
            method.first_sparsity(sparsity.shares),
            density_changes=getattr(method, "density", None) is not None,
        )

    @property
    def run_name(self) -> str:
        """The name of the run's folder."""
        return self.name or f"{self.model.name.replace('/', '_')}_{self.job_idx}"

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return Path(self.runs) / self.run_name

    def require_split(self, workers: int) -> None:
        """Raise UserError unless each worker gets a sample for each of its micro-batches, or a pair to mix.

        Parts may differ by as much.
        """
        train = self.train
        parts = workers * train.micro_batches * train.mixing.unit
        least = min(train.phases, key=lambda phase: phase.global_batch)
        if least.global_batch < parts:
            raise UserError(
                f"train.global_batch_size is {least.global_batch}{train.since(least)}; each of {workers} workers x "
                f"{train.micro_batches} micro-batches needs "
                f"{'a pair of samples (train.mixing)' if train.mixing.is_on else 'a sample'}: take {parts} or more"
            )

    def as_dict(self) -> dict[str, Any]:
        """Return plain data that `loading.parse` reads back to an equal config."""
        return self.model_dump()

    def as_yaml(self) -> str:
        """Return the resolved config as the YAML that a run's folder holds."""
        return yaml.safe_dump(self.as_dict(), sort_keys=False)


def json_schema() -> str:
    """Return the JSON Schema of the config, for editors."""
    schema = with_own_method(RunConfig.model_json_schema())
    return json.dumps({"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}, indent=2) + "\n"
