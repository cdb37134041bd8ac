"""Observers, and the frozen reports that they see. They live on rank 0 alone, and never reach into the trainer.

An observer cannot change a run: the weights are the same whichever observers are switched on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from dynsparse.appender import Appender
from dynsparse.flops import Costs
from dynsparse.masks import LayerSpec
from dynsparse.reallocation import ReallocationReport
from dynsparse.shrinking.sizes import Size, compared
from dynsparse.training.evaluate import Evaluations
from pipelines.common.epochs import EpochTable
from pipelines.phases import Phase


@dataclass(frozen=True)
class RunReport:
    """A run begins, or is resumed."""

    name: str
    config: Mapping[str, Any]
    config_yaml: str
    layers: tuple[LayerSpec, ...]
    active: Mapping[str, int]
    budget: int
    total_parameters: int
    epochs: int
    lengths: EpochTable
    """Optimizer steps of each epoch."""
    phases: tuple[Phase, ...]
    """Ranges of epochs with one global batch and one size of images."""
    world_size: int
    device: str
    resumed: bool
    start_step: int
    """Steps done before, 0 in a new run."""
    start_epoch: int
    """Epochs trained and evaluated before."""
    shrunk_before: tuple[int, ...]
    """Epochs that the network has shrunk before, as far as it is trained (`train.shrink`)."""
    input: Mapping[str, Any]
    """Shape, mean and classes of the network's input and output (`network_input.network_input`)."""
    versions: Mapping[str, str]
    costs: Costs | None
    """FLOPs of the model on one image; None where they cannot be counted."""

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.lengths.before(self.epochs)

    def work(self, step: int) -> int:
        """Pixels of all images in the first so many steps, as far as phases tell: time grows with it."""
        return sum(self._work_until(step, place) for place in range(len(self.phases)))

    def _work_until(self, step: int, place: int) -> int:
        """Pixels of a phase's images in the first so many steps of the run."""
        phase, later = self.phases[place], self.phases[place + 1 : place + 2]
        end = self.lengths.before(later[0].first if later else self.epochs)
        done = max(0, min(step, end) - self.lengths.before(phase.first))
        return done * phase.global_batch * (phase.image_size or 1) ** 2


@dataclass(frozen=True)
class SamplesReport:
    """The first batch of a run, before the first step."""

    picture: Tensor
    """uint8 [3, height, width]: training samples as the network gets them, with their labels."""


@dataclass(frozen=True)
class StepReport:
    """A reading during an epoch, every `log.every_steps` steps."""

    step: int
    epoch: int
    epoch_step: int
    """Steps done in this epoch."""
    loss: float
    """Mean over this worker's part of one batch."""
    lr: float
    images_per_second: float
    gradient_bytes: int
    """Bytes that this worker handed to the all-reduce in the latest step."""
    gradient_norm: float | None
    """Norm of the latest step's gradients before they were clipped; None without clipping."""


@dataclass(frozen=True)
class ShrinkReport:
    """A network has lost the channels that were of no use (`train.shrink`)."""

    epoch: int
    """Epoch that begins now, counted from 0."""
    step: int
    before: Size
    after: Size
    costs: Costs | None
    """FLOPs of the smaller network on one image; None where they cannot be counted."""
    seconds: float
    """Time from the search to the first step that can follow, on rank 0."""

    def __str__(self) -> str:
        if self.before == self.after:
            return f"{self._head}: every channel is of use, the network keeps its size"
        return f"{self._head}\n{compared(self.before, self.after)}"

    @property
    def _head(self) -> str:
        return f"shrink (train.shrink.at {self.epoch}), after {self.step:,} steps, in {self.seconds:.2f} s"


@dataclass(frozen=True)
class EpochReport:
    """An epoch has ended, and been evaluated if due. Training figures are means over the epoch and all ranks."""

    epoch: int
    step: int
    lr: float
    train_loss: float
    train_top1: float
    results: Evaluations
    best_top1: float | None
    """Highest so far on the samples of `results.selecting`; None before the last prune."""
    active: Mapping[str, int]
    sparsity: Mapping[str, float]
    total_sparsity: float
    """Fraction of the weights of the sparse layers."""
    model_sparsity: float
    """Fraction of all parameters of the model."""
    budget: int
    explored: Mapping[str, float]
    """Fraction of each layer's positions that were ever active; tied layers have no entry."""
    dead_outputs: Mapping[str, int]
    """Outputs of each masked layer that no active weight leads to."""
    ever_active: float | None
    """Fraction of the weights of all masked layers that were ever active; None without any."""
    flops: Mapping[str, int]
    """FLOPs of each masked layer on one image, now; empty where they cannot be counted."""
    inference_flops_of_dense: float | None
    """FLOPs of a forward pass now, over those of the dense network."""
    training_flops_of_dense: float | None
    """FLOPs of training so far, over those of as many steps of the dense network."""
    images_per_second: float | None
    """Mean over the steps of this epoch since the start or the resume, all ranks together; None without any."""
    seconds: float
    """Time of training and evaluation in this epoch, since the start or the resume."""
    gradient_bytes: float | None
    """Bytes to the all-reduce a step, from this worker: mean over the same steps; None without any."""
    gradient_norm: float | None
    """Mean norm of this epoch's gradients before they were clipped; None without clipping."""
    gradient_norm_max: float | None
    """The largest of these norms."""
    bad_files: int
    """Training files found so far that cannot be read. Others of their classes come in their place."""
    skipped_steps: int
    """Steps skipped so far in the run, because the loss or a gradient was NaN or infinite."""
    active_weights: Mapping[str, Tensor]
    """Values of the active weights by layer, float32 on the CPU; empty if nobody looks at them."""


