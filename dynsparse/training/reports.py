"""Reports of a run's state, frozen, for its observers."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from dynsparse.distributed import digest, sync
from dynsparse.masks.outputs import dead_outputs
from dynsparse.optimizers import rate_of
from dynsparse.runtime import peak_memory
from dynsparse.training.callbacks import EpochReport, RunReport, StepReport, Summary
from dynsparse.training.ending import early_end
from dynsparse.training.evaluate import Evaluations
from dynsparse.training.network import Network
from dynsparse.training.state import RunState, versions


@dataclass
class Stopwatch:
    """Counts images and seconds."""

    images: int = 0
    began: float = field(default_factory=time.monotonic)
    ended: float | None = None

    def stop(self) -> None:
        """Count no more seconds."""
        self.ended = time.monotonic()

    @property
    def seconds(self) -> float:
        """Seconds until now, or until it was stopped."""
        return (self.ended or time.monotonic()) - self.began

    @property
    def per_second(self) -> float:
        """Images per second."""
        return self.images / max(self.seconds, 1e-9)


class Reporter:
    """Makes the reports of one run, and times it. Nothing that it measures flows back into training."""

    def __init__(self, run: RunState, network: Network) -> None:
        self.run = run
        self.network = network
        self.session = Stopwatch()
        self.epoch_watch = Stopwatch()
        self._reading = Stopwatch()
        self._gradient_bytes, self._epoch_bytes, self._epoch_steps = 0, 0, 0
        self._trained_images, self._trained_seconds = 0, 0.0
        self._seconds_before = 0.0

    def session_begins(self) -> None:
        """Begin to time: a new run, or one that resumes from the state that was loaded."""
        self.session, self._seconds_before = Stopwatch(), self.run.progress.seconds

    @property
    def seconds(self) -> float:
        """Seconds of the run, sessions before a resume included."""
        return self._seconds_before + self.session.seconds

    def epoch_begins(self) -> None:
        """Begin to time an epoch, or the rest of one after a resume."""
        self.epoch_watch, self._reading = Stopwatch(), Stopwatch()
        self._epoch_bytes, self._epoch_steps = 0, 0

    def step_done(self, images: int, gradient_bytes: int) -> None:
        """Count a step of so many images over all ranks, and the bytes that this rank sent."""
        self._gradient_bytes = gradient_bytes
        self._epoch_bytes += gradient_bytes
        self._epoch_steps += 1
        self.epoch_watch.images += images
        self._reading.images += images

    def epoch_trained(self) -> None:
        """Stop the clock of the epoch's training, before its evaluation."""
        self.epoch_watch.stop()
        if self._epoch_steps:
            self._trained_images += self.epoch_watch.images
            self._trained_seconds += self.epoch_watch.seconds

    def run_report(self, *, resumed: bool) -> RunReport:
        """Report of a run that begins, or resumes."""
        run, config = self.run, self.run.config
        return RunReport(
            name=config.run_name,
            config=config.as_dict(),
            config_yaml=config.as_yaml(),
            layers=tuple(self.network.specs_at_start),
            active=self._active(),
            budget=self._budget,
            total_parameters=self.network.total_parameters,
            epochs=config.train.epochs,
            lengths=run.train_data.epochs,
            phases=config.train.phases,
            world_size=run.worker.world_size,
            device=str(run.sums.device),
            start_step=run.progress.step,
            start_epoch=run.progress.epoch,
            shrunk_before=tuple(one.epoch for one in run.shrinkages),
            resumed=resumed,
            input=run.input,
            versions=versions(),
            costs=self.network.costs,
        )

    def step_report(self, loss: Tensor) -> StepReport:
        """Report of the latest step, whose mean loss is a scalar of this rank."""
        progress = self.run.progress
        speed, self._reading = self._reading.per_second, Stopwatch()
        return StepReport(
            step=progress.step,
            epoch=progress.epoch,
            epoch_step=progress.step - self.run.train_data.epochs.before(progress.epoch),
            loss=float(loss),
            lr=self._lr(),
            images_per_second=speed,
            gradient_bytes=self._gradient_bytes,
            gradient_norm=self.run.gradient_norms.read().latest,
        )

    def epoch_report(self, results: Evaluations, sums: Sequence[float]) -> EpochReport:
        """Report of a trained and evaluated epoch. `sums`: loss, top-1 hits and samples over all ranks."""
        loss_sum, found, samples = sums
        run, progress = self.run, self.run.progress
        norms = run.gradient_norms.read()
        return EpochReport(
            epoch=progress.epoch,
            step=progress.step,
            lr=self._lr(),
            train_loss=loss_sum / samples if samples else float("nan"),
            train_top1=100 * found / samples if samples else float("nan"),
            results=results,
            best_top1=progress.best_top1,
            active=self._active(),
            sparsity=self.network.sparsity_of_layers,
            total_sparsity=self.network.sparsity,
            model_sparsity=self.network.model_sparsity,
            budget=self._budget,
            explored=run.masks.explored(),
            dead_outputs=dead_outputs(run.masks),
            ever_active=run.masks.ever_active,
            flops=self.network.layer_flops,
            inference_flops_of_dense=self.network.inference_flops_of_dense,
            training_flops_of_dense=progress.training_flops_of_dense,
            images_per_second=self.epoch_watch.per_second if self._epoch_steps else None,
            seconds=time.monotonic() - self.epoch_watch.began,
            gradient_bytes=self._epoch_bytes / self._epoch_steps if self._epoch_steps else None,
            gradient_norm=norms.mean,
            gradient_norm_max=norms.largest,
            active_weights=self._active_weights(),
            bad_files=len(run.shared_bad_samples),
            skipped_steps=progress.skipped_steps,
        )

    def summary(self, status: str) -> Summary:
        """Summary of the run. A collective: every rank computes its digests from its own masks and weights."""
        run, progress, masks = self.run, self.run.progress, self.run.masks
        flops, dead = self.network.layer_flops, dead_outputs(masks)
        bad_files = {sample for known in sync.all_of(run.train_data.bad_samples) for sample in known}
        mine = {
            "rank": run.worker.rank,
            "mask_digest": f"{digest.mask_digest(masks):016x}",
            "weight_digest": f"{digest.weight_digest(run.model, masks):016x}",
        }
        return Summary(
            status=status,
            name=run.config.run_name,
            epochs=progress.epoch,
            steps=progress.step,
            reason=early_end(run.config.train, progress) if status == "done" else None,
            test_top1=progress.test_top1,
            test_top5=progress.test_top5,
            validation_top1=progress.validation_top1,
            best_top1=progress.best_top1,
            best_top1_on=progress.best_top1_on,
            test_top1_at_best=progress.test_top1_at_best,
            evaluated_at=progress.evaluated_at,
            ema_test_top1=progress.ema_test_top1,
            ema_validation_top1=progress.ema_validation_top1,
            best_by=progress.best_by,
            active_weights=self.network.active_weights,
            sparse_layer_weights=self.network.sparse_layer_weights,
            total_parameters=self.network.total_parameters,
            parameters=self.network.parameters,
            sparsity=self.network.sparsity,
            model_sparsity=self.network.model_sparsity,
            ever_active=masks.ever_active,
            ever_active_forecast=None if run.method.forecast is None else run.method.forecast.share,
            dense_flops=self.network.costs.reference if self.network.costs else None,
            inference_flops=self.network.inference_flops,
            inference_flops_of_dense=self.network.inference_flops_of_dense,
            training_flops=progress.training_flops or None,
            training_flops_of_dense=progress.training_flops_of_dense,
            layers={
                layer.name: {
                    "shape": list(layer.spec.shape),
                    "sparsity_before": 1 - progress.initial_active[layer.name] / spec.weights,
                    "sparsity_after": 1 - layer.active_weights / spec.weights,
                    "active_weights": layer.active_weights,
                    "dead_outputs": dead.get(layer.name),
                    "flops": flops.get(layer.name),
                }
                for layer, spec in zip(self.network.layers, self.network.specs_at_start, strict=True)
            },
            mask_digest=str(mine["mask_digest"]),
            weight_digest=str(mine["weight_digest"]),
            rank_digests=tuple(sync.gather(mine) or ()),
            images_per_second=self._trained_images / self._trained_seconds if self._trained_seconds else None,
            world_size=run.worker.world_size,
            reallocations=progress.reallocations,
            desyncs_repaired=progress.desyncs_repaired,
            bad_files=len(bad_files),
            skipped_steps=progress.skipped_steps,
            gradients=progress.gradients,
            seconds=self.seconds,
            peak_memory=peak_memory(run.sums.device),
            versions=versions(),
            asked=self.network.asked,
            dense={
                one.name: {"shape": list(one.shape), "weights": one.weights, "reason": one.reason}
                for one in self.network.dense
            },
        )

    @property
    def _budget(self) -> int:
        """Budget of the masks, and values of all banks where weights are tied."""
        return self.run.masks.budget + sum(layer.active_weights for layer in self.network.tied)

    def _active(self) -> dict[str, int]:
        return {layer.name: layer.active_weights for layer in self.network.layers}

    def _active_weights(self) -> dict[str, Tensor]:
        log = self.run.config.log
        if not ((log.tensorboard or log.wandb) and log.histograms):
            return {}
        return {layer.name: layer.values().float().cpu() for layer in self.network.layers}

    def _lr(self) -> float:
        return rate_of(self.run.optimizer)
