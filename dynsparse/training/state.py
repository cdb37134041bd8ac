"""What a run's next step depends on, as one object that can be saved and restored."""

from __future__ import annotations

import logging
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import torch
from torch import Tensor, nn, optim

from dynsparse.config.schema import RunConfig
from dynsparse.masks import MaskSet
from dynsparse.methods import Method
from dynsparse.runtime import Worker
from dynsparse.training import packing
from dynsparse.training.compatibility import require_same_evaluation, require_same_layers, require_same_settings
from dynsparse.training.evaluate import Evaluations
from dynsparse.training.precision import Precision
from pipelines.base import TrainPipeline

log = logging.getLogger(__name__)


@dataclass
class Progress:
    """How far a run has come. The same on every rank."""

    epoch: int = 0
    """Epochs trained and evaluated."""
    step: int = 0
    """Optimizer steps done."""
    best_top1: float | None = None
    """The highest of all epochs, on the validation samples where there are any, else on the test samples."""
    test_top1_at_best: float | None = None
    test_top1: float | None = None
    test_top5: float | None = None
    validation_top1: float | None = None
    reallocations: int = 0
    desyncs_repaired: int = 0
    skipped_steps: int = 0
    """Steps whose loss or gradients were no finite numbers, those in search of fp16's scale among them."""
    skipped_in_a_row: int = 0
    """How many of the latest steps; 0 after one that was not."""
    bad_steps_in_a_row: int = 0
    """Those of them that the scale was not to blame for."""
    gradients: str = ""
    """What travels between the ranks, "active" or "dense", as it was asked for or chosen."""
    seconds: float = 0.0
    """Spent up to the latest save, on rank 0's clock."""
    initial_active: dict[str, int] = field(default_factory=dict)
    """Active weights of each layer at the start."""

    @property
    def best_top1_on(self) -> str | None:
        """Whose samples have chosen the best epoch: "validation" or "test"; None without one."""
        if self.best_top1 is None:
            return None
        return "test" if self.validation_top1 is None else "validation"

    def step_done(self) -> None:
        """Count a step that updated weights. Its number is counted before."""
        self.skipped_in_a_row = self.bad_steps_in_a_row = 0

    def step_skipped(self, *, bad: bool) -> None:
        """Count a step that was skipped; `bad` unless only the loss scale was to blame."""
        self.skipped_steps += 1
        self.skipped_in_a_row += 1
        self.bad_steps_in_a_row += bad

    def take(self, results: Evaluations, *, eligible: bool = True) -> bool:
        """Note what an epoch reached. Returns whether it is the best so far; it cannot be if not `eligible`."""
        is_best = eligible and (self.best_top1 is None or results.selecting.top1 > self.best_top1)
        if is_best:
            self.best_top1 = results.selecting.top1
            self.test_top1_at_best = results.test.top1 if results.test else None
        self.test_top1, self.test_top5 = (results.test.top1, results.test.top5) if results.test else (None, None)
        self.validation_top1 = results.validation.top1 if results.validation else None
        return is_best


