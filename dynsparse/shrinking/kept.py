"""Records of a shrink: the channels that each module keeps, as plain data that applies to whatever has its shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dynsparse.errors import UserError

_SIDES = ("outputs", "inputs")


@dataclass(frozen=True)
class Kept:
    """Channels that a module keeps: int64, rising, on the CPU. None: all."""

    outputs: Tensor | None = None
    """Rows of its weight, and entries of its bias and its statistics."""
    inputs: Tensor | None = None
    """Columns of its weight."""

    def part(self, tensor: Tensor) -> Tensor:
        """Return what is left of a parameter, a buffer or a moment of this module, in the same memory format."""
        found = tensor
        if self.outputs is not None and tensor.dim() > 0:
            found = found.index_select(0, self.outputs.to(tensor.device))
        if self.inputs is not None and tensor.dim() > 1:
            found = found.index_select(1, self.inputs.to(tensor.device))
        return found.contiguous(memory_format=_format(tensor))


@dataclass(frozen=True)
class Shrinkage:
    """One shrink of a run. It applies to the network that the shrinks before it have left."""

    epoch: int
    """Epoch that it came before, counted from 0."""
    modules: Mapping[str, Kept]
    """Modules that have changed, by name. None if no channel was of no use."""

    def kept(self, parameter: str) -> Kept:
        """Return what is kept of the module that has a parameter or buffer of this name."""
        return self.modules.get(parameter.rpartition(".")[0], Kept())

    def rows(self) -> dict[str, Tensor]:
        """Return the rows that each weight keeps, by parameter name; those that keep all are absent."""
        return {f"{name}.weight": kept.outputs for name, kept in self.modules.items() if kept.outputs is not None}

    @torch.no_grad()
    def apply(self, model: nn.Module) -> dict[nn.Parameter, tuple[nn.Parameter, Kept]]:
        """Make a model smaller, in place. Returns the new parameters by the old ones, and what is kept of each.

        Its weights may lie on the meta device. UserError for a model without these modules and channels.
        """
        found: dict[nn.Parameter, tuple[nn.Parameter, Kept]] = {}
        for name, kept in self.modules.items():
            found |= _resize(_module(model, name, kept), kept)
        return found

    def state(self) -> dict[str, Any]:
        """Return plain data and tensors, for a checkpoint."""
        modules = {
            name: {side: value for side in _SIDES if (value := getattr(kept, side)) is not None}
            for name, kept in self.modules.items()
        }
        return {"epoch": self.epoch, "modules": modules}


def sizes_of(module: nn.Module) -> tuple[int, ...]:
    """Return a module's number of outputs, and of inputs if its weight has any. A norm may be without a weight."""
    if isinstance(weight := getattr(module, "weight", None), Tensor):
        return tuple(weight.shape[:2])
    return (module.num_features,) if isinstance(module, nn.modules.batchnorm._BatchNorm) else ()


def shrinkages_in(saved: Mapping[str, Any]) -> tuple[Shrinkage, ...]:
    """Return the shrinks of a checkpoint's content, in their order. Older ones have none."""
    return tuple(
        Shrinkage(one["epoch"], {name: Kept(**kept) for name, kept in one["modules"].items()})
        for one in saved.get("shrinkages", [])
    )


def apply_all(model: nn.Module, shrinkages: Sequence[Shrinkage]) -> None:
    """Make a model as small as these shrinks have made it, in place."""
    for one in shrinkages:
        one.apply(model)


def _resize(module: nn.Module, kept: Kept) -> dict[nn.Parameter, tuple[nn.Parameter, Kept]]:
    """Replace a module's parameters and buffers by what is kept of them. Returns the new parameters by the old."""
    found: dict[nn.Parameter, tuple[nn.Parameter, Kept]] = {}
    for name, parameter in list(module.named_parameters(recurse=False)):
        smaller = nn.Parameter(kept.part(parameter.detach()), parameter.requires_grad)
        setattr(module, name, smaller)
        found[parameter] = smaller, kept
    for name, value in list(module.named_buffers(recurse=False)):
        setattr(module, name, kept.part(value))
    _describe(module, kept)
    return found


def _describe(module: nn.Module, kept: Kept) -> None:
    """Set the sizes by which a module describes itself, and a depthwise convolution's groups."""
    outputs = None if kept.outputs is None else kept.outputs.numel()
    inputs = None if kept.inputs is None else kept.inputs.numel()
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = outputs or module.out_features, inputs or module.in_features
    elif isinstance(module, nn.Conv2d):
        if module.groups > 1 and outputs is not None:
            module.groups, inputs = outputs, outputs
        module.out_channels, module.in_channels = outputs or module.out_channels, inputs or module.in_channels
    elif isinstance(module, nn.modules.batchnorm._BatchNorm):
        module.num_features = outputs or module.num_features


def _module(model: nn.Module, name: str, kept: Kept) -> nn.Module:
    """Return a module of the model. UserError unless it has the channels that are kept."""
    module: nn.Module | None = dict(model.named_modules()).get(name)
    sizes = () if module is None else sizes_of(module)
    sides = enumerate((kept.outputs, kept.inputs))
    fits = all(len(sizes) > side and int(places[-1]) < sizes[side] for side, places in sides if places is not None)
    if not fits or module is None:
        raise UserError(
            f"the checkpoint is of another model: it has made {name} smaller, and that is absent or too small here; "
            f"use the config that it was made with"
        )
    return module


def _format(tensor: Tensor) -> torch.memory_format:
    """Memory format of a tensor. One that is in both counts as contiguous."""
    last = tensor.dim() == 4 and not tensor.is_contiguous()
    return torch.channels_last if last else torch.contiguous_format
