"""Training, from the first step to the last."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.nn import functional

from dynsparse.config.schema import RunConfig
from dynsparse.distributed import agreement, sync
from dynsparse.errors import StopRequested, UserError
from dynsparse.optimizers import check_layouts
from dynsparse.reallocation import ReallocationReport
from dynsparse.runtime import Worker
from dynsparse.seeds import seed_for
from dynsparse.sparse_training import SparseTraining
from dynsparse.training import packing, penalties
from dynsparse.training.callbacks import Callback, Observers, SamplesReport, Summary
from dynsparse.training.checkpoint import CheckpointFolder, SaveTimer
from dynsparse.training.evaluate import Evaluation, Evaluations, evaluate, hits
from dynsparse.training.network import Network, method_settings
from dynsparse.training.network_input import network_input
from dynsparse.training.parallel import Parallel
from dynsparse.training.precision import Precision
from dynsparse.training.preflight import require_samples_for_norm, samples_at_once
from dynsparse.training.progress import Progress
from dynsparse.training.reports import Reporter
from dynsparse.training.state import RunState
from dynsparse.training.undo import Undo
from dynsparse.training.waiting import wait_for_storage
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
        self.config = config
        self.network = network
        self.model, self.masks = network.model, network.masks
        self.data = data
        self.worker = worker
        self.device = next(self.model.parameters()).device
        self.observers = Observers(observers if worker.is_main else (), guard)
        self.checkpoints = checkpoints
        self.stop_requested = stop_requested
        self.save_timer = SaveTimer(config.checkpoint.every_minutes if worker.is_main else None)
        self._time_to_save = False

        settings = config.train
        self.total_steps = settings.epochs * data.train.steps_per_epoch
        self.optimizer = settings.optimizer.build(self.model.parameters(), lr=self._lr(0))
        per_epoch = data.train.steps_per_epoch
        self.sparse = SparseTraining(
            self.model,
            self.optimizer,
            method_settings(config, [layer.spec for layer in self.masks]),
            masks=self.masks,
            total_steps=self.total_steps,
            steps_per_epoch=per_epoch,
            steps=settings.start_epoch * per_epoch,
            seed=config.seed,
            on_desync=config.distributed.on_desync,
            on_reallocation=lambda report: self._note(report),
            mask_in_backward=False,
        )
        self.forward: nn.Module = torch.compile(self.model) if settings.compile else self.model  # type: ignore[assignment]
        self.parallel = Parallel(self.forward, self.masks, config.distributed.gradients, self.device)
        self.precision = Precision(settings.precision, self.device)
        self.run = RunState(
            config=config,
            worker=worker,
            model=self.model,
            masks=self.masks,
            optimizer=self.optimizer,
            method=self.sparse.method,
            precision=self.precision,
            train_data=data.train,
            input=network_input(config, data),
            evaluated_on=data.evaluated_on,
            sums=torch.zeros(3, dtype=torch.float64, device=self.device),
            progress=Progress(initial_active={layer.name: layer.active_weights for layer in network.layers}),
        )
        # What a forward pass changes: BatchNorm's statistics and the sums of the epoch.
        self._by_forward = Undo([*packing.buffers(self.model).values(), self.run.sums])
        self.resumed = False
        torch.manual_seed(seed_for(config.seed, "rank", worker.rank))

    @property
    def progress(self) -> Progress:
        return self.run.progress

    def load(self, saved: Mapping[str, Any]) -> None:
        """Continue from a checkpoint's content (`RunState.load`). Before `fit`."""
        self.run.load(saved)
        self.sparse.steps = self.progress.step
        self.resumed = True

    def fit(self) -> Summary:
        """Train until the last epoch. Raises StopRequested, with a checkpoint saved, if asked to stop."""
        require_samples_for_norm(self.model, self.config, self.worker.world_size)
        self.reporter = Reporter(self.run, self.network)
        self._settle()
        if not self.resumed:
            self._begin()
        sync.together(lambda: self.observers.on_start(self.reporter.run_report(resumed=self.resumed)))
        wait_for_storage(self._behind, self._write_again)
        failures = sync.from_rank_0(lambda: self.observers.failures("start"))
        if failures and not self.resumed:
            raise UserError(*failures)  # Nothing is lost yet: better to stop here than to train unseen.
        self._say_if_uneven()
        if not self.resumed:
            self._save(initial=True)
        self.network.initial_weights = {}  # Nothing needs them any more.
        if sync.any_rank(self.stop_requested()):
            self._stop()
        while self.progress.epoch < self.config.train.epochs:
            self._train_epoch()
            self._finish_epoch()
        return self._finish("done")

    def _begin(self) -> None:
        """Take the position of the first epoch, which need not be 0 (`train.start_epoch`)."""
        train, data = self.config.train, self.data.train
        self.progress.epoch = train.start_epoch
        self.progress.step = train.start_epoch * data.steps_per_epoch
        data.load_state_dict({**data.state_dict(), "epoch": train.start_epoch, "batch": 0})

    def _say_if_uneven(self) -> None:
        train, workers = self.config.train, self.worker.world_size
        if train.global_batch_size % (workers * train.micro_batches):
            log.warning(
                "each of %d workers x %d micro-batches gets %d or %d samples of a global batch of %d; the loss is the "
                "mean over all of them",
                workers,
                train.micro_batches,
                self._samples_at_once,
                self._samples_at_once + 1,
                train.global_batch_size,
            )

    def _train_epoch(self) -> None:
        self.reporter.epoch_begins()
        steps = self.data.train.epoch()
        while (micro_batches := self._fetch(steps)) is not None:
            self._show(micro_batches)
            loss = self.train_step(micro_batches)
            self.reporter.step_done(self.config.train.global_batch_size, self.parallel.take_bytes_sent())
            if self.worker.is_main and self.progress.step % self.config.log.every_steps == 0:
                self.observers.on_step(self.reporter.step_report(loss))
                if self.checkpoints is not None:
                    self.checkpoints.retry()
            if self._save_is_due():
                self._save()
        self.reporter.epoch_trained()

    def _fetch(self, steps: Iterator[list[Batch]]) -> list[Batch] | None:
        """The next step's micro-batches, or None where the epoch ends: on every rank, or all stop before the step.

        One exchange of flags a step (`sync.any_of`). Where a rank's data fail, the others have
        theirs already: all go back to where they were, and save.
        """
        before = self.data.train.state_dict()
        micro_batches, failure = None, None
        try:
            micro_batches = next(steps, None)
        except UserError as error:
            failure = str(error)
        stop, failed, self._time_to_save = sync.any_of(
            self.stop_requested(), failure is not None, self.save_timer.is_due()
        )
        if stop or failed:
            self.data.train.load_state_dict(before)
            if failed:
                self._end(UserError(*sync.all_said(failure)))
            self._stop()
        return micro_batches

    def _end(self, error: UserError) -> NoReturn:
        """Leave a checkpoint to go on from once the error has been mended."""
        self._save()
        self._fail(error)

    def _fail(self, error: UserError) -> NoReturn:
        self._finish("failed", error)
        raise error

    def _show(self, micro_batches: Sequence[Batch]) -> None:
        """Give the observers a look at the first batch of a run."""
        if self.worker.is_main and self.progress.step == 0 and not self.resumed:
            self.observers.on_samples(SamplesReport(preview.picture(self.data, *micro_batches[0], most=32)))

    def _share_bad_samples(self) -> None:
        """Tell all ranks what any has found, so that none need find it again."""
        if not self.config.data.skips_bad_files:
            return
        before = len(self.run.shared_bad_samples)
        bad = {sample: fault for known in sync.all_of(self.data.train.bad_samples) for sample, fault in known.items()}
        self.data.train.avoid(bad)
        self.run.shared_bad_samples = bad
        if len(bad) > before:
            log.warning(
                "%d of the training files are bad, %d of them found in this epoch; others of their classes come "
                "in their place",
                len(bad),
                len(bad) - before,
            )

    def _evaluate_or_end(self) -> Evaluations:
        before = self.run.of_this_rank()
        try:
            return self.evaluate()
        except (UserError, StopRequested) as error:  # On every rank.
            # A resume ends this epoch anew: to the end of it, not beyond.
            data = self.data.train
            data.load_state_dict({**data.state_dict(), "epoch": self.progress.epoch, "batch": data.steps_per_epoch})
            self.run.load_of_this_rank(before)
            if isinstance(error, UserError):
                self._end(error)
            self._stop()
            raise

    def train_step(self, micro_batches: Sequence[Batch]) -> Tensor:
        """One optimizer step on this worker's share of a global batch. Returns its mean loss, on the device."""
        for group in self.optimizer.param_groups:
            group["lr"] = self._lr(self.progress.step)
        self.parallel.whole = self.sparse.wants_whole_gradients
        self._by_forward.remember()
        loss = self._forward_backward(micro_batches)
        self.progress.step += 1
        if not (self.parallel.whole or self.parallel.masks_gradients):
            self.masks.mask_gradients()  # What lies outside has no say below.
        if self.precision.unscale(self.optimizer, self.model.parameters()):
            self.sparse.prepare_gradients()
            penalties.add_gradients(self.config.train.penalty, self.network.layers)
            self.progress.skipped_in_a_row = self.progress.bad_steps_in_a_row = 0
            self.precision.step(self.optimizer)  # And reallocates, if due.
            self.optimizer.zero_grad()
        else:
            self._skip_step()
        return loss

    def _skip_step(self) -> None:
        """Leave out a step whose loss or gradients are no finite numbers, as if there had been no such batch."""
        in_search_of_scale = self.precision.skip()
        self.optimizer.zero_grad()
        self._by_forward.restore()
        progress, most = self.progress, self.config.train.max_bad_steps
        progress.skipped_steps += 1
        progress.skipped_in_a_row += 1
        progress.bad_steps_in_a_row += not in_search_of_scale
        if not in_search_of_scale:
            log.warning("step %d skipped: its loss or gradients are no finite numbers", progress.step)
        if progress.bad_steps_in_a_row >= most:
            diverged = UserError(
                f"the loss or gradients of {most} steps in a row, the last of them step {progress.step}, are no finite "
                f"numbers (train.max_bad_steps): training has diverged; lower the learning rate and begin anew with "
                f"--overwrite, or resume from a checkpoint from well before"
            )
            self._fail(diverged)
        self.sparse.skip_step()

    def _forward_backward(self, micro_batches: Sequence[Batch]) -> Tensor:
        """Leave the gradients of the mean loss over the global batch, reduced over the ranks once.

        DDP takes the mean over the ranks, so each part is weighed by its samples: they need not be equally many.
        """
        smoothing = self.config.train.label_smoothing
        samples_a_rank = self.config.train.global_batch_size / self.worker.world_size
        losses, samples = [], 0
        for i, (images, labels) in enumerate(micro_batches):
            with self.parallel.reducing(last=i == len(micro_batches) - 1):
                with self.precision.autocast():
                    logits = self.parallel(self._formatted(images))
                loss = functional.cross_entropy(logits.float(), labels, label_smoothing=smoothing)
                self.precision.backward(loss / (samples_a_rank / len(labels)))
            losses.append(loss.detach() * len(labels))
            samples += len(labels)
            self._count(losses[-1], logits.detach(), labels)
        return torch.stack(losses).sum() / samples

    def _count(self, loss_sum: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Add to the epoch's sums, on the device."""
        self.run.sums[0] += loss_sum
        self.run.sums[1] += hits(logits, labels, 1)
        self.run.sums[2] += len(labels)

    def _note(self, report: ReallocationReport) -> None:
        """Count a reallocation and tell the observers; of one a step, only now and then."""
        self.progress.reallocations += 1
        self.progress.desyncs_repaired += bool(report.repaired)
        if not self.sparse.method.every_step or report.step % self.config.log.every_steps == 0:
            self.observers.on_reallocation(report)

    def _finish_epoch(self) -> None:
        """Verify, evaluate, report, save."""
        progress = self.progress
        progress.desyncs_repaired += bool(self.sparse.verify())
        self._share_bad_samples()
        results = self._evaluate_or_end()
        sums = sync.sum_(self.run.sums.clone()).tolist()
        self.run.sums.zero_()
        is_best = progress.take(results, eligible=self.sparse.method.is_settled(self.sparse.clock(progress.step)))
        if self.worker.is_main:
            self.observers.on_epoch(self.reporter.epoch_report(results, sums))
        progress.epoch += 1
        is_last = progress.epoch == self.config.train.epochs
        due = is_best or progress.epoch % self.config.checkpoint.every_epochs == 0
        if is_last or (due and not progress.skipped_in_a_row):
            self._save(best=is_best)

    def evaluate(self) -> Evaluations:
        """Evaluate on the test samples and what else there is, with the mean BatchNorm statistics of all ranks."""
        agreement.average_buffers(self.model)

        def on(pipeline: EvaluationPipeline) -> Evaluation:
            return evaluate(self.forward, pipeline, self.device, self.precision.autocast(), self.stop_requested)

        data = self.data
        return Evaluations(
            test=on(data.test) if data.test else None,
            validation=on(data.validation) if data.validation else None,
            train=on(data.train_evaluation) if data.train_evaluation else None,
        )

    def _save_is_due(self) -> bool:
        """Not while steps are skipped: the checkpoints from before are to stay. By rank 0's clock, for all ranks."""
        every = self.config.checkpoint.every_steps
        due = self._time_to_save or (every is not None and self.progress.step % every == 0)
        return due and not self.progress.skipped_in_a_row

    def _save(self, *, best: bool = False, initial: bool = False) -> None:
        """Save on rank 0, which takes a snapshot and writes it in the background; the others hand over what is theirs.

        Changes nothing in the run, and nobody waits for the disk, unless it still has the save before to write.
        """
        self.save_timer.saved()
        ranks = sync.gather(self.run.of_this_rank())
        self._await_writer()
        self.observers.write()  # A resume from this checkpoint finds all lines of before it.
        if ranks is not None and self.checkpoints is not None:
            self.progress.seconds = self.reporter.seconds
            content = self.run.snapshot(ranks)
            more = {"initial_weights": dict(self.network.initial_weights)} if initial else {}
            self.checkpoints.begin(lambda: {**content(), **more}, self.progress.step, best=best, initial=initial)

    def _stop(self) -> None:
        self._save()
        self._finish("stopped")
        raise StopRequested

    def _finish(self, status: str, cause: UserError | None = None) -> Summary:
        """Tell the observers. UserError if not all is on disk, after the lines of what else ended the run."""
        summary = self.reporter.summary(status)
        self._await_writer()  # What the summary tells of is on disk by then, or known to be missing.
        self.observers.on_end(summary)
        wait_for_storage(self._behind, self._write_again)
        if lost := sync.from_rank_0(self._not_saved):
            raise UserError(*(cause.lines if cause else ()), *lost)
        return summary

    def _behind(self) -> list[str]:
        return [*(self.checkpoints.behind if self.checkpoints is not None else ()), *self.observers.behind]

    def _write_again(self) -> None:
        """A collective, as `_await_writer` is."""
        if self.checkpoints is not None:
            self.checkpoints.retry(now=True)
        self._await_writer()
        self.observers.write(sync=True)

    def _await_writer(self) -> None:
        """Until rank 0 has written what it is writing: together, lest a slow disk be taken for a rank that hangs."""
        patience = self.config.distributed.timeout_seconds / 4
        while sync.any_rank(self.checkpoints is not None and not self.checkpoints.has_written(within=patience)):
            pass

    def _not_saved(self) -> list[str]:
        failures = self.checkpoints.failures if self.checkpoints is not None else []
        return [*failures, *self.observers.failures("end")]

    def _settle(self) -> None:
        """One throw-away forward and backward pass, after which everything is as before.

        DDP lays its buckets out anew after the first backward, which changes
        the order of sums and so the last bits of gradients on more than two
        ranks. Settled before the first step of every start, a resumed run sums
        like the one that was never interrupted.
        """
        images = torch.zeros(self._samples_at_once, *self.config.data.image_shape, device=self.device)
        labels = torch.zeros(self._samples_at_once, dtype=torch.int64, device=self.device)
        kept = self.run.of_this_rank()

        def throw_away(parts: int) -> None:
            self._forward_backward([(images, labels)] * parts)
            check_layouts(self.model.parameters())
            self.optimizer.zero_grad()

        throw_away(1)
        coming = range(self.progress.step + 1, self.progress.step + 11)
        self.parallel.choose(
            lambda: throw_away(self.config.train.micro_batches),
            before=self.run.gradients_before,
            always_whole=all(self.sparse.wants_whole_gradients_in(step) for step in coming),
        )
        self.progress.gradients = self.parallel.gradients
        self.parallel.take_bytes_sent()
        self.run.load_of_this_rank(kept)

    @property
    def _samples_at_once(self) -> int:
        return samples_at_once(self.config, self.worker.world_size)

    def _lr(self, step: int) -> float:
        return self.config.train.lr.at(step, self.data.train.steps_per_epoch, self.total_steps)

    def _formatted(self, images: Tensor) -> Tensor:
        return images.contiguous(memory_format=torch.channels_last) if self.config.train.channels_last else images
