"""Channels that a network in training can do without, by its masks.

A weight that has just grown is 0, so masks tell here what zeros tell of a trained network (`dead`). Nobody reads a
channel if its readers have no active weight for it. A channel that nobody writes can go too, if each reader sees the
same number there in evaluation and in training, for every image (`independence`): 0, or a number that a bias which the
reader has can take. A reader without a bias gets none, for that would be a parameter more to train. A reader that pads
takes 0 alone.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dynsparse.shrinking.dead import any_place, inputs_of, pads
from dynsparse.shrinking.groups import Group, Side
from dynsparse.shrinking.independence import moving
from dynsparse.shrinking.kept import Kept
from dynsparse.shrinking.removal import without


@dataclass(frozen=True)
class Unused:
    """Channels to take out of a network and its twins."""

    modules: Mapping[str, Kept]
    """Modules that change, by name, and what each keeps."""
    biases: Sequence[Mapping[str, Tensor]]
    """Biases that take numbers, in each of the networks: all values of each, by the module's name."""


def unused_channels(
    groups: Sequence[Group],
    models: Sequence[nn.Module],
    links: Mapping[str, Tensor],
    images: Tensor,
    leave: Collection[str] = (),
) -> Unused:
    """Find the channels that a network and its twins, such as an average of its weights, can do without.

    `groups`: of a network of these shapes. `models`: the network and its twins, which are used up. `links`: bool
    (outputs, inputs) by module, True where a weight is active; a module without any has active weights alone. `images`:
    float32, (batch, channels, height, width). `leave`: names of modules whose channels stay.

    One channel stays of a group that is of no use as a whole, or two where a depthwise convolution has it.
    """
    search = _Search(groups, models, links, images, leave)
    with torch.no_grad():
        while search.find():
            pass
    return Unused(search.modules(), [dict(one) for one in search.biases])


@dataclass(frozen=True)
class _Seen:
    """Inputs of the readers of a network, by layer."""

    plain: Mapping[nn.Module, Tensor]
    """Values in evaluation mode: (places, channels)."""
    training: Mapping[nn.Module, Tensor]
    moves: Mapping[nn.Module, Tensor]
    """Whether a channel may be another number on another image: bool (channels)."""


