"""`--evaluate CKPT`: the accuracy of a checkpoint on the test data."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pipelines
from dynsparse.cli.actions.base import Action, Rule, network_rules, position_in, require
from dynsparse.config.schema import RunConfig
from dynsparse.distributed import sync
from dynsparse.runtime import Worker, process_group
from dynsparse.training.banner import banner_lines
from dynsparse.training.building import build, data_request, require_same_classes
from dynsparse.training.checkpoint import how_chosen, read_run, result_of
from dynsparse.training.preflight import require_checkpoint_of, require_model_of
from dynsparse.training.trainer import Trainer


@dataclass(frozen=True)
class Evaluation(Action):
    """Evaluate the checkpoint that `source` names: a file, or a run's best."""

    source: str

    @property
    def checkpoint(self) -> Path:
        """Return the checkpoint's file. Raises UserError if there is none."""
        return result_of(self.source)

    def rules(self, worker: Worker) -> list[Rule]:
        """Return the rules of a network that is given data."""
        return [*network_rules(self.config, worker), lambda: pipelines.check(self.config.data)]

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
        with process_group(worker, self.config.distributed.backend, self.config.distributed.timeout):
            _evaluate(self.config, worker, self.checkpoint)


def require_data_of(saved: Mapping[str, Any], config: RunConfig, worker: Worker) -> None:
    """Raise UserError for data that the network of a checkpoint cannot be evaluated on."""
    position_in(config, worker)
    if not getattr(config.data, "download", False):
        with closing(pipelines.build(config.data, data_request(config, worker))) as data:
            require_same_classes(saved, data)


def _evaluate(config: RunConfig, worker: Worker, checkpoint: Path) -> None:
    saved = sync.from_rank_0(lambda: read_run(checkpoint))
    require_model_of(config, saved)
    network, data = build(config, worker)
    trainer = Trainer(config, network, data, worker)
    sync.together(lambda: trainer.run.load_network(saved))
    require_same_classes(saved, data)
    if worker.is_main:
        print("\n".join(banner_lines(config, network, data, worker)))
        print(how_chosen(checkpoint, saved), flush=True)
    with closing(data):
        result = trainer.evaluate()
    if worker.is_main:
        for name, on in (("test", result.test), ("validation", result.validation), ("train", result.train)):
            if on is not None:
                print(f"{name}: top-1 {on.top1:.2f} %  top-5 {on.top5:.2f} %  loss {on.loss:.4f}")
