"""The contract of an action, and what several actions ask before they begin."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pipelines
from dynsparse import torchrun
from dynsparse.config.own_file import told
from dynsparse.config.schema import RunConfig
from dynsparse.errors import UserError
from dynsparse.runtime import Worker
from dynsparse.training.building import data_request
from dynsparse.training.devices import require_device
from dynsparse.training.network import require_layers, require_parameters
from dynsparse.training.preflight import require_split
from dynsparse.training.resume import begun_by
from dynsparse.training.shrinking import require_shrinkable
from dynsparse.training.sources import require_sources
from dynsparse.training.teacher import require_there
from pipelines.base import TrainPipeline
from pipelines.position import Position

Rule = Callable[[], object]
"""A check that raises UserError, or returns."""


@dataclass(frozen=True)
class Action(ABC):
    """An action that a command line asks for, with its config."""

    config: RunConfig

    @abstractmethod
    def rules(self, worker: Worker) -> list[Rule]:
        """Return what can refuse the action before any process group or GPU is touched."""

    @abstractmethod
    def rehearse(self, worker: Worker) -> str:
        """Raise what the action would refuse later, as it reads, builds and takes its folder.

        Fetches and changes nothing. Returns in words what would be done.
        """

    @abstractmethod
    def run(self, worker: Worker) -> None:
        """Carry the action out. All workers call it."""


def require(rules: Sequence[Rule]) -> None:
    """Raise one UserError with all that the rules refuse."""
    problems: list[str] = []
    for rule in rules:
        try:
            rule()
        except UserError as error:
            problems += str(error).splitlines()
    if problems:
        raise UserError(*dict.fromkeys(problems))


def network_rules(config: RunConfig, worker: Worker) -> list[Rule]:
    """Return the rules of whatever builds the network."""
    return [
        lambda: _require_layers(config),
        lambda: require_parameters(config),
        lambda: worker.backend(config.distributed.backend),
    ]


def _require_layers(config: RunConfig) -> None:
    with told(config.method):
        require_layers(config)


def require_shrinks(config: RunConfig) -> None:
    """Raise UserError for a network or a method that cannot lose the channels that the config asks it to."""
    with told(config.method):
        require_shrinkable(config)


def start_rules(config: RunConfig, worker: Worker, resume: str | None) -> list[Rule]:
    """Return the rules of a start on real data."""
    rules = [
        *network_rules(config, worker),
        lambda: require_split(config, worker.world_size),
        lambda: require_shrinks(config),
        lambda: pipelines.check(config.data),
        lambda: require_there(config),
    ]
    if resume is None and not is_later_attempt(config):
        rules.append(lambda: require_sources(config))
    return rules


def require_device_of(config: RunConfig, worker: Worker) -> None:
    """Raise UserError if the config cannot be trained on the worker's device."""
    require_device(config, worker.device(config.distributed.backend))


def is_later_attempt(config: RunConfig) -> bool:
    """Return whether this looks like another attempt of a launch. Rank 0 decides it, in `find_resume_point`."""
    return torchrun.is_retry() or begun_by(torchrun.launch_id(), config.folder)


def position_in(config: RunConfig, worker: Worker) -> Position | TrainPipeline:
    """Return where training on the data begins. Raises UserError where building the data would."""
    return pipelines.position_of(config.data, data_request(config, worker))
