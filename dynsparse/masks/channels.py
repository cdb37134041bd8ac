"""Groups of channels as plain data, and the record of those that are dead."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dynsparse.masks.bits import pack_bits, unpack_bits
from dynsparse.masks.granularity import LayerSpec
from dynsparse.masks.tensors import sent


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
        self.gone = [0] * len(self.groups)
        """Dead channels of each group that were taken out of the network, and are none of `count`."""

    @property
    def count(self) -> int:
        """Number of channels in the network, dead or not."""
        return sum(self._sizes)

    @property
    def first_sizes(self) -> list[int]:
        """Number of channels of each group before any was taken out."""
        return [size + gone for size, gone in zip(self._sizes, self.gone, strict=True)]

    @property
    def lost(self) -> int:
        """Number of channels that are dead, those that were taken out among them."""
        return int(self.dead.sum()) + sum(self.gone)

    @property
    def _sizes(self) -> list[int]:
        return [group.size for group in self.groups]

    def by_group(self, flags: Tensor) -> Sequence[Tensor]:
        """Split one value a channel, [count], into one tensor a group."""
        return flags.split(self._sizes) if self.groups else []

    def touch(self, spec: LayerSpec) -> bool:
        """Return whether any of the groups has rows or columns of a layer."""
        return any(spec.name in group.layers for group in self.groups)

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
        if not self.touch(spec) or not bool(self.dead.any()):
            return None
        rows, columns = (sent(lines, device) for lines in self.dead_lines(spec))
        closed = rows[:, None] | columns[None, :]
        within = spec.units // closed.numel()
        return closed.reshape(-1, 1).expand(-1, within).reshape(-1)

    def state_dict(self) -> dict[str, dict[str, Any]]:
        """Return the dead channels of each group at a bit each, and how many were taken out, by the group's name.

        Bits are uint8 [ceil(size / 8)].
        """
        return self._state(self.by_group(self.dead), self.gone)

    def state_after(self, rows: Mapping[str, Tensor]) -> dict[str, dict[str, Any]]:
        """Return the state when channels have been taken out. `rows`: the rows that each changed layer keeps, int64.

        Example: of 4 channels the dead ones are 1 and 3, and the writer keeps the rows 0, 2 and 3. Then 2 of 3 is dead,
        and one is gone.
        """
        dead, gone = [], []
        for group, flags, before in zip(self.groups, self.by_group(self.dead), self.gone, strict=True):
            kept = flags[_kept(group, rows)]
            dead.append(kept)
            gone.append(before + group.size - kept.numel())
        return self._state(dead, gone)

    def _state(self, dead: Sequence[Tensor], gone: Sequence[int]) -> dict[str, dict[str, Any]]:
        names = [group.name for group in self.groups]
        bits = {name: pack_bits(flags) for name, flags in zip(names, dead, strict=True)}
        return {"dead": bits, "gone": dict(zip(names, gone, strict=True))}

    def load_state_dict(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        """Take over what `state_dict` gave. ValueError for that of other groups."""
        dead, gone = state["dead"], state["gone"]
        sizes = {group.name: -(-group.size // 8) for group in self.groups}
        if {name: packed.numel() for name, packed in dead.items()} != sizes or gone.keys() != sizes.keys():
            raise ValueError("dead is of other groups of channels than the network has now")
        parts = [unpack_bits(dead[group.name].cpu(), group.size) for group in self.groups]
        self.dead = torch.cat([self.dead[:0], *parts])
        self.gone = [gone[group.name] for group in self.groups]


def _kept(group: ChannelGroup, rows: Mapping[str, Tensor]) -> Tensor:
    """Return the channels of a group that are left where its writers keep these rows: int64, rising."""
    kept = torch.ones(group.size, dtype=torch.bool)
    for side in group.writers:
        if (left := rows.get(side.layer)) is not None:
            kept[side.channels[~torch.isin(side.places, left)]] = False
    return kept.nonzero().flatten()