@dataclass(frozen=True)
class Summary:
    """The end of a run, as summary.json holds it. Accuracies are in percent."""

    status: str
    """"done", "stopped" (on request, resumable), or "failed" (by what the error on stderr says)."""
    name: str
    epochs: int
    steps: int
    reason: str | None
    """Words for why the run is done before its last epoch; None if it is not."""
    test_top1: float | None
    test_top5: float | None
    validation_top1: float | None
    best_top1: float | None
    """The highest of all epochs on the samples that `best_top1_on` names."""
    best_top1_on: str | None
    """"validation" or "test". Chosen on test samples it flatters: other samples would give less."""
    test_top1_at_best: float | None
    evaluated_at: int | None
    """Step after which test and validation were measured. It is an earlier one than `steps` where a run ended within an
    epoch, or after one that was not evaluated. None before the first evaluation."""
    ema_test_top1: float | None
    """Accuracy of the average of the weights, as the next one; None without an average."""
    ema_validation_top1: float | None
    best_by: str
    """Network whose accuracy chose the best epoch: "model", or "ema" for the average of its weights."""
    active_weights: int
    sparse_layer_weights: int
    """Weights of the sparse layers at the start."""
    total_parameters: int
    """Parameters of the network at the start."""
    parameters: int
    """Parameters that it has now: fewer, where it lost channels (`train.shrink`)."""
    sparsity: float
    model_sparsity: float
    ever_active: float | None
    """Fraction of the weights of all masked layers that were ever active (ITOP's R_s); null without any."""
    ever_active_forecast: float | None
    """Forecast of it for the whole run, made at its start; null where nobody can tell."""
    dense_flops: int | None
    """FLOPs of a forward pass of one image through the dense network, as papers count them; null: not countable."""
    inference_flops: int | None
    """FLOPs of a forward pass of one image through the network as it is."""
    inference_flops_of_dense: float | None
    training_flops: int | None
    """FLOPs of all training steps, by the method's own rule."""
    training_flops_of_dense: float | None
    """FLOPs of training over those of as many steps of the dense network."""
    layers: Mapping[str, Mapping[str, Any]]
    """Shape, sparsity before and after, active weights and FLOPs on one image, for each sparse layer."""
    mask_digest: str
    weight_digest: str
    rank_digests: tuple[Mapping[str, Any], ...]
    """Digests that each rank computed from its own masks and weights."""
    images_per_second: float | None
    world_size: int
    reallocations: int
    desyncs_repaired: int
    bad_files: int
    """Training files that could not be read. Others of their classes came in their place."""
    skipped_steps: int
    """Steps skipped because the loss or a gradient was NaN or infinite."""
    gradients: str
    """Gradients that ranks exchanged: "active" or "dense"."""
    seconds: float
    """Time in training, sessions before a resume included."""
    peak_memory: int | None
    """Most bytes that rank 0 has held in this session: of its GPU, or of the machine without one; null: unknown."""
    versions: Mapping[str, str]
    asked: str = ""
    """Zeros that the config asks for in the sparse layers, at the end of the run, in words."""
    dense: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Shape, number of weights and reason for each weight that stays dense; all biases and norms are one entry."""


class Callback:
    """An observer: override what interests you."""

    def on_start(self, run: RunReport) -> None:
        """React to the start of a run or a resume, before its first step."""

    def on_samples(self, report: SamplesReport) -> None:
        """React to the first batch of a run, before its first step."""

    def on_step(self, report: StepReport) -> None:
        """React to a reading, every `log.every_steps` steps."""

    def on_reallocation(self, report: ReallocationReport) -> None:
        """React to a reallocation. A method with one a step reports it every `log.every_steps` steps."""

    def on_shrink(self, report: ShrinkReport) -> None:
        """React to a network that has lost channels, before the epoch that trains it."""

    def on_epoch(self, report: EpochReport) -> None:
        """React to the end of an epoch and its evaluation."""

    def on_end(self, summary: Summary) -> None:
        """React to the end of the run: done, stopped or failed."""


class Writer(Callback):
    """An observer that writes to a file. Its `on_...` remember, and `write` writes.

    So nothing is lost while the storage is full, read-only or gone.
    """

    path: Path

    @property
    def pending(self) -> bool:
        """Tell whether something is not written yet."""
        raise NotImplementedError

    def write(self) -> None:
        """Write what is not written yet, in order. OSError if some of it still is not: it stays remembered."""
        raise NotImplementedError

    def sync(self) -> None:
        """Flush the end of the run to the disk itself. OSError if that fails."""


class LogWriter(Writer):
    """A writer whose file only grows. Its `on_...` add records to `records`."""

    def __init__(self, records: Appender) -> None:
        self.path = records.path
        self.records = records

    @property
    def pending(self) -> bool:
        return self.records.pending

    def write(self) -> None:
        self.records.write()

    def sync(self) -> None:
        self.records.sync()

    def add_line(self, record: Mapping[str, Any]) -> None:
        """Add a line of JSON. ValueError for NaN and infinity, which JSON does not know."""
        self.records.add((json.dumps(record, allow_nan=False) + "\n").encode())


class Display(Callback):
    """An observer that shows something to people. Whatever happens to its stream, training goes on."""
