"""Room on a GPU for the growth scores of a step, which wait there for the event that follows.

An event takes at most EVENT bytes beside what is kept between steps, whatever the network. The scores may have what is
left beside the largest piece of its other work.
"""

from __future__ import annotations

from dynsparse.distributed import digest
from dynsparse.masks import MaskSet, soft
from dynsparse.masks import block as blocks
from dynsparse.masks.block import Block
from dynsparse.masks.made import MOST

EVENT = 1 << 28
"""Bytes that an event may take on a GPU. A network whose largest layer takes more by itself is the exception."""
A_UNIT, AN_ACTIVE_WEIGHT = 16, 32
"""Bytes that work on a block takes at most, for each unit and each active weight: see `benchmarks.mask_memory`."""
AN_INDEX = 16
"""Bytes for each active weight of a layer in parts: its old index, and the units that go and grow."""
A_WORD = 56
"""Bytes that a digest takes at most for each word that it hashes at once."""
A_DRAWN_UNIT, A_DRAW = 28, 90
"""Bytes that soft growth takes at most for each unit of a layer, and for each that it draws at once."""


def are_many(numbers: int) -> bool:
    """Whether so many doubles are more than a GPU may keep in an event. Then they are made anew when they are read."""
    return 8 * numbers > MOST


def staying(masks: MaskSet, *, draws: bool, in_parts: bool = False) -> set[str]:
    """Names of the layers whose growth scores stay on a GPU: the first ones, as far as there is room for them.

    `draws`: growth is soft, so costs are drawn, and small networks keep those too. `in_parts`: large layers are handled
    in parts. It depends on the masks alone, and not on which gradients have been looked at before.

    Example: 25.5 million weights, a tenth active. The largest block, of 4.2 million units, takes 80 MB, a digest 117
    MB and the drop scores 20 MB. Of the 268 MB 131 are left, and all scores take 102.
    """
    left, found = _room(masks, draws, in_parts), set[str]()
    for layer in masks:
        left -= layer.spec.units * layer.parameter.element_size()
        if left < 0:
            break
        found.add(layer.name)
    return found


def _room(masks: MaskSet, draws: bool, in_parts: bool) -> int:
    """Bytes that an event leaves for growth scores."""
    largest = max((_work(block, in_parts) for block in masks.blocks), default=0)
    active, units = sum(layer.active_units for layer in masks), sum(layer.spec.units for layer in masks)
    kept = 0 if are_many(active) else 8 * active
    kept += 0 if are_many(units) or not draws else 8 * units
    return EVENT - max(largest, _drawing(masks) if draws else 0, A_WORD * digest.AT_ONCE) - kept


def _drawing(masks: MaskSet) -> int:
    """Bytes that drawing the costs of one layer takes at most."""
    units = max((layer.spec.units for layer in masks), default=0)
    return A_DRAWN_UNIT * units + A_DRAW * min(units, soft.AT_ONCE)


def _work(block: Block, in_parts: bool) -> int:
    """Bytes that moving the units of a block takes at most."""
    units = sum(layer.spec.units for layer in block.layers)
    active = sum(layer.active_weights for layer in block.layers)
    if not (in_parts and block.is_large):
        return A_UNIT * units + AN_ACTIVE_WEIGHT * active
    part = min(units, max(blocks.A_PART, units // block.layers[0].spec.shape[0]))
    return A_UNIT * part + AN_ACTIVE_WEIGHT * active * part // units + AN_INDEX * active