@dataclass
class _Search:
    """The groups, and what has been found of each so far."""

    all_groups: Sequence[Group]
    models: Sequence[nn.Module]
    links: Mapping[str, Tensor]
    images: Tensor
    leave: Collection[str]
    gone: list[Tensor] = field(init=False)
    """Channels of each group that go: bool."""

    def __post_init__(self) -> None:
        self.groups = [group for group in self.all_groups if not group.obstacle and not self._stays(group)]
        self.gone = [torch.zeros(group.size, dtype=torch.bool) for group in self.groups]
        self.biases: list[dict[str, Tensor]] = [{} for _ in self.models]
        sides = [side for group in self.groups for side in (*group.writers, *group.readers)]
        self.active = {side.name: self.links.get(side.name, _all_of(side)).cpu().clone() for side in sides}

    def _stays(self, group: Group) -> bool:
        return any(side.name in self.leave for side in [*group.writers, *group.readers, *group.followers])

    def find(self) -> bool:
        """Look once at each group: what was read by a channel that goes alone may go then. Returns whether any goes."""
        silent = [self._unlinked(group.writers, group.size, rows=True) for group in self.groups]
        seen = self._seen() if any(bool((a & ~b).any()) for a, b in zip(silent, self.gone, strict=True)) else []
        found = [self._going(*one, seen) for one in zip(self.groups, self.gone, silent, strict=True)]
        for group, going in zip(self.groups, found, strict=True):
            self._take(group, going, seen)
        self.gone = [gone | going for gone, going in zip(self.gone, found, strict=True)]
        return any(bool(going.any()) for going in found)

    def _going(self, group: Group, gone: Tensor, silent: Tensor, seen: Sequence[_Seen]) -> Tensor:
        going = self._unlinked(group.readers, group.size, rows=False)
        if seen:
            going = going | silent & self._constant(group, seen)
        going = going & ~gone
        missing = group.least - int((~(going | gone)).sum())
        going[going.nonzero().flatten()[: max(0, missing)]] = False
        return going

    def _unlinked(self, sides: Sequence[Side], size: int, *, rows: bool) -> Tensor:
        """Return the channels without an active weight in any of the sides: bool."""
        found = torch.ones(size, dtype=torch.bool)
        for side in sides:
            of_place = self.active[side.name].any(1 if rows else 0)[side.places]
            found &= ~any_place(side, of_place, size)
        return found

    def _seen(self) -> list[_Seen]:
        """Return what the readers of each network take."""
        names = {side.name for group in self.groups for side in group.readers}
        found = []
        for model in self.models:
            readers = {model.get_submodule(name) for name in names}
            _set_mode(model, training=False)
            plain = inputs_of(model, self.images, readers)
            moves = moving(model, self.images, self._silent(model), {one: values[0] for one, values in plain.items()})
            _set_mode(model, training=True)
            found.append(_Seen(plain, inputs_of(model, self.images, readers), moves))
        return found

    def _silent(self, model: nn.Module) -> dict[nn.Module, Tensor]:
        """Return the outputs of each writer without an active weight: bool, one an output."""
        names = {side.name for group in self.groups for side in group.writers}
        return {model.get_submodule(name): ~self.active[name].any(1) for name in names}

    def _constant(self, group: Group, seen: Sequence[_Seen]) -> Tensor:
        """Return the channels that are one number for each reader, which it can take: bool."""
        found = torch.ones(group.size, dtype=torch.bool)
        for side in group.readers:
            for model, one in zip(self.models, seen, strict=True):
                module = model.get_submodule(side.name)
                values = torch.cat([inputs[module][:, side.places] for inputs in (one.plain, one.training)])
                takes = module.bias is not None and not pads(module)
                moves = ~(values == (values[0] if takes else torch.zeros_like(values[0]))).all(0)
                found &= ~any_place(side, moves | one.moves[module][side.places], group.size)
        return found

    def _take(self, group: Group, going: Tensor, seen: Sequence[_Seen]) -> None:
        """Cut channels off in the copies: readers get their numbers into the biases, and zeros in their columns."""
        if not bool(going.any()):
            return
        for side in group.readers:
            places = side.places[going[side.channels]]
            for number, model in enumerate(self.models):
                self._cut(number, model.get_submodule(side.name), side.name, places, seen)
            self.active[side.name][:, places] = False
        for side in group.writers:
            self.active[side.name][side.places[going[side.channels]]] = False

    def _cut(self, number: int, module: nn.Module, name: str, places: Tensor, seen: Sequence[_Seen]) -> None:
        weight = module.get_parameter("weight")
        places = places.to(weight.device)
        columns = weight[:, places].flatten(2).sum(2) if weight.dim() > 2 else weight[:, places]
        if module.bias is not None and bool(columns.any()):
            module.get_parameter("bias").add_(columns @ seen[number].plain[module][0, places])
            self.biases[number][name] = module.get_parameter("bias").detach().cpu().clone()
        weight[:, places] = 0

    def modules(self) -> dict[str, Kept]:
        """Return what each module that changes keeps."""
        return without(self.groups, self.gone)


def _all_of(side: Side) -> Tensor:
    """Return links of a module that has all: bool (outputs, inputs)."""
    return torch.ones(side.module.get_parameter("weight").shape[:2], dtype=torch.bool)


def _set_mode(model: nn.Module, *, training: bool) -> None:
    """Let a model compute as in evaluation or in training, with statistics that stay as they are.

    A norm whose parameters are frozen uses its statistics in training too.
    """
    model.train(training)
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.momentum = 0.0
            own = list(module.parameters(recurse=False))
            if own and not any(parameter.requires_grad for parameter in own):
                module.eval()
