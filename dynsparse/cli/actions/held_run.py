"""A training run from the moment on at which nobody else may use its folder."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import TypeVar

from dynsparse import torchrun
from dynsparse.config.own_file import told
from dynsparse.config.schema import RunConfig
from dynsparse.distributed import sync
from dynsparse.runtime import Worker
from dynsparse.shrinking.kept import shrinkages_in
from dynsparse.training.banner import banner_lines, exploration_lines
from dynsparse.training.building import build, build_criterion
from dynsparse.training.callbacks import standard_observers
from dynsparse.training.compatibility import require_same_settings
from dynsparse.training.ending import early_end
from dynsparse.training.memory_snapshot import snapshot_when_full
from dynsparse.training.older import as_of_now, with_layers_of
from dynsparse.training.preflight import require_model_of
from dynsparse.training.profiling import profiled
from dynsparse.training.progress import Progress
from dynsparse.training.resume import (
    ResumePoint,
    checkpoints_of,
    differences,
    find_resume_point,
    is_finished,
    take_folder,
)
from dynsparse.training.run.collective import waiting
from dynsparse.training.run.lock import RunLock
from dynsparse.training.stopping import StopFlag
from dynsparse.training.trainer import Trainer

log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True)
class HeldRun:
    """A run whose folder this launch holds."""

    config: RunConfig
    resume: str | None
    overwrite: bool
    worker: Worker
    stop: StopFlag
    lock: RunLock

    def train(self) -> None:
        """Build everything, then touch the run's folder: an error before leaves it as it was."""
        retry = sync.any_rank(torchrun.is_retry())
        point = self._on_disk(lambda: self._find(retry=retry))
        if point is not None and (said := sync.from_rank_0(lambda: finished(self.config, point))):
            if self.worker.is_main:
                print(said)
            return
        if point is not None:  # Before a network is built as large as its config says.
            sync.from_rank_0(lambda: require_model_of(self.config, point.state))
        with told(self.config.method):
            trainer = self._trainer(point)
        self._on_disk(lambda: self._take(point))
        if self.worker.is_main:
            torchrun.note_taken()
            lines = banner_lines(trainer.config, trainer.network, trainer.data, self.worker)
            explores = exploration_lines(trainer.sparse.method, trainer.config.method.name)
            print("\n".join([*lines, *trainer.sparse.method.notes, *explores]), flush=True)
        with closing(trainer.data), self._recorded(trainer):
            trainer.fit()

    @contextmanager
    def _recorded(self, trainer: Trainer) -> Iterator[None]:
        """Record the trainer's speed and memory, as far as the config asks for it."""
        log, folder, rank, on = self.config.log, self.config.folder, self.worker.rank, trainer.engine.device
        done = trainer.progress.step
        with (
            snapshot_when_full(folder, on, rank=rank, history=log.memory_history),
            profiled(log.profile, trainer.when_stepped, on, folder, rank=rank, done=done),
        ):
            yield

    def _on_disk(self, act: Callable[[], T]) -> T:
        """Let rank 0 act, and wait for storage that is away. Returns its result on all ranks."""
        patience = self.config.distributed.timeout_seconds / 4
        return sync.from_rank_0(lambda: waiting(act, patience, again=self.lock.again))

    def _find(self, *, retry: bool) -> ResumePoint | None:
        launch = torchrun.launch_id()
        return find_resume_point(self.config, resume=self.resume, overwrite=self.overwrite, launch=launch, retry=retry)

    def _take(self, point: ResumePoint | None) -> None:
        launch, guard = torchrun.launch_id(), self.lock.require
        take_folder(self._config(point), point, overwrite=self.overwrite, launch=launch, guard=guard)

    def _config(self, point: ResumePoint | None) -> RunConfig:
        """The config; where an older version began the run, with the layers that were sparse then."""
        return self.config if point is None else with_layers_of(self.config, point.state)

    def _trainer(self, point: ResumePoint | None) -> Trainer:
        """Return a trainer at the resume point, or at the start of a new run."""
        config, worker, launch, guard = self._config(point), self.worker, torchrun.launch_id(), self.lock.require
        shrinkages = () if point is None else shrinkages_in(point.state)
        network, data = build(config, worker, fresh=point is None, shrinkages=shrinkages)
        criterion = build_criterion(config, data, worker)
        resumed_from = point and point.path
        trainer = Trainer(
            config,
            network,
            data,
            worker,
            criterion=criterion,
            observers=standard_observers(config, launch=launch, resumed_from=resumed_from) if worker.is_main else (),
            checkpoints=checkpoints_of(config, launch, guard) if worker.is_main else None,
            stop_requested=self.stop,
            guard=guard,
        )
        if point is not None:
            sync.together(lambda: trainer.load(point.state))
        return trainer


def finished(config: RunConfig, start: ResumePoint) -> str | None:
    """Return the line that says that a run has trained for all of its epochs, or ended early; None if it has not.

    UserError for settings that are another run's. Others that have changed are warned of.
    """
    if not is_finished(config, start):
        return None
    require_same_settings(start.state, config)
    for line in differences(as_of_now(start.state["config"]), as_of_now(config.as_dict())):
        if not line.startswith(("name=", "runs=")):
            log.warning("the run is done, and %s has no effect", line)
    progress = Progress.model_validate(start.state["progress"])
    if progress.epoch < config.train.epochs and (why := early_end(config.train, progress)):
        return f"{start.path} is the end of its run ({why}); set train.early_stop.patience= to train on"
    return f"{start.path} has all {config.train.epochs} epochs behind it; set train.epochs= to train on"
