"""Groups of channels as plain data, and the record of those that are dead."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dynsparse.masks.bits import pack_bits, unpack_bits
from dynsparse.masks.granularity import LayerSpec


@dataclass(frozen=True)
class Lines:
    """Rows or columns of a layer's weight that belong to a group: rows where it writes the channels, else columns."""

    layer: str
    """Parameter name of the weight."""
    places: Tensor
    """Rows or columns, int64 [n]. A channel may have several, as before a linear layer that sees pixels."""
    channels: Tensor
    """The group's channel at each of the places: int64 [n]."""


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that go together: those that a residual connection adds are one group."""

    name: str
    """The layer that it is told by."""
    size: int
    """Number of channels."""
    writers: Sequence[Lines]
    """Layers whose outputs the channels are."""
    readers: Sequence[Lines]
    """Layers that take them as inputs."""
    obstacle: str = ""
    """Reason why none of them can be taken out, empty where there is none."""

    @property
    def layers(self) -> list[str]:
        """Names of all weights that it touches."""
        return [side.layer for side in (*self.writers, *self.readers)]


class Channels:
    """The channels of some groups, numbered through them all, and which are dead.

    A dead channel takes its writers' rows and its readers' columns with it: no unit of these may be active again.
    """

    def __init__(self, groups: Sequence[ChannelGroup] = ()) -> None:
        self.groups = list(groups)
        self.dead = torch.zeros(self.count, dtype=torch.bool)
        """bool [count] on the CPU."""

    @property
    def count(self) -> int:
        """Number of channels, dead or not."""
        return sum(self._sizes)

    @property
    def _sizes(self) -> list[int]:
        return [group.size for group in self.groups]

    def by_group(self, flags: Tensor) -> Sequence[Tensor]:
        """Split one value a channel, [count], into one tensor a group."""
        return flags.split(self._sizes) if self.groups else []

    def dead_lines(self, spec: LayerSpec) -> tuple[Tensor, Tensor]:
        """Return the rows and columns of a layer that are dead: bool [rows], bool [columns], on the CPU."""
        rows, columns = (torch.zeros(length, dtype=torch.bool) for length in spec.shape[:2])
        for group, dead in zip(self.groups, self.by_group(self.dead), strict=True):
            for lines, sides in ((rows, group.writers), (columns, group.readers)):
                for side in sides:
                    if side.layer == spec.name:
                        lines[side.places[dead[side.channels]]] = True
        return rows, columns

    def closed(self, spec: LayerSpec, device: torch.device) -> Tensor | None:
        """Return the units of a layer that may not be active again: bool [units]. None: there are none."""
        if not any(spec.name in group.layers for group in self.groups) or not bool(self.dead.any()):
            return None
        rows, columns = (lines.to(device) for lines in self.dead_lines(spec))
        closed = rows[:, None] | columns[None, :]
        within = spec.units // closed.numel()
        return closed.reshape(-1, 1).expand(-1, within).reshape(-1)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the dead channels of each group at a bit each: uint8 [ceil(size / 8)], by the group's name."""
        dead = self.by_group(self.dead)
        return {group.name: pack_bits(flags) for group, flags in zip(self.groups, dead, strict=True)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state_dict` gave. ValueError for that of other groups."""
        if {name: packed.numel() for name, packed in state.items()} != {g.name: -(-g.size // 8) for g in self.groups}:
            raise ValueError("dead is of other groups of channels than the network has now")
        parts = [unpack_bits(state[group.name].cpu(), group.size) for group in self.groups]
        self.dead = torch.cat([self.dead[:0], *parts])
