"""Sizes of training images that change from phase to phase: whether a network takes them, and how it is compiled."""

from __future__ import annotations

import torch
from torch import nn
from torch.func import functional_call

from dynsparse.config.schema import RunConfig
from dynsparse.errors import UserError
from dynsparse.models.shapes import on_meta
from pipelines.common.epochs import EpochTable
from pipelines.phases import Phase

SHAPES_OF_A_PHASE = 2
"""Shapes of a worker's micro-batches in a phase: parts differ by at most one sample."""
SHAPES_OF_EVALUATION = 6
"""Whole and last batches of test, validation and training samples."""


def training_shape(config: RunConfig, epoch: int) -> tuple[int, int, int]:
    """Return (channels, height, width) of the training images of an epoch."""
    channels, height, width = config.data.image_shape
    size = config.train.size_at(epoch)
    return (channels, height, width) if size is None else (channels, size, size)


def phase_lines(config: RunConfig, lengths: EpochTable) -> list[str]:
    """Return a line for each phase of training; none if there is one alone. `lengths`: steps of the epochs."""
    phases = config.train.phases
    if len(phases) == 1:
        return []
    ends = [phase.first for phase in phases[1:]] + [config.train.epochs]
    return [
        f"{_range(phase.first + 1, end)}: images of {'x'.join(map(str, training_shape(config, phase.first)))}, "
        f"global batches of {phase.global_batch:,}, {lengths.steps(phase.first):,} steps an epoch"
        for phase, end in zip(phases, ends, strict=True)
    ]


def _range(first: int, last: int) -> str:
    return f"epoch {first}" if first == last else f"epochs {first} to {last}"


def require_sizes(config: RunConfig, model: nn.Module) -> None:
    """Raise UserError if the network cannot take the training images of a phase. Takes no memory."""
    if config.train.image_size is None or (found := refused_size(config, model)) is None:
        return
    phase, reason = found
    raise UserError(
        f"train.image_size is {phase.image_size}{config.train.since(phase)}, and {config.model.name} built for images "
        f"of {config.data.image_shape[1]} cannot take them ({reason}); leave train.image_size out, or choose other "
        f"sizes or another model"
    )


def refused_size(config: RunConfig, model: nn.Module) -> tuple[Phase, str] | None:
    """Return the first phase whose training images a network cannot take, and why; None if it takes all.

    Shapes alone are computed, on torch's meta device. The network is put into evaluation mode.
    """
    tensors = on_meta(model.eval())
    for phase in config.train.phases:
        images = torch.empty(2, *training_shape(config, phase.first), device="meta")
        try:
            with torch.no_grad():
                functional_call(model, tensors, (images,))
        except (RuntimeError, ValueError, AssertionError) as error:
            return phase, " ".join(str(error).split()).rstrip(".!")
    return None


def forget_compiled(config: RunConfig) -> None:
    """Forget what was compiled for a network of another size: torch would make its next graph for any size."""
    if config.train.compile:
        from torch import _dynamo  # Only here: importing the compiler takes a second.

        _dynamo.reset()


def compiled(model: nn.Module, config: RunConfig) -> nn.Module:
    """Compile a model: once for each shape where sizes or batches change, or passes are replayed as CUDA graphs.

    torch would make the second graph for any shape. A run that resumes in a later phase would then have another graph
    than one that came to it, and other last bits.
    """
    replayed = config.train.cuda_graphs
    each_shape = len(config.train.phases) > 1 or replayed
    if each_shape:
        from torch._dynamo import config as dynamo  # Only here: importing the compiler takes a second.

        needed = SHAPES_OF_A_PHASE * len(config.train.phases) + SHAPES_OF_EVALUATION
        dynamo.recompile_limit = max(dynamo.recompile_limit, needed)
    return torch.compile(  # type: ignore[return-value]
        model, dynamic=False if each_shape else None, mode="reduce-overhead" if replayed else None
    )
