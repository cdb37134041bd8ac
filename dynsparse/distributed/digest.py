"""64-bit checksums of masks and weights, to prove that ranks agree.

Sums of hashed (position, bits) pairs in wrapping integer arithmetic: the order
of summation does not matter, so every device and memory layout gives the same
number, and a change of any one weight changes it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from dynsparse.masks import MaskSet, SparseLayer
from dynsparse.masks.selection import seed_for

_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)  # Odd constants of Steele, Lea & Flood's SplitMix64 (2014).
_MIX = 0x94D049BB133111EB - (1 << 64)
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_CHUNK = 1 << 18  # Entries hashed at once: the intermediates stay in the processor's cache.


def _mixed(words: Tensor) -> Tensor:
    """Hash int64 words, one by one and in place. Multiplications wrap."""
    words *= _MIX
    words ^= words >> 29
    words *= _GOLDEN
    words ^= words >> 32
    return words


def _hash_units(units: Tensor) -> Tensor:
    chunks = [_mixed((chunk + 1) * _GOLDEN).sum() for chunk in units.split(_CHUNK)]
    return torch.stack(chunks).sum() if chunks else units.new_zeros(())


def _hash_entries(positions: Tensor | None, values: Tensor) -> Tensor:
    """Values [n] of any dtype at int64 positions [n] (None: 0 to n - 1)."""
    bits = values.view(_BITS[values.element_size()])
    chunks = []
    for start in range(0, bits.numel(), _CHUNK):
        chunk = bits[start : start + _CHUNK]
        if positions is None:
            place = torch.arange(start + 1, start + 1 + chunk.numel(), device=bits.device)
        else:
            place = positions[start : start + _CHUNK] + 1
        chunks.append(_mixed((place * _GOLDEN) ^ chunk.to(torch.int64)).sum())
    return torch.stack(chunks).sum() if chunks else torch.zeros((), dtype=torch.int64, device=values.device)


def mask_rows(layers: Iterable[SparseLayer]) -> list[Tensor]:
    """One int64 scalar a sparse layer: the checksum of which units are active."""
    return [_hash_units(layer.active) for layer in layers]


def weight_rows(model: nn.Module, masks: MaskSet) -> list[Tensor]:
    """One int64 scalar a parameter.

    For sparse layers the active weights and the number of non-zeros outside
    the mask (which is 0 unless something went wrong): linear in active weights
    but for one count.
    """
    sparse = {layer.name: layer for layer in masks}
    rows = []
    for name, parameter in model.named_parameters():
        layer = sparse.get(name)
        if layer is None:
            rows.append(_hash_entries(None, parameter.detach().contiguous().view(-1)))
            continue
        values = layer.gather(parameter)
        place = layer.active
        if layer.spec.unit_size > 1:
            place = (place[:, None] * layer.spec.unit_size + _within(layer)).view(-1)
        stray = parameter.detach().count_nonzero() - values.count_nonzero()
        rows.append(_hash_entries(place, values.view(-1)) + stray)
    return rows


def _within(layer: SparseLayer) -> Tensor:
    return torch.arange(layer.spec.unit_size, device=layer.active.device)


def total(names: Sequence[str], rows: Sequence[int]) -> int:
    """One unsigned 64-bit number from a checksum a name."""
    salted = (seed_for(name) * 2 + 1 for name in names)
    return sum((row % (1 << 64)) * salt for row, salt in zip(rows, salted, strict=True)) % (1 << 64)


def to_host(rows: Sequence[Tensor]) -> list[int]:
    """All rows in one copy."""
    return [int(row) for row in torch.stack(list(rows)).tolist()] if rows else []


def mask_digest(masks: MaskSet) -> int:
    """64 bits that tell which units of which layers are active."""
    return total([layer.name for layer in masks], to_host(mask_rows(masks)))


def weight_digest(model: nn.Module, masks: MaskSet) -> int:
    """64 bits over all parameters of the model, dense ones included."""
    return total([name for name, _ in model.named_parameters()], to_host(weight_rows(model, masks)))
