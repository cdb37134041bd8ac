"""Building of a network, its data and a trainer from a config."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pipelines
from dynsparse.config.schema import RunConfig
from dynsparse.distributed import sync
from dynsparse.errors import UserError
from dynsparse.runtime import Worker
from dynsparse.shrinking.kept import Shrinkage
from dynsparse.training.callbacks import Callback
from dynsparse.training.checkpoint import CheckpointFolder
from dynsparse.training.criterion import Criterion
from dynsparse.training.first_masks import scored
from dynsparse.training.network import Network, build_network
from dynsparse.training.network_input import differing_class, network_input
from dynsparse.training.sources import NOTHING, Sources, read_sources
from dynsparse.training.teacher import TeacherSource, build_teacher, read_source, require_same_input
from dynsparse.training.trainer import Trainer
from pipelines.base import Data, Request
from pipelines.order import Share
from pipelines.views import Normalisation


def build(
    config: RunConfig,
    worker: Worker,
    *,
    fresh: bool = False,
    shrinkages: Sequence[Shrinkage] = (),
    normalisation: Normalisation | None = None,
) -> tuple[Network, Data]:
    """Build a rank's network and data; all ranks must call it together.

    One process a machine fetches the data before any reads them. Only a fresh run looks at `config.start`, and chooses
    masks: a resumed one has weights and masks of its own, and `shrinkages`. `normalisation` is that of a network to
    evaluate, where it would be computed from the training images. UserError where ranks see different data.
    """
    _require_same_method(config)
    sync.together(lambda: pipelines.fetch(config.data) if worker.local_rank == 0 else None)
    sources = sync.from_rank_0(lambda: read_sources(config)) if fresh else NOTHING
    network, data = sync.together(lambda: build_parts(config, worker, sources, shrinkages, normalisation))
    require_same_data(data)
    return (scored(config, network, data, worker) if fresh else network), data


def _require_same_method(config: RunConfig) -> None:
    """Raise UserError where ranks have run other files of a method of one's own; all ranks call it together."""
    checksums = sync.all_of(getattr(config.method, "checksum", None))
    differing = [str(rank) for rank, checksum in enumerate(checksums) if checksum != checksums[0]]
    if differing:
        raise UserError(
            f"method.path: worker {', '.join(differing)} has another method file than worker 0; give all machines the "
            f"same file"
        )


def build_criterion(config: RunConfig, data: Data, worker: Worker) -> Criterion:
    """Build a rank's loss, with the teacher that the config names; all ranks must call it together.

    Rank 0 reads the teacher. UserError if it cannot be read, or does not fit the network or the data.
    """
    source = sync.from_rank_0(lambda: read_source(config))
    return sync.together(lambda: _criterion(config, data, worker, source))


def _criterion(config: RunConfig, data: Data, worker: Worker, source: TeacherSource | None) -> Criterion:
    if source is None:
        return Criterion(config.train)
    require_same_input(source, network_input(config, data))
    teacher = build_teacher(config, source)
    teacher.model.to(worker.device(config.distributed.backend))
    return Criterion(config.train, teacher)


def build_parts(
    config: RunConfig,
    worker: Worker,
    sources: Sources = NOTHING,
    shrinkages: Sequence[Shrinkage] = (),
    normalisation: Normalisation | None = None,
) -> tuple[Network, Data]:
    """Build a rank's network and data, without a word to the other ranks."""
    device = worker.device(config.distributed.backend)
    data = pipelines.build(config.data, replace(data_request(config, worker), normalisation=normalisation))
    return build_network(config, device, sources, shrinkages), data


def build_trainer(
    config: RunConfig,
    worker: Worker,
    sources: Sources = NOTHING,
    *,
    observers: Sequence[Callback] = (),
    checkpoints: CheckpointFolder | None = None,
) -> Trainer:
    """Build a rank's trainer, without a word to the other ranks but on masks by score: for tests and scripts."""
    network, data = build_parts(config, worker, sources)
    network = scored(config, network, data, worker)
    criterion = _criterion(config, data, worker, read_source(config))
    return Trainer(config, network, data, worker, criterion=criterion, observers=observers, checkpoints=checkpoints)


def data_request(config: RunConfig, worker: Worker) -> Request:
    """Return the rank's share of the batches, and how it wants them."""
    return Request(
        seed=config.seed,
        global_batch=config.train.batch_at(0),
        share=Share(worker.rank, worker.world_size, config.train.micro_batches, config.train.mixing.unit),
        evaluation_batch=config.train.evaluation_batch_size,
        device_id=worker.device(config.distributed.backend).index,
        evaluate_train=config.train.evaluate_train,
        channels_last=config.train.channels_last,
        mixing=config.train.mixing,
        phases=config.train.phases,
    )


def require_same_data(data: Data) -> None:
    """Raise UserError where ranks see other data than rank 0, such as another copy; all ranks call it together."""
    states = sync.all_of((data.train.state_dict(), data.evaluated_on))
    differing = [str(rank) for rank, state in enumerate(states) if state != states[0]]
    if differing:
        raise UserError(
            f"data: worker {', '.join(differing)} has other samples to train or to evaluate on than worker 0; "
            "give all machines the same files, of the same names"
        )


def require_same_classes(saved: Mapping[str, Any], data: Data) -> None:
    """Raise UserError if the network's outputs are other classes than the data's, as far as both have names."""
    trained = saved.get("input", {}).get("class_names", [])
    if (number := differing_class(data.class_names, trained)) is not None:
        raise UserError(
            f"data: class {number} is {data.class_names[number]}, and {trained[number]} where the checkpoint was "
            "trained; give data of the same classes"
        )


def normalisation_in(saved: Mapping[str, Any]) -> Normalisation | None:
    """Return the normalisation that a checkpoint's network was trained with; None for older checkpoints."""
    mean, std = (saved.get("input", {}).get(key) for key in ("mean", "std"))
    return None if mean is None or std is None else Normalisation(tuple(mean), tuple(std))


def require_same_normalisation(saved: Mapping[str, Any], data: Data) -> None:
    """Raise UserError if the network was trained on images of another normalisation, as far as that is known."""
    theirs = normalisation_in(saved)
    ours = data.normalisation
    if ours is not None and theirs is not None and ours != theirs:
        raise UserError(
            f"data: images are normalised with mean {list(ours.mean)} and std {list(ours.std)}, and with "
            f"{list(theirs.mean)} and {list(theirs.std)} where the checkpoint was trained; give data of the same kind "
            f"(data.name)"
        )
