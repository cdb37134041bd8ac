"""Training, from the first step to the last."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from dynsparse.config.schema import RunConfig
from dynsparse.distributed import agreement, sync
from dynsparse.errors import DivergedError, RunError, StopRequested, UserError
from dynsparse.reallocation import ReallocationReport
from dynsparse.runtime import Worker
from dynsparse.seeds import seed_for
from dynsparse.sparse_training import SparseTraining
from dynsparse.training import penalties
from dynsparse.training.bad_samples import share_bad_samples
from dynsparse.training.callbacks import Callback, Observers, SamplesReport, Summary
from dynsparse.training.checkpoint import CheckpointFolder
from dynsparse.training.engine import Engine
from dynsparse.training.evaluate import Evaluation, Evaluations, evaluate
from dynsparse.training.network import Network, method_settings
from dynsparse.training.network_input import network_input
from dynsparse.training.preflight import require_samples_for_norm, warn_if_uneven
from dynsparse.training.progress import Progress
from dynsparse.training.reports import Reporter
from dynsparse.training.saving import Saving
from dynsparse.training.state import RunState
from pipelines import preview
from pipelines.base import Batch, Data, EvaluationPipeline

log = logging.getLogger(__name__)


class Trainer:
    """Trains a network. Every rank holds one and calls the same methods in the same order."""

    def __init__(
        self,
        config: RunConfig,
        network: Network,
        data: Data,
        worker: Worker,
        *,
        observers: Sequence[Callback] = (),
        checkpoints: CheckpointFolder | None = None,
        stop_requested: Callable[[], bool] = lambda: False,
        guard: Callable[[], None] = lambda: None,
    ) -> None:
        """`guard` is called before an observer writes. It may raise OSError, as where the run's folder is gone."""
        self.config, self.network, self.data, self.worker = config, network, data, worker
        self.model, self.masks = network.model, network.masks
        self.stop_requested = stop_requested
        self.resumed = False
        self.optimizer = config.train.optimizer.build(self.model.parameters(), lr=self._lr(0))
        self.sparse = self._sparse_training()
        self.engine = Engine(config, network, self.optimizer, worker)
        self.run = self._run_state()
        self.reporter = Reporter(self.run, network)
        self.observers = Observers(observers if worker.is_main else (), guard)
        self.saving = Saving(self.run, network, self.reporter, self.observers, checkpoints)
        torch.manual_seed(seed_for(config.seed, "rank", worker.rank))

    @property
    def progress(self) -> Progress:
        """Epochs, steps and best results so far."""
        return self.run.progress

    def load(self, saved: Mapping[str, Any]) -> None:
        """Continue from a checkpoint's content (`RunState.load`). Before `fit`."""
        self.run.load(saved)
        self.sparse.steps = self.progress.step
        self.resumed = True

    def fit(self) -> Summary:
        """Train until the last epoch.

        Raises StopRequested if asked to stop, and UserError for what the user can mend: on every rank at once, with
        a checkpoint saved to resume from.
        """
        self._start()
        try:
            self._stop_if_asked()
            while self.progress.epoch < self.config.train.epochs:
                self._train_epoch()
                self._finish_epoch()
        except (StopRequested, RunError) as why:
            self._end_early(why)
            raise
        return self.saving.end("done")

    def train_step(self, micro_batches: Sequence[Batch]) -> Tensor:
        """One optimizer step on this worker's share of a global batch. Returns its mean loss, on the device."""
        for group in self.optimizer.param_groups:
            group["lr"] = self._lr(self.progress.step)
        loss = self.engine.backward(micro_batches, whole=self.sparse.wants_whole_gradients)
        self.progress.step += 1
        if self.engine.gradients_are_finite():
            self.sparse.prepare_gradients()
            penalties.add_gradients(self.config.train.penalty, self.network.layers)
            self.progress.step_done()
            self.engine.step()  # SparseTraining sees it, and reallocates if due.
        else:
            self._skip_step()
        return loss

    def evaluate(self) -> Evaluations:
        """Evaluate on the test samples and what else there is, with the mean BatchNorm statistics of all ranks."""
        agreement.average_buffers(self.model)
        data, engine = self.data, self.engine

        def on(pipeline: EvaluationPipeline | None) -> Evaluation | None:
            if pipeline is None:
                return None
            return evaluate(engine.forward, pipeline, engine.device, engine.precision.autocast(), self.stop_requested)

        return Evaluations(test=on(data.test), validation=on(data.validation), train=on(data.train_evaluation))

    # Parts of a run.

    def _start(self) -> None:
        """Get ready for the first step. UserError leaves nothing behind that a run could be resumed from."""
        require_samples_for_norm(self.model, self.config, self.worker.world_size)
        self.reporter.session_begins()
        self._settle()
        if not self.resumed:
            self._begin()
        self.saving.start(resumed=self.resumed)
        warn_if_uneven(self.config, self.worker.world_size)
        if not self.resumed:
            self.saving.save(initial=True)
        self.network.initial_weights = {}  # Nothing needs them any more.

    def _train_epoch(self) -> None:
        """Make the remaining steps of the epoch."""
        self.reporter.epoch_begins()
        for micro_batches in self._steps():
            self._show(micro_batches)
            loss = self.train_step(micro_batches)
            self.reporter.step_done(self.config.train.global_batch_size, self.engine.parallel.take_bytes_sent())
            if self.worker.is_main and self.progress.step % self.config.log.every_steps == 0:
                self.observers.on_step(self.reporter.step_report(loss))
                self.saving.retry()
        self.reporter.epoch_trained()

    def _steps(self) -> Iterator[Sequence[Batch]]:
        """Micro-batches of each remaining step. Saves after a step where that is due.

        One exchange of flags a step (`sync.any_of`) ends the epoch on every rank, or stops all before the step:
        where a rank's data fail, the others have theirs already.
        """
        steps = self.data.train.epoch()
        while True:
            micro_batches, failure = _next(steps)
            stop, failed, time_to_save = sync.any_of(
                self.stop_requested(), failure is not None, self.saving.timer.is_due()
            )
            if failed:
                raise RunError(*sync.all_said(failure))
            if stop:
                raise StopRequested
            if micro_batches is None:
                return
            yield micro_batches
            if self.saving.is_due(by_clock=time_to_save):
                self.saving.save()

    def _finish_epoch(self) -> None:
        """Verify, evaluate, report, save."""
        progress = self.progress
        progress.desyncs_repaired += bool(self.sparse.verify())
        share_bad_samples(self.run)
        results = self._evaluate_or_go_back()
        sums = sync.sum_(self.run.sums.clone()).tolist()
        self.run.sums.zero_()
        is_best = progress.take(results, eligible=self.sparse.method.is_settled(self.sparse.clock(progress.step)))
        if self.worker.is_main:
            self.observers.on_epoch(self.reporter.epoch_report(results, sums))
        progress.epoch += 1
        is_last = progress.epoch == self.config.train.epochs
        due = is_best or progress.epoch % self.config.checkpoint.every_epochs == 0
        if is_last or (due and not progress.skipped_in_a_row):
            self.saving.save(best=is_best)

    def _end_early(self, why: StopRequested | RunError) -> None:
        """End a run before its last epoch: with a checkpoint to resume from, unless training has diverged.

        A step whose data are fetched, but not trained on, comes again. An epoch that is not evaluated ends anew.
        """
        progress = self.progress
        self.data.train.seek(progress.epoch, progress.step - progress.epoch * self.data.train.steps_per_epoch)
        if not isinstance(why, DivergedError):
            self.saving.save()
        if isinstance(why, RunError):
            self.saving.end("failed", why)
        else:
            self.saving.end("stopped")

    # Smaller parts.

    def _stop_if_asked(self) -> None:
        if sync.any_rank(self.stop_requested()):
            raise StopRequested

    def _begin(self) -> None:
        """Take the position of the first epoch, which need not be 0 (`train.start_epoch`)."""
        first = self.config.train.start_epoch
        self.progress.epoch, self.progress.step = first, first * self.data.train.steps_per_epoch
        self.data.train.seek(first, 0)

    def _settle(self) -> None:
        """Settle the engine, with everything as before after it (`Engine.settle`)."""
        kept = self.run.of_this_rank()
        coming = range(self.progress.step + 1, self.progress.step + 11)
        self.engine.settle(
            gradients_before=self.run.gradients_before,
            always_whole=all(self.sparse.wants_whole_gradients_in(step) for step in coming),
        )
        self.progress.gradients = self.engine.parallel.gradients
        self.run.load_of_this_rank(kept)

    def _show(self, micro_batches: Sequence[Batch]) -> None:
        """Give the observers a look at the first batch of a run."""
        if self.worker.is_main and self.progress.step == 0 and not self.resumed:
            self.observers.on_samples(SamplesReport(preview.picture(self.data, *micro_batches[0], most=32)))

    def _skip_step(self) -> None:
        """Skip a step whose loss or gradients are NaN or inf, as if there had been no such batch."""
        progress, most = self.progress, self.config.train.max_bad_steps
        searching_for_scale = self.engine.skip()
        progress.step_skipped(bad=not searching_for_scale)
        if not searching_for_scale:
            log.warning("step %d skipped: its loss or gradients are NaN or inf", progress.step)
        if progress.bad_steps_in_a_row >= most:
            raise DivergedError(
                f"the loss or gradients of {most} steps in a row, the last of them step {progress.step}, are NaN or "
                f"inf (train.max_bad_steps): training has diverged; lower the learning rate and begin anew with "
                f"--overwrite, or resume from a checkpoint from well before"
            )
        self.sparse.skip_step()

    def _note(self, report: ReallocationReport) -> None:
        """Count a reallocation and tell the observers; of one a step, only now and then."""
        self.progress.reallocations += 1
        self.progress.desyncs_repaired += bool(report.repaired)
        if not self.sparse.method.every_step or report.step % self.config.log.every_steps == 0:
            self.observers.on_reallocation(report)

    def _evaluate_or_go_back(self) -> Evaluations:
        """Evaluate. Where that is interrupted, this rank's state is that of before: a resume ends the epoch anew."""
        before = self.run.of_this_rank()
        try:
            return self.evaluate()
        except (StopRequested, RunError):  # On every rank.
            self.run.load_of_this_rank(before)
            raise

    def _lr(self, step: int) -> float:
        steps_per_epoch = self.data.train.steps_per_epoch
        return self.config.train.lr.at(step, steps_per_epoch, self.config.train.epochs * steps_per_epoch)

    def _sparse_training(self) -> SparseTraining:
        """Keep the network sparse, as any loop does. This one masks gradients itself: see `Engine.backward`."""
        config, steps_per_epoch = self.config, self.data.train.steps_per_epoch
        return SparseTraining(
            self.model,
            self.optimizer,
            method_settings(config, [layer.spec for layer in self.masks]),
            masks=self.masks,
            total_steps=config.train.epochs * steps_per_epoch,
            steps_per_epoch=steps_per_epoch,
            steps=config.train.start_epoch * steps_per_epoch,
            seed=config.seed,
            on_desync=config.distributed.on_desync,
            on_reallocation=lambda report: self._note(report),
            mask_in_backward=False,
        )

    def _run_state(self) -> RunState:
        """Everything that the next step depends on, to save and to load."""
        return RunState(
            config=self.config,
            worker=self.worker,
            model=self.model,
            masks=self.masks,
            optimizer=self.optimizer,
            method=self.sparse.method,
            precision=self.engine.precision,
            train_data=self.data.train,
            input=network_input(self.config, self.data),
            evaluated_on=self.data.evaluated_on,
            sums=self.engine.sums,
            progress=Progress(initial_active={layer.name: layer.active_weights for layer in self.network.layers}),
        )


def _next(steps: Iterator[list[Batch]]) -> tuple[list[Batch] | None, str | None]:
    """The next step's micro-batches, None at the end of the epoch; or why this rank's data fail."""
    try:
        return next(steps, None), None
    except UserError as error:
        return None, str(error)
