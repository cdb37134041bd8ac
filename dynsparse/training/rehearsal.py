"""A run as one of many workers, on one machine: what each rank holds, gets and sends."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import chain

from torch import Tensor

from dynsparse.config.schema import RunConfig
from dynsparse.distributed.rehearsing import LoneRank, Sent, lone_rank
from dynsparse.runtime import Worker
from dynsparse.training.activations import of_step
from dynsparse.training.building import build, build_criterion, data_request
from dynsparse.training.trainer import Trainer
from pipelines.base import Batch

MOST_STEPS = 1_000_000
"""Steps that are looked through for the first event."""


@dataclass(frozen=True)
class Rehearsal:
    """Figures of a rank of many in the first steps of a run. Bytes are those that it hands to `torch.distributed`."""

    rank: int
    world_size: int
    global_batch: int
    share: tuple[tuple[int, int], ...]
    """First place and number of samples of each of the rank's micro-batches, in each global batch."""
    fewest: int
    """Samples of the rank that has the fewest in a global batch."""
    most: int
    steps_per_epoch: int
    """Steps of the first epoch."""
    memory: dict[str, int]
    """Bytes that the rank holds, by what they are for: those of a trainer that was really built."""
    activations: int | str
    """Bytes that the forward pass of the largest micro-batch keeps (`activations.of_step`), or why they are unknown."""
    samples: tuple[tuple[int, ...], ...]
    """Numbers in the data set of the rank's samples in the first step of each of the first two epochs, as there are."""
    step: tuple[Sent, ...]
    """Calls of a step without an event."""
    gradients: dict[str, int]
    """Bytes of a step's gradients, sent the one way and the other: "active" and "dense"."""
    chosen: str
    """Setting `distributed.gradients`. For "auto", which a start settles by its clock, steps here send active ones."""
    event: tuple[Sent, ...]
    """Calls of the first step with an event; empty if there is none."""
    event_step: int | None
    """Number of that step, counted from 1."""
    state: int
    """Bytes that each rank hands to rank 0 at a save."""

    @property
    def plan(self) -> int:
        """Bytes of the plan that rank 0 broadcasts at an event."""
        return sum(sent.bytes for sent in self.event if sent.call == "broadcast")


def rehearse(config: RunConfig, rank: int, world_size: int) -> Rehearsal:
    """Build the run as this rank of so many would, and make its first steps and its first event.

    Reads the data and writes nothing. Ranks differ in the samples that they get, and in nothing else that is told
    here; so this one decides in place of rank 0. Raises UserError for what a start would refuse.
    """
    chosen = config.distributed.gradients
    asked = "active" if chosen == "auto" else chosen  # A real start chooses by its own clock.
    distributed = config.distributed.model_copy(update={"gradients": asked})
    config = config.model_copy(update={"distributed": distributed})
    worker = Worker(rank, world_size)
    with lone_rank(world_size) as group:
        network, data = build(config, worker, fresh=True)
        with closing(data):
            trainer = Trainer(config, network, data, worker, criterion=build_criterion(config, data, worker))
            trainer.settle()
            return _of(trainer, group, chosen)


def _of(trainer: Trainer, group: LoneRank, chosen: str) -> Rehearsal:
    config, world_size = trainer.config, trainer.worker.world_size
    first = config.train.start_epoch
    batch = config.train.batch_at(first)
    usual, event = _first_steps(trainer)
    parts = _parts(config, trainer.worker.rank, world_size)
    samples = [sum(map(len, _parts(config, rank, world_size))) for rank in range(world_size)]
    _sent_in(trainer, usual or event or 1, group)  # After its first backward pass DDP arranges its buckets anew.
    step = () if usual is None else _sent_in(trainer, usual, group)
    return Rehearsal(
        rank=trainer.worker.rank,
        world_size=world_size,
        global_batch=batch,
        share=tuple((part.start, len(part)) for part in parts),
        samples=_samples(trainer),
        fewest=min(samples),
        most=max(samples),
        steps_per_epoch=trainer.data.train.epochs.steps(first),
        step=step,
        event=() if event is None else _sent_in(trainer, event, group),
        event_step=event,
        gradients=_gradients(trainer),
        chosen=chosen,
        memory=memory_of(trainer),
        activations=of_step(trainer.engine, max(_first_batch(trainer), key=lambda part: len(part[1]))),
        state=len(pickle.dumps(trainer.run.of_this_rank())),
    )


