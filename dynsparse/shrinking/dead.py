"""Channels whose removal changes nothing that a network computes.

Nobody reads a channel where all weights of its readers are 0 there. A channel is constant where all weights of its
writers are 0: what BatchNorm and activations make of that is the same number for every image. A reader takes that
number into its bias, unless it pads its input with zeros, which makes a border of other sums. A network may mix what
depends on the image into such a channel, so it is proved for each reader (`independence`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dynsparse.shrinking.groups import Group, Side
from dynsparse.shrinking.independence import moving, rows_of


@dataclass(frozen=True)
class Dead:
    """Channels of a group that can go."""

    channels: list[int]
    biases: list[tuple[nn.Module, Tensor]]
    """Readers, and what each takes into its bias: float32, as many values as it has outputs."""


def dead_channels(groups: Sequence[Group], model: nn.Module, images: Tensor) -> list[Dead]:
    """Find them in each group, in evaluation mode. One channel stays of a group that is dead as a whole.

    What a constant channel holds is seen with `images`, float32, (batch, channels, height, width).
    """
    modules = {side.module for group in groups for side in group.readers}
    inputs = inputs_of(model, images, modules)
    silent = {side.module: _without_weights(side.module) for group in groups for side in group.writers}
    if any(bool(rows.any()) for rows in silent.values()):
        moves = moving(model, images, silent, {module: values[0] for module, values in inputs.items()})
    else:
        moves = {}
    return [_of(group, inputs, moves) for group in groups]


def _without_weights(module: nn.Module) -> Tensor:
    """Return the outputs of a layer that have weights of 0 alone: bool, one an output."""
    return (module.get_parameter("weight").detach() == 0).flatten(1).all(1)


def _of(group: Group, inputs: Mapping[nn.Module, Tensor], moves: Mapping[nn.Module, Tensor]) -> Dead:
    """Find them in a group. `moves`: inputs that are no constants, by layer; empty where no output is silent."""
    unread = torch.ones(group.size, dtype=torch.bool)
    silent, fixed = unread.clone(), unread.clone()
    for side in group.readers:
        unread &= ~_used(side, group.size, columns=True)
        fixed &= _takes_constants(side, inputs[side.module], moves.get(side.module), group.size)
    for side in group.writers:
        silent &= ~_used(side, group.size, columns=False)
    going = unread | silent & fixed
    if bool(going.all()):
        going[0] = False
    biases = [(side.module, _bias(side, inputs[side.module], going)) for side in group.readers]
    return Dead(going.nonzero().flatten().tolist(), biases)


def _used(side: Side, size: int, *, columns: bool) -> Tensor:
    """Return which channels have a weight other than 0 in a layer: bool, one a channel."""
    weight = side.module.get_parameter("weight").detach()
    rows = (weight.transpose(0, 1) if columns else weight)[side.places].flatten(1)
    return any_place(side, (rows != 0).any(1), size)


def _takes_constants(side: Side, seen: Tensor, moves: Tensor | None, size: int) -> Tensor:
    """Return the channels that are one number for the reader: 0, or any number where it does not pad."""
    if moves is None:
        return torch.zeros(size, dtype=torch.bool)
    values = seen[:, side.places]
    constant = torch.zeros_like(values[0]) if pads(side.module) else values[0]
    return ~any_place(side, ~(values == constant).all(0) | moves[side.places], size)


def any_place(side: Side, places: Tensor, size: int) -> Tensor:
    """Return for each channel whether one of its places has it: bool, one a channel, on the CPU wherever they are."""
    return torch.zeros(size, dtype=torch.int64).index_add_(0, side.channels, places.cpu().long()) > 0


def pads(module: nn.Module) -> bool:
    """Return whether a module may see a border of zeros around its input. A forward of its own may pad, too."""
    own = type(module).forward is not nn.Conv2d.forward
    return isinstance(module, nn.Conv2d) and (own or any(amount != 0 for amount in module.padding))


def _bias(side: Side, seen: Tensor, going: Tensor) -> Tensor:
    """Return what the channels that go have added to each output of a reader: float32."""
    places = side.places[going[side.channels]]
    weight = side.module.get_parameter("weight").detach()[:, places]
    return (weight.flatten(2).sum(2) if weight.dim() > 2 else weight) @ seen[0, places]


def inputs_of(model: nn.Module, images: Tensor, modules: Set[nn.Module]) -> dict[nn.Module, Tensor]:
    """Return what each of the modules takes when the model sees the images: (places, channels) as float32."""
    found: dict[nn.Module, Tensor] = {}

    def keep(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        rows = rows_of(module, inputs[0].detach())
        found[module] = torch.cat([found[module], rows]) if module in found else rows

    hooks = [module.register_forward_pre_hook(keep) for module in modules]
    try:
        with torch.no_grad():
            model(images)
    finally:
        for hook in hooks:
            hook.remove()
    return found
