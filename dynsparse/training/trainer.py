"""Training, from the first step to the last."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from dynsparse.config.schema import RunConfig
from dynsparse.distributed import sync
from dynsparse.errors import DivergedError, RunError, StopRequested, UserError
from dynsparse.masks import optimizer_state
from dynsparse.optimizers import parameter_groups, set_rate
from dynsparse.reallocation import ReallocationReport
from dynsparse.runtime import Worker
from dynsparse.seeds import seed_for
from dynsparse.shrinking.kept import Shrinkage
from dynsparse.shrinking.moments import follow
from dynsparse.sparse_training import SparseTraining
from dynsparse.training import penalties
from dynsparse.training.bad_samples import share_bad_samples
from dynsparse.training.callbacks import Callback, Observers, SamplesReport, ShrinkReport, Summary
from dynsparse.training.checkpoint import CheckpointFolder
from dynsparse.training.clipping import clip
from dynsparse.training.criterion import Criterion
from dynsparse.training.ema import Ema
from dynsparse.training.ending import early_end, is_evaluated, lacks_evaluation
from dynsparse.training.engine import Engine
from dynsparse.training.evaluate import Evaluations, Tally
from dynsparse.training.evaluator import Evaluator
from dynsparse.training.network import Network, method_settings
from dynsparse.training.network_input import network_input
from dynsparse.training.norms import GradientNorms
from dynsparse.training.opening import tell_start
from dynsparse.training.outcomes import Outcomes
from dynsparse.training.precision import Outcome
from dynsparse.training.preflight import require_samples_for_norm, require_warmup
from dynsparse.training.progress import Progress
from dynsparse.training.reports import Reporter
from dynsparse.training.saving import Saving
from dynsparse.training.shrinking import Found, find_unused, is_due, size_of, take_biases
from dynsparse.training.sizes import forget_compiled, training_shape
from dynsparse.training.state import RunState
from pipelines import preview
from pipelines.base import Batch, Data

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
        criterion: Criterion | None = None,
        observers: Sequence[Callback] = (),
        checkpoints: CheckpointFolder | None = None,
        stop_requested: Callable[[], bool] = lambda: False,
        guard: Callable[[], None] = lambda: None,
    ) -> None:
        """`guard` is called before an observer writes. It may raise OSError, as where the run's folder is gone.

        `criterion`: None for that of the config, without a teacher.
        """
        self.config, self.network, self.data, self.worker = config, network, data, worker
        self.model, self.masks = network.model, network.masks
        require_warmup(config, data.train.epochs)
        self.stop_requested = stop_requested
        self.when_stepped: list[Callable[[], None]] = []
        """Functions to call at the end of each training step, skipped or not, after its reallocation; on every rank."""
        self.resumed = False
        groups = parameter_groups(self.model, config.train.parameters)
        self.optimizer = config.train.optimizer.build(groups, lr=self._lr(0))
        self.ema = self._average()
        self.sparse = self._sparse_training(data.train.epochs.before(config.train.start_epoch))
        self.engine = Engine(config, network, self.optimizer, criterion or Criterion(config.train), worker)
        self.run = self._run_state()
        self.reporter = Reporter(self.run, network)
        self.observers = Observers(observers if worker.is_main else (), guard)
        self.outcomes = Outcomes(self.run)
        self.saving = Saving(self.run, self.outcomes, network, self.reporter, self.observers, checkpoints)
        torch.manual_seed(seed_for(config.seed, "rank", worker.rank))

    @property
    def progress(self) -> Progress:
        """Epochs, steps and best results so far."""
        return self.run.progress

    def load(self, saved: Mapping[str, Any]) -> None:
        """Continue from a checkpoint's content (`RunState.load`). Before `fit`."""
        self.outcomes.catch_up()
        self.run.load(saved)
        self.sparse.steps, self.sparse.owed_event = self.progress.step, self.progress.owed_event
        set_rate(
            self.optimizer, self._lr(max(0, self.progress.step - 1))
        )  # An epoch that ends before another step reports it.
        self.resumed = True

    def fit(self) -> Summary:
        """Train until the last epoch, or to an early stop. Raises what `epochs` raises."""
        for _ in self.epochs():
            pass
        return self.saving.end("done")

    def epochs(self) -> Iterator[int]:
        """Train epoch by epoch: yields the number of those that are done.

        Raises StopRequested if asked to stop, and UserError for what the user can mend: on every rank at once, with
        a checkpoint saved to resume from.
        """
        self._start()
        try:
            self._stop_if_asked()
            while not self._is_over():
                self._shrink_if_due()
                self._train_epoch()
                self._finish_epoch()
                yield self.progress.epoch
            self._evaluate_end()
        except (StopRequested, RunError) as why:
            self._end_early(why)
            raise

    def train_step(self, micro_batches: Sequence[Batch]) -> Tensor:
        """One optimizer step on this worker's share of a global batch. Returns its mean loss, on the device.

        On a GPU `progress` may learn only in the next step, or by `outcomes.catch_up`, whether this one was skipped.
        """
        step, epoch = self.progress.step, self.progress.epoch
        set_rate(self.optimizer, self._lr(step))
        whole = self.sparse.wants_whole_gradients
        self._count_flops(whole=whole)
        loss = self.engine.backward(micro_batches, whole=whole, epoch=epoch, step=step)
        outcome = self.engine.outcome()
        self.outcomes.catch_up()  # Of the step before: the device has this one's passes to go on with.
        self.progress.step += 1
        if self._can_leave_open():
            self.sparse.leave_open()
            self._update(unless=outcome > 0)
            self.outcomes.leave_open(outcome)
        elif known := Outcome(int(outcome)):
            self.engine.skip()
            self.outcomes.note(self.progress.step, known)
            self.sparse.skip_step()
        else:
            self.outcomes.note(self.progress.step, known)
            self._update()
        self.progress.owed_event = self.sparse.owed_event
        for tell in self.when_stepped:
            tell()
        return loss

    def _can_leave_open(self) -> bool:
        """Whether nothing on the host depends on whether this step is skipped, and the device can skip it alone."""
        can_be = self.engine.can_leave_open and self.outcomes.can_stay_open
        return can_be and not self.sparse.needs_outcome(self.progress.step)

    def _update(self, unless: Tensor | None = None) -> None:
        """Update the weights; leave all as before the step where a flag on the device says so."""
        self.sparse.prepare_gradients()
        penalties.add_gradients(self.config.train.penalty, self.network.layers)
        if (norm := clip(self.config.train.clip, self.model.parameters())) is not None:
            self.run.gradient_norms.add(norm, unless)
        self.engine.step(unless)  # SparseTraining sees it, and reallocates if due.
        if self.ema is not None:
            self.ema.follow(self.progress.step, unless)

    def evaluate(self, tally: Tally | None = None) -> Evaluations:
        """Evaluate on the test samples and what else there is: see `Evaluator.evaluate`."""
        evaluator = Evaluator(self.engine, self.ema, self.data, self.stop_requested)
        return evaluator.evaluate(tally)

    def settle(self) -> None:
        """Settle the engine, with everything as before after it (`Engine.settle`)."""
        kept = self.run.of_this_rank()
        coming = range(self.progress.step + 1, self.progress.step + 11)
        self.engine.settle(
            epoch=self.progress.epoch if self.resumed or self.progress.step else self.config.train.start_epoch,
            gradients_before=self.run.gradients_before,
            always_whole=all(self.sparse.wants_whole_gradients_in(step) for step in coming),
        )
        self.progress.gradients = self.engine.parallel.gradients
        self.run.load_of_this_rank(kept)

    def steps(self) -> Iterator[Sequence[Batch]]:
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

    # Parts of a run.

    def _start(self) -> None:
        """Get ready for the first step. UserError leaves nothing behind that a run could be resumed from."""
        require_samples_for_norm(self.model, self.config, self.worker.world_size)
        self.reporter.session_begins()
        self.settle()
        if not self.resumed:
            self._begin()
        self.saving.start(resumed=self.resumed)
        tell_start(self.config, self.data, self.worker, self.engine, self.sparse, self.ema)
        if not self.resumed:
            self.saving.save(initial=True)
        self.network.initial_weights = {}  # Nothing needs them any more.

    def _train_epoch(self) -> None:
        """Make the remaining steps of the epoch."""
        self.reporter.epoch_begins()
        global_batch = self.config.train.batch_at(self.progress.epoch)
        for micro_batches in self.steps():
            self._show(micro_batches)
            loss = self.train_step(micro_batches)
            self.reporter.step_done(global_batch, self.engine.parallel.take_bytes_sent())
            if self.worker.is_main and self.progress.step % self.config.log.every_steps == 0:
                self.observers.on_step(self.reporter.step_report(loss))
                self.saving.retry()
        self.outcomes.catch_up()
        self.reporter.epoch_trained()

    def _finish_epoch(self) -> None:
        """Verify, evaluate, report, save."""
        progress = self.progress
        progress.desyncs_repaired += self._verify()
        share_bad_samples(self.run)
        results = self._evaluate_or_go_back() if is_evaluated(self.config.train, progress.epoch) else Evaluations()
        sums = sync.sum_(self.run.sums.clone()).tolist()
        self.run.sums.zero_()
        settled = self.sparse.reallocator.is_settled(self.sparse.clock(progress.step))
        is_best = progress.take(results, eligible=settled, improvement=self.config.train.early_stop.improvement)
        if self.worker.is_main:
            self.observers.on_epoch(self.reporter.epoch_report(results, sums))
        self.run.gradient_norms.begin_epoch()
        progress.epoch += 1
        due = is_best or progress.epoch % self.config.checkpoint.every_epochs == 0
        latest = self._is_over() or (due and not progress.skipped_in_a_row)
        if latest or is_best:  # A step that was skipped has changed no weight: the best stay the best.
            self.saving.save(best=is_best, latest=latest)

    def _evaluate_end(self) -> None:
        """Evaluate and save where no epoch has just done so: a resume with fewer epochs may find nothing to train."""
        progress, has_samples = self.progress, self.data.test is not None or self.data.validation is not None
        if not (has_samples and lacks_evaluation(progress)):
            return
        results = self._evaluate_or_go_back()
        settled = self.sparse.reallocator.is_settled(self.sparse.clock(progress.step))
        is_best = progress.take(results, eligible=settled, improvement=self.config.train.early_stop.improvement)
        self.saving.save(best=is_best)

    def _end_early(self, why: StopRequested | RunError) -> None:
        """End a run before its last epoch: with a checkpoint to resume from, unless training has diverged.

        A step whose data are fetched, but not trained on, comes again. An epoch that is not evaluated ends anew.
        """
        progress = self.progress
        self.outcomes.catch_up()
        self.data.train.seek(progress.epoch, progress.step - self.data.train.epochs.before(progress.epoch))
        if not isinstance(why, DivergedError):
            self.saving.save()
        if isinstance(why, RunError):
            self.saving.end("failed", why)
        else:
            self.saving.end("stopped")

    # Shrinks.

    def _shrink_if_due(self) -> None:
        """Take out the channels that are of no use, if the config asks for it before this epoch."""
        progress = self.progress
        begins = progress.step == self.data.train.epochs.before(progress.epoch)
        if is_due(self.config, self.network, progress.epoch, begins=begins):
            device = self.engine.device
            with torch.random.fork_rng([device] if device.type == "cuda" else []):
                self._shrink(progress.epoch)

    def _shrink(self, epoch: int) -> None:
        """Shrink before an epoch: all that holds parameters follows, or is made anew. Every rank does the same."""
        before, began = size_of(self.network), time.monotonic()
        found = self._find_unused(epoch)
        take_biases([self.model, *([] if self.ema is None else [self.ema.model])], found)
        if found.shrinkage.modules:
            self._lose(found.shrinkage)
            self.settle()
            self.progress.desyncs_repaired += self._verify()
        else:
            self.network.note(found.shrinkage)
            self.run.shrinkages = self.network.shrinkages
        after, seconds = size_of(self.network), time.monotonic() - began
        report = ShrinkReport(epoch, self.progress.step, before, after, self.network.costs, seconds)
        for line in str(report).splitlines():
            log.info("%s", line)
        if self.worker.is_main:
            self.observers.on_shrink(report)

    def _find_unused(self, epoch: int) -> Found:
        """Find what can go, on rank 0. RunError on every rank if that fails."""
        Evaluator(self.engine, self.ema, self.data, self.stop_requested).average_buffers()
        average = None if self.ema is None else self.ema.model
        try:
            return sync.from_rank_0(lambda: find_unused(self.config, self.network, average, epoch))
        except UserError as error:
            raise RunError(*error.lines) from None

    def _lose(self, shrinkage: Shrinkage) -> None:
        """Take channels out of the network, the average of its weights and the optimizer's state."""
        state = self.sparse.method.state_after_shrink(shrinkage.rows())
        self.sparse.release()
        parameters, shrunk = self.network.shrink(shrinkage, self.config)
        follow(self.optimizer, parameters)
        self.masks = self.network.masks
        for layer, units in zip(self.masks, shrunk.grown, strict=True):
            optimizer_state.begin(self.optimizer, layer, units, None)
        if self.ema is not None:
            self.ema.shrink(shrinkage, self.model, self.masks)
        self.sparse = self._sparse_training(self.progress.step)
        self.sparse.owed_event = self.progress.owed_event
        self.sparse.method.load_state_dict(state)
        forget_compiled(self.config)
        self.engine = Engine(self.config, self.network, self.optimizer, self.engine.criterion, self.worker)
        self._follow_in_run_state()

    def _follow_in_run_state(self) -> None:
        run = self.run
        self.engine.precision.load_state_dict(run.precision.state_dict())
        run.masks, run.method, run.precision = self.masks, self.sparse.method, self.engine.precision
        run.sums, run.shrinkages = self.engine.sums, self.network.shrinkages
        run.gradients_before = self.progress.gradients

    # Smaller parts.

    def _verify(self) -> bool:
        """Prove that all ranks hold the same. Returns whether they had to be repaired."""
        repaired = bool(self.sparse.verify())
        if repaired and self.ema is not None:
            self.ema.follow_masks(repaired=True)
        return repaired

    def _stop_if_asked(self) -> None:
        if sync.any_rank(self.stop_requested()):
            raise StopRequested

    def _is_over(self) -> bool:
        """Whether nothing is left to train. A run ends early after an epoch, never within one."""
        train, progress = self.config.train, self.progress
        at_end_of_epoch = progress.step == self.data.train.epochs.before(progress.epoch)
        return progress.epoch >= train.epochs or (at_end_of_epoch and early_end(train, progress) is not None)

    def _begin(self) -> None:
        """Take the position of the first epoch, which need not be 0 (`train.start_epoch`)."""
        first = self.config.train.start_epoch
        self.progress.epoch, self.progress.step = first, self.data.train.epochs.before(first)
        self.data.train.seek(first, 0)

    def _show(self, micro_batches: Sequence[Batch]) -> None:
        """Give the observers a look at the first batch of a run."""
        first = self.data.train.epochs.before(self.config.train.start_epoch)
        if self.worker.is_main and self.progress.step == first and not self.resumed:
            self.observers.on_samples(SamplesReport(preview.picture(self.data, *micro_batches[0], most=32)))

    def _note(self, report: ReallocationReport) -> None:
        """Count a reallocation and tell the observers; of one a step, only now and then."""
        self.progress.reallocations += 1
        self.progress.desyncs_repaired += bool(report.repaired)
        if self.ema is not None:
            self.ema.follow_masks(repaired=bool(report.repaired))
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

    def _count_flops(self, *, whole: bool) -> None:
        """Count the coming step, at the densities of now. One that is skipped has computed its gradients too."""
        epoch = self.progress.epoch
        images, costs = self.config.train.batch_at(epoch), self.network.costs_at(training_shape(self.config, epoch))
        if costs is not None:
            flops = self.network.step_flops(costs, whole=whole)
            self.progress.count_flops(images * flops, images * 3 * costs.reference)

    def _lr(self, step: int) -> float:
        """The learning rate of a step, a curve over epochs: see `EpochTable.in_first`."""
        epochs, curve = self.data.train.epochs, self.config.train.lr
        length = epochs.steps(0)
        return curve.at(epochs.in_first(step), length, self.config.train.epochs * length)  # type: ignore[arg-type]

    def _average(self) -> Ema | None:
        """Begin the average of the weights, if the config asks for one."""
        settings = self.config.train.ema
        return None if settings is None else Ema(settings, self.model, self.masks, self.data.train.epochs)

    def _sparse_training(self, steps: int) -> SparseTraining:
        """Keep the network sparse, as any loop does. This one masks gradients itself: see `Engine.backward`.

        `steps`: optimizer steps done before.
        """
        config, epochs = self.config, self.data.train.epochs
        method = method_settings(config, [layer.spec for layer in self.masks])
        built = method.build()
        if built.keeps_reserve:
            self.network.unmask()
        sparse = SparseTraining(
            self.model,
            self.optimizer,
            method,
            masks=self.masks,
            total_steps=epochs.before(config.train.epochs),
            steps_per_epoch=epochs.as_given(),
            input_shape=self.network.image_shape if built.wants_channels else None,
            steps=steps,
            seed=config.seed,
            on_desync=config.distributed.on_desync,
            on_reallocation=lambda report: self._note(report),
            mask_in_backward=False,
        )
        if self.network.start is not None:
            sparse.method.forecast = None  # It was made for the network of the start.
        return sparse

    def _run_state(self) -> RunState:
        """Everything that the next step depends on, to save and to load."""
        forecast = self.sparse.method.forecast
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
            gradient_norms=GradientNorms(self.engine.device),
            ema=self.ema,
            shrinkages=self.network.shrinkages,
            teacher=None if self.engine.criterion.teacher is None else self.engine.criterion.teacher.digest,
            progress=Progress(
                initial_active={layer.name: layer.active_weights for layer in self.network.layers},
                ever_active_forecast=None if forecast is None else forecast.share,
            ),
        )


def _next(steps: Iterator[list[Batch]]) -> tuple[list[Batch] | None, str | None]:
    """The next step's micro-batches, None at the end of the epoch; or why this rank's data fail."""
    try:
        return next(steps, None), None
    except UserError as error:
        return None, str(error)
