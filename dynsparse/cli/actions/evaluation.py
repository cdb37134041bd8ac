"""`--evaluate CKPT`: the accuracy of a checkpoint on the test data."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pipelines
from dynsparse.cli.actions.base import Action, Rule, network_rules, position_in, require
from dynsparse.cli.actions.confusion_file import by_class, require_file, write_confusion
from dynsparse.config.schema import RunConfig
from dynsparse.determinism import deterministic
from dynsparse.distributed import sync
from dynsparse.keeping.notices import without_notices
from dynsparse.runtime import Worker, process_group
from dynsparse.schedules import StepLr
from dynsparse.shrinking.kept import shrinkages_in
from dynsparse.training.banner import banner_lines
from dynsparse.training.building import (
    build,
    data_request,
    normalisation_in,
    require_same_classes,
    require_same_normalisation,
)
from dynsparse.training.checkpoint import how_chosen, read_run, result_of
from dynsparse.training.confusion import Confusion, require_classes
from dynsparse.training.older import with_layers_of
from dynsparse.training.preflight import require_checkpoint_of, require_model_of
from dynsparse.training.trainer import Trainer
from pipelines.mixing import NO_MIXING


@dataclass(frozen=True)
class Evaluation(Action):
    """Evaluate the checkpoint that `source` names: a file, or a run's best."""

    source: str
    confusion: str | None = None
    """File for a confusion matrix."""

    @property
    def checkpoint(self) -> Path:
        """Return the checkpoint's file. Raises UserError if there is none."""
        return result_of(self.source)

    def rules(self, worker: Worker) -> list[Rule]:
        """Return the rules of a network that is given data."""
        rules: list[Rule] = [*network_rules(self.config, worker), lambda: pipelines.check(self.config.data)]
        file = self.confusion
        if file is None:
            return rules
        return [*rules, lambda: require_file(file), lambda: require_classes(self.config.data.classes)]

    def rehearse(self, worker: Worker) -> str:
        """Raise UserError for a checkpoint of another network, and for data that it cannot be evaluated on."""
        path = self.checkpoint
        saved = read_run(path)
        require(
            [
                lambda: require_checkpoint_of(self.config, saved),
                lambda: require_data_of(saved, self.config, worker),
            ]
        )
        return f"can be evaluated: {how_chosen(path, saved)}"

    def run(self, worker: Worker) -> None:
        """Evaluate on all workers; rank 0 prints the accuracy on each split."""
        repeatable = deterministic(self.config.train.deterministic)
        with repeatable, process_group(worker, self.config.distributed.backend, self.config.distributed.timeout):
            _evaluate(self.config, worker, self.checkpoint, self.confusion)


def without_training(config: RunConfig, worker: Worker) -> RunConfig:
    """Return the config without what its training asks of the training samples: other data may have fewer of them.

    Batches are the smallest. Nothing is repeated in them, mixed or resized, and no rate warms up over them. What only
    GPUs can train by is off: an evaluation needs it nowhere.
    """
    smallest = {"global_batch_size": worker.world_size, "image_size": None, "micro_batches": 1}
    on_gpus = {"cuda_graphs": False, "semi_structured": False}
    train = config.train.model_copy(update={**smallest, **on_gpus, "mixing": NO_MIXING, "lr": StepLr()})
    return config.model_copy(update={"train": train, "data": config.data.without_repeats()})


def require_data_of(saved: Mapping[str, Any], config: RunConfig, worker: Worker) -> None:
    """Raise UserError for data that the network of a checkpoint cannot be evaluated on."""
    config = without_training(config, worker)
    position_in(config, worker)
    if not getattr(config.data, "download", False):
        request = replace(data_request(config, worker), normalisation=normalisation_in(saved))
        with closing(pipelines.build(config.data, request)) as data:
            require_same_classes(saved, data)
            require_same_normalisation(saved, data)


def _evaluate(config: RunConfig, worker: Worker, checkpoint: Path, file: str | None) -> None:
    saved = sync.from_rank_0(lambda: read_run(checkpoint))
    require_model_of(config, saved)
    config = with_layers_of(config, saved)
    plain = without_training(config, worker)
    network, data = build(plain, worker, shrinkages=shrinkages_in(saved), normalisation=normalisation_in(saved))
    with without_notices():
        trainer = Trainer(plain, network, data, worker)
    if "ema" not in saved:
        trainer.ema = trainer.run.ema = None
    sync.together(lambda: trainer.run.load_network(saved))
    require_same_classes(saved, data)
    require_same_normalisation(saved, data)
    if worker.is_main:
        print("\n".join(banner_lines(config, network, data, worker)))
        print(how_chosen(checkpoint, saved), flush=True)
    confusion = None if file is None else Confusion.empty(config.data.classes, trainer.engine.device)
    with closing(data):
        result = trainer.evaluate(None if confusion is None else confusion.add)
    whole = None if confusion is None else confusion.summed()
    if worker.is_main:
        for name, on in result.named():
            if on is not None:
                left_out = (
                    f"  without {on.left_out:,} bad samples of {on.samples + on.left_out:,}" if on.left_out else ""
                )
                print(f"{name}: top-1 {on.top1:.2f} %  top-5 {on.top5:.2f} %  loss {on.loss:.4f}{left_out}")
        if file is not None and whole is not None:
            names = data.class_names or [str(i) for i in range(config.data.classes)]
            print("\n".join(by_class(whole, names, averaged=result.best_by == "ema")))
            print(f"written: {', '.join(map(str, write_confusion(file, whole, names)))}", flush=True)
