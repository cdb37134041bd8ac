"""State of a run: everything that its next step depends on, as one object that can be saved and restored."""

from __future__ import annotations

import logging
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn, optim

from dynsparse.config.schema import RunConfig
from dynsparse.masks import MaskSet
from dynsparse.methods import Method
from dynsparse.runtime import Worker
from dynsparse.shrinking.kept import Shrinkage
from dynsparse.training import packing
from dynsparse.training.compatibility import require_same_evaluation, require_same_layers, require_same_settings
from dynsparse.training.ema import Ema
from dynsparse.training.norms import GradientNorms
from dynsparse.training.precision import Precision
from dynsparse.training.progress import Progress
from dynsparse.training.shrinking import require_coming
from dynsparse.training.teacher import require_same_teacher
from pipelines.base import TrainPipeline

log = logging.getLogger(__name__)


@dataclass
class RunState:
    """Everything that a checkpoint holds.

    Most of it is the same on every rank, and stored once. BatchNorm statistics, random state and the running sums of
    an epoch are stored for each rank.
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
    """Float64 [3]: loss, top-1 hits and samples of this rank in this epoch."""
    gradient_norms: GradientNorms
    progress: Progress
    input: Mapping[str, Any] = field(default_factory=dict)
    """Input and output of the network (`network_input`)."""
    evaluated_on: Mapping[str, str] = field(default_factory=dict)
    """Digests of the samples of validation and test, by these names, as far as there are any."""
    shared_bad_samples: dict[int, str] = field(default_factory=dict)
    """Bad training samples that every rank knows, with the reasons."""
    ema: Ema | None = None
    """Average of the weights, if there is one."""
    teacher: str | None = None
    """Digest of the run's teacher, if it has one."""
    shrinkages: tuple[Shrinkage, ...] = ()
    """Records of the channels that the network has lost, in order (`train.shrink`)."""
    gradients_before: str | None = None
    """`Progress.gradients` of the checkpoint that this run resumes from with as many workers."""

    def of_this_rank(self) -> dict[str, Any]:
        """State that differs from rank to rank."""
        return {
            "buffers": packing.pack_buffers(self.model),
            "random": packing.random_state(self.sums.device),
            "sums": self.sums.cpu().clone(),
            "bad_samples": dict(self.train_data.bad_samples),
            **({} if self.ema is None else {"ema_buffers": packing.pack_buffers(self.ema.model)}),
        }

    def load_of_this_rank(self, saved: Mapping[str, Any]) -> None:
        """Load what `of_this_rank` gave. Bad samples stay known."""
        packing.unpack_buffers(self.model, saved["buffers"])
        packing.set_random_state(saved["random"], self.sums.device)
        if self.ema is not None and "ema_buffers" in saved:
            packing.unpack_buffers(self.ema.model, saved["ema_buffers"])
        self.sums.copy_(saved["sums"])

    def save(self, ranks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return plain data and CPU tensors, given every rank's `of_this_rank`."""
        return self.snapshot(ranks)()

    def snapshot(self, ranks: Sequence[Mapping[str, Any]]) -> Callable[[], dict[str, Any]]:
        """Copy what `save` needs. Call the result in any thread to get it, however far training has gone meanwhile."""
        masks = self.masks.snapshot()
        rest = {
            "config": self.config.as_dict(),
            "versions": versions(),
            "input": dict(self.input),
            "evaluated_on": dict(self.evaluated_on),
            "progress": self.progress.model_dump(),
            "weights": packing.pack_weights(self.model, self.masks),
            "optimizer": packing.pack_optimizer(self.model, self.masks, self.optimizer),
            "method": self.method.state_dict(),
            "loss_scale": self.precision.state_dict(),
            "data": self.train_data.state_dict(),
            "gradient_norms": self.gradient_norms.state(),
            **({} if self.ema is None else {"ema": self.ema.state_dict()}),
            **({} if self.teacher is None else {"teacher": self.teacher}),
            **({"shrinkages": [one.state() for one in self.shrinkages]} if self.shrinkages else {}),
            "ranks": list(ranks),
        }
        return lambda: {**rest, "masks": masks()}

    def load(self, saved: Mapping[str, Any]) -> None:
        """Resume where `saved` was made. UserError if that was another model or method, or other data.

        On the same number of workers the run continues bit for bit. On another number weights, masks, optimizer and
        sample order do. BatchNorm statistics become the mean over the old workers, and each worker's random state
        starts anew, for neither has a counterpart.
        """
        require_same_settings(saved, self.config)
        require_same_teacher(saved, self.teacher)
        require_coming(saved, self.config)
        self.load_network(saved)
        packing.unpack_optimizer(self.model, self.masks, self.optimizer, saved["optimizer"])
        self.method.load_state_dict(saved["method"])
        self.precision.load_state_dict(saved.get("loss_scale", {}))  # Older checkpoints have none.
        self.train_data.load_state_dict(saved["data"])
        self.gradient_norms.load(saved.get("gradient_norms"))
        require_same_evaluation(saved, self.evaluated_on)
        for rank in saved["ranks"]:  # Older checkpoints have no bad samples.
            self.train_data.avoid(rank.get("bad_samples", {}))
        self.progress = _progress(saved["progress"], self.progress)
        self._keep_forecast()
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
                "continue exactly; BatchNorm statistics are the mean over the old workers, random states are new",
                len(ranks),
                self.worker.world_size,
            )

    def _keep_forecast(self) -> None:
        """Leave the forecast as it was made at the start: the network of a resumed run has not its first masks then."""
        forecast, share = self.method.forecast, self.progress.ever_active_forecast
        if forecast is not None and share is not None:
            self.method.forecast = replace(forecast, share=share)

    def load_network(self, saved: Mapping[str, Any]) -> None:
        """Load masks, weights, and BatchNorm statistics as the mean over the ranks: enough to evaluate."""
        require_same_layers(saved, self.config, self.model, self.masks)
        self.masks.load_state_dict(saved["masks"])
        packing.unpack_weights(self.model, self.masks, saved["weights"])
        packing.unpack_buffers(self.model, _mean_buffers(saved["ranks"]))
        self.masks.check()
        if self.ema is not None:
            self._load_average(self.ema, saved)

    def _load_average(self, ema: Ema, saved: Mapping[str, Any]) -> None:
        """Load the average of the weights, its buffers as the mean over the ranks. Without one it begins anew."""
        if "ema" not in saved:
            ema.begin_anew()
            log.warning("the checkpoint has no average of the weights (train.ema): it begins at the weights of now")
            return
        ema.load_state_dict(saved["ema"])
        packing.unpack_buffers(ema.model, packing.mean_buffers([rank["ema_buffers"] for rank in saved["ranks"]]))


def versions() -> dict[str, str]:
    """Versions of the software that a run's numbers depend on."""
    from dynsparse import __version__

    return {"dynsparse": __version__, "torch": str(torch.__version__), "python": platform.python_version()}


def _progress(saved: Mapping[str, Any], ours: Progress) -> Progress:
    """Progress from a checkpoint. One of another version may have fewer fields, or more."""
    initial = {**ours.initial_active, **saved.get("initial_active", {})}
    foreseen = ours.ever_active_forecast
    return Progress.model_validate({"ever_active_forecast": foreseen, **saved, "initial_active": initial})


def _mean_buffers(ranks: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
    return packing.mean_buffers([rank["buffers"] for rank in ranks])