@dataclass
class RunState:
    """Everything that a checkpoint holds.

    What is the same on every rank is stored once; BatchNorm statistics, random
    state and the running sums of an epoch stand by rank.
    """

    config: RunConfig
    worker: Worker
    model: nn.Module
    masks: MaskSet
    optimizer: optim.Optimizer
    method: Method
    precision: Precision
    train_data: TrainPipeline
    sums: Tensor
    """float64 [3], this rank's in this epoch: loss, top-1 hits, samples."""
    progress: Progress
    input: Mapping[str, Any] = field(default_factory=dict)
    """What the network takes and gives (`network_input`)."""
    evaluated_on: Mapping[str, str] = field(default_factory=dict)
    """Digests of the samples of validation and test, as far as they are there, by these names."""
    shared_bad_samples: dict[int, str] = field(default_factory=dict)
    """Of the training data, with the reasons: those that every rank knows."""
    gradients_before: str | None = None
    """`Progress.gradients` of the checkpoint that this run goes on from with as many workers."""

    def of_this_rank(self) -> dict[str, Any]:
        """What differs from rank to rank."""
        return {
            "buffers": packing.pack_buffers(self.model),
            "random": packing.random_state(self.sums.device),
            "sums": self.sums.cpu().clone(),
            "bad_samples": dict(self.train_data.bad_samples),
        }

    def load_of_this_rank(self, saved: Mapping[str, Any]) -> None:
        packing.unpack_buffers(self.model, saved["buffers"])
        packing.set_random_state(saved["random"], self.sums.device)
        self.sums.copy_(saved["sums"])

    def save(self, ranks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Plain data and CPU tensors, given every rank's `of_this_rank`."""
        return self.snapshot(ranks)()

    def snapshot(self, ranks: Sequence[Mapping[str, Any]]) -> Callable[[], dict[str, Any]]:
        """Copy what `save` needs. The result gives it, in any thread, however far training has gone meanwhile."""
        masks = self.masks.snapshot()
        rest = {
            "config": self.config.as_dict(),
            "versions": versions(),
            "input": dict(self.input),
            "evaluated_on": dict(self.evaluated_on),
            "progress": asdict(self.progress),
            "weights": packing.pack_weights(self.model, self.masks),
            "optimizer": packing.pack_optimizer(self.model, self.masks, self.optimizer),
            "method": self.method.state_dict(),
            "loss_scale": self.precision.state_dict(),
            "data": self.train_data.state_dict(),
            "ranks": list(ranks),
        }
        return lambda: {**rest, "masks": masks()}

    def load(self, saved: Mapping[str, Any]) -> None:
        """Continue where `saved` was made. UserError if that was another model or method, UserError for other data.

        On the same number of workers the run goes on bit for bit. On another
        number weights, masks, optimizer and sample order do; BatchNorm
        statistics become the mean over the old workers, and each worker's
        random state starts anew, for neither has a counterpart.
        """
        require_same_settings(saved, self.config)
        self.load_network(saved)
        packing.unpack_optimizer(self.model, self.masks, self.optimizer, saved["optimizer"])
        self.method.load_state_dict(saved["method"])
        self.precision.load_state_dict(saved.get("loss_scale", {}))  # Older checkpoints have none.
        self.train_data.load_state_dict(saved["data"])
        require_same_evaluation(saved, self.evaluated_on)
        for rank in saved["ranks"]:  # Older checkpoints know of none.
            self.train_data.avoid(rank.get("bad_samples", {}))
        self.progress = _progress(saved["progress"], self.progress)
        ranks = saved["ranks"]
        if len(ranks) == self.worker.world_size:
            self.load_of_this_rank(ranks[self.worker.rank])
            self.gradients_before = self.progress.gradients
            return
        packing.unpack_buffers(self.model, _mean_buffers(ranks))
        if self.worker.is_main:  # The sums of an epoch are added over the ranks in the end.
            self.sums.copy_(torch.stack([rank["sums"] for rank in ranks]).sum(0))
            log.warning(
                "the checkpoint was made by %d workers, this run has %d: masks, weights, optimizer and sample order "
                "go on exactly; BatchNorm statistics are the mean over the old workers, random states are new",
                len(ranks),
                self.worker.world_size,
            )

    def load_network(self, saved: Mapping[str, Any]) -> None:
        """Masks, weights, and BatchNorm statistics as the mean over the ranks: enough to evaluate."""
        require_same_layers(saved, self.config, self.model, self.masks)
        self.masks.load_state_dict(saved["masks"])
        packing.unpack_weights(self.model, self.masks, saved["weights"])
        packing.unpack_buffers(self.model, _mean_buffers(saved["ranks"]))
        self.masks.check()


def versions() -> dict[str, str]:
    """Of what a run's numbers depend on."""
    from dynsparse import __version__

    return {"dynsparse": __version__, "torch": str(torch.__version__), "python": platform.python_version()}


def _progress(saved: Mapping[str, Any], ours: Progress) -> Progress:
    """Of another version there may be less, or more."""
    known = {one.name: saved[one.name] for one in fields(Progress) if one.name in saved}
    return Progress(**{**known, "initial_active": {**ours.initial_active, **known.get("initial_active", {})}})


def _mean_buffers(ranks: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
    return packing.mean_buffers([rank["buffers"] for rank in ranks])
