"""Words of a run at its first step: phases, decay and rates, doubts, and what keeps the host waiting."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from math import ceil

from torch import optim

from dynsparse import later
from dynsparse.config.schema import RunConfig
from dynsparse.optimizers import described, skips_on_device
from dynsparse.runtime import Worker
from dynsparse.sparse_training import SparseTraining
from dynsparse.training.ema import Ema
from dynsparse.training.engine import Engine
from dynsparse.training.preflight import warn_if_stopped_by_test, warn_if_uneven
from dynsparse.training.sizes import phase_lines
from pipelines.base import Data

log = logging.getLogger(__name__)


def tell_start(
    config: RunConfig, data: Data, worker: Worker, engine: Engine, sparse: SparseTraining, ema: Ema | None
) -> None:
    """Log what is to be known of a run that begins or resumes."""
    train, epochs = config.train, data.train.epochs
    warn_if_uneven(config, worker.world_size)
    warn_if_stopped_by_test(config, data)
    for line in idle(config):
        log.warning(line)
    for line in phase_lines(config, epochs):
        log.info(line)
    for line in () if train.parameters.is_off else described(engine.optimizer):
        log.info("%s", line)
    if ema is not None:
        ema.warn_if_slow(epochs.before(train.start_epoch), epochs.before(train.epochs))
    if later.is_far(engine.device) and (reasons := [*_reasons(config, engine.optimizer, sparse)]):
        log.info("the host waits for the GPU in every step: %s", "; ".join(reasons))


def idle(config: RunConfig) -> Iterator[str]:
    """Yield a line for each option that does nothing beside the others, of those that a short run may keep."""
    train, track = config.train, config.log
    if train.penalty.group_lasso and not train.penalty.l1:
        yield "train.penalty.group_lasso has no effect while train.penalty.l1 is 0"
    if track.project is not None and not (track.wandb or track.mlflow):
        yield f"log.project is {track.project}, and neither log.wandb nor log.mlflow is true: nothing is tracked"
    patience, evaluations = train.early_stop.patience, ceil(train.epochs / train.evaluate_every_epochs)
    if patience is not None and patience + 1 >= evaluations:
        yield (
            f"train.early_stop.patience is {patience}, and the run has {evaluations} evaluations: it cannot end early"
        )


def _reasons(config: RunConfig, optimizer: optim.Optimizer, sparse: SparseTraining) -> Iterator[str]:
    """Yield why the host must know of each step whether it is skipped, before it queues the next."""
    if not skips_on_device(optimizer):
        yield f"{type(optimizer).__name__} cannot skip a step there, as sgd and adamw can"
    coming = range(sparse.steps + 1, sparse.steps + 11)
    if all(sparse.needs_outcome(step) for step in coming):
        yield f"method {config.method.name} learns from each step, or moves weights in it"
    if config.train.max_bad_steps == 1:
        yield "train.max_bad_steps is 1, so that any step may be the last"
