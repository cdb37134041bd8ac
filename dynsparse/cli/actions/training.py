"""A training run: begin it, or resume it, in its folder."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import pipelines
from dynsparse import torchrun
from dynsparse.cli.actions.base import Action, Rule, position_in, require, require_device_of, start_rules
from dynsparse.cli.actions.held_run import HeldRun, finished
from dynsparse.cli.leaving import end_at_once
from dynsparse.config.schema import RunConfig
from dynsparse.determinism import deterministic
from dynsparse.distributed import sync
from dynsparse.errors import EXIT_STOPPED, StopRequested
from dynsparse.runtime import Worker, process_group
from dynsparse.training.building import data_request
from dynsparse.training.callbacks import require_trackers
from dynsparse.training.checkpoint import how_chosen
from dynsparse.training.compatibility import require_same_evaluation
from dynsparse.training.first_masks import require_batches
from dynsparse.training.memory_snapshot import require_memory_history
from dynsparse.training.preflight import (
    idle_warning,
    require_resumable,
    require_usable_sources,
    require_usable_teacher,
    require_warmup,
)
from dynsparse.training.resume import (
    ResumePoint,
    find_resume_point,
    require_writable,
)
from dynsparse.training.run.collective import holding
from dynsparse.training.run.lock import RunLock
from dynsparse.training.run.timing import BEAT_SECONDS
from dynsparse.training.stopping import StopFlag


@dataclass(frozen=True)
class Training(Action):
    """Train in the run's folder, from the start or from where it was stopped."""

    resume: str | None = None
    """"auto", a checkpoint's path, or None for a new run."""
    overwrite: bool = False

    def rules(self, worker: Worker) -> list[Rule]:
        """Return the rules of a start."""
        rules = start_rules(self.config, worker, self.resume)
        return [
            *rules,
            lambda: require_device_of(self.config, worker),
            lambda: require_trackers(self.config, usable=worker.is_main),
            lambda: require_memory_history(self.config, worker),
        ]

    def rehearse(self, worker: Worker) -> str:
        """Raise UserError where the folder is in use or another's, or where checkpoint or data do not fit."""
        config = self.config
        start = self._find_start()
        if start is None:
            require([*_network_rules(config), lambda: _require_data(config, worker)])
            return f"a start would begin in {config.folder}"
        if said := finished(config, start):
            return said
        state = start.state
        require(
            [
                lambda: require_resumable(config, state),
                lambda: require_usable_teacher(config, state),
                lambda: _require_data(config, worker, state),
            ]
        )
        return f"a start would resume from {how_chosen(start.path, state)}"

    def _find_start(self) -> ResumePoint | None:
        """Return where a start would resume, after it has been seen that the folder is free and can be written."""
        launch = torchrun.launch_id()
        RunLock(self.config.folder, launch).require_free(within=BEAT_SECONDS + 1)
        start = find_resume_point(self.config, resume=self.resume, overwrite=self.overwrite, launch=launch)
        require_writable(self.config.folder)
        return start

    def run(self, worker: Worker) -> None:
        """Train to the last epoch. Raises StopRequested, with a checkpoint saved, if asked to stop."""
        stop = StopFlag()
        stop.install()  # From here on a signal is remembered, however long the start takes.
        repeatable = deterministic(self.config.train.deterministic)
        with repeatable, process_group(worker, self.config.distributed.backend, self.config.distributed.timeout):
            try:
                self._hold_folder(worker, stop)
            except StopRequested:
                # On all ranks: a mark is seen on its own machine alone, and where there is none torchrun would start
                # workers again that wait for the others in vain.
                if sync.any_rank(stop.ends_launch):
                    torchrun.end_launch(EXIT_STOPPED)
                raise

    def _hold_folder(self, worker: Worker, stop: StopFlag) -> None:
        """Train while nobody else may use the folder."""
        patience = self.config.distributed.timeout_seconds
        again = worker.is_main and torchrun.has_taken()
        lock = RunLock(self.config.folder, torchrun.launch_id(), grace=patience, again=again, on_loss=end_at_once)
        with holding(lock, patience / 4):
            HeldRun(self.config, self.resume, self.overwrite, worker, stop, lock).train()


def _network_rules(config: RunConfig) -> list[Rule]:
    """Return the rules of networks that a new run takes over or learns from."""
    return [lambda: require_usable_sources(config), lambda: require_usable_teacher(config)]


def _require_data(config: RunConfig, worker: Worker, saved: Mapping[str, Any] | None = None) -> None:
    """Raise UserError for data that cannot be trained on, or other than a checkpoint's; warn if no weight will move."""
    data = position_in(config, worker)
    require_warmup(config, data.epochs)
    if saved is None:
        require_batches(config, data.epochs)
    else:
        data.load_state_dict(saved["data"])
        if "evaluated_on" in saved and not getattr(config.data, "download", False):
            with closing(pipelines.build(config.data, data_request(config, worker))) as whole:
                require_same_evaluation(saved, whole.evaluated_on)
    done = data.epochs.before(config.train.start_epoch) if saved is None else saved["progress"]["step"]
    if warning := idle_warning(config, data.epochs, done):
        print(f"warning: {warning}", file=sys.stderr, flush=True)