def _parts(config: RunConfig, rank: int, world_size: int) -> list[range]:
    """Return the places in a global batch of each of a rank's micro-batches."""
    batch = config.train.batch_at(config.train.start_epoch)
    share = data_request(config, Worker(rank, world_size)).share
    return [range(batch)[share.part(part, batch)] for part in range(share.micro_batches)]


def _first_steps(trainer: Trainer) -> tuple[int | None, int | None]:
    """Return the first step without and the first with an event, counted from 1; None where there is none."""
    config, epochs = trainer.config.train, trainer.data.train.epochs
    start, end = epochs.before(config.start_epoch), epochs.before(config.epochs)
    found: dict[bool, int] = {}
    for step in range(start + 1, min(end, start + MOST_STEPS) + 1):
        found.setdefault(trainer.sparse.reallocator.is_due(trainer.sparse.clock(step)), step)
        if len(found) == 2:
            break
    return found.get(False), found.get(True)


def _sent_in(trainer: Trainer, step: int, group: LoneRank) -> tuple[Sent, ...]:
    """Make a step with the first batch of the run, and return what was handed over in it."""
    progress, data = trainer.progress, trainer.data.train
    progress.epoch, progress.step = data.epochs.epoch_of(step - 1), step - 1
    trainer.sparse.steps = progress.step
    before = len(group.sent)
    trainer.train_step(_first_batch(trainer))
    return tuple(group.sent[before:])


def _first_batch(trainer: Trainer) -> Sequence[Batch]:
    """Return the micro-batches of the rank in the first step of the run."""
    trainer.data.train.seek(trainer.config.train.start_epoch, 0)
    return next(trainer.steps())


def _samples(trainer: Trainer) -> tuple[tuple[int, ...], ...]:
    """Return the rank's samples in the first step of each of the first two epochs, in the order of its reading."""
    first, end = trainer.config.train.start_epoch, trainer.config.train.epochs
    steps = [trainer.data.train.samples(epoch, 0) for epoch in range(first, end)[:2]]
    return tuple(tuple(map(int, chain.from_iterable(parts))) for parts in steps)


def _gradients(trainer: Trainer) -> dict[str, int]:
    """Return the bytes of a step's gradients, sent in either way."""
    trained = [one for one in trainer.model.parameters() if one.requires_grad]
    dense = sum(map(_bytes, trained))
    inactive = sum(
        (layer.spec.units * layer.spec.unit_size - layer.active_weights) * layer.weight.element_size()
        for layer in trainer.masks
        if layer.parameter.requires_grad
    )
    return {"active": dense - inactive, "dense": dense}


def memory_of(trainer: Trainer) -> dict[str, int]:
    """Return the bytes that a trainer holds, by what they are for. Activations are not among them."""
    model, optimizer = trainer.model, trainer.optimizer
    trained = [one for one in model.parameters() if one.requires_grad]
    state = [one for entry in optimizer.state.values() for one in entry.values() if isinstance(one, Tensor)]
    average = [] if trainer.ema is None else [*trainer.ema.model.parameters(), *trainer.ema.model.buffers()]
    held: dict[str, list[Tensor]] = {
        "weights": [*model.parameters(), *model.buffers()],
        "gradients": [*trained],
        "optimizer": state,
        "average": average,
    }
    sizes = {name: sum(map(_bytes, tensors)) for name, tensors in held.items()}
    return {**sizes, "masks": sum(layer.held_bytes for layer in trainer.masks)}


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
