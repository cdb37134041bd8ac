"""Flags at one bit each. In a byte the first flag is the highest bit, as in NumPy."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

AT_ONCE = 1 << 20
"""Flags that are read or written at once, at up to 30 bytes each."""


class Bits:
    """Set of numbers below `size`, on a device.

    Example: 0, 2 and 9 below 12 are the bytes 10100000 01000000.
    """

    def __init__(self, size: int, device: torch.device) -> None:
        self.size = size
        self._bytes = torch.zeros(-(-size // 8), dtype=torch.uint8, device=device)
        self._of_bit = torch.tensor([128 >> i for i in range(8)], dtype=torch.uint8).to(device)

    @property
    def device(self) -> torch.device:
        """The device that holds the bits."""
        return self._bytes.device

    def to(self, device: torch.device) -> None:
        """Move to another device, in place."""
        self._bytes, self._of_bit = self._bytes.to(device), self._of_bit.to(device)

    def add(self, numbers: Tensor) -> Tensor:
        """Add `numbers` (int64 [n], distinct). Returns bool [n]: True for those that were not in the set."""
        where, bits = numbers >> 3, self._of_bit.index_select(0, numbers & 7)
        is_new = self._bytes.index_select(0, where).bitwise_and_(bits) == 0
        self._bytes.index_add_(0, where, bits.mul_(is_new))  # Distinct bits: their sum is their union.
        return is_new

    def at(self, numbers: Tensor) -> Tensor:
        """Test numbers (int64): bool of the same shape, True where the number is in the set."""
        return (self._bytes[numbers >> 3] & self._of_bit[numbers & 7]) != 0

    def put(self, numbers: Tensor, flags: Tensor) -> None:
        """Put `numbers` (int64 [n], distinct) in the set where `flags` (bool [n]) are True; remove the others."""
        where, bits = numbers >> 3, self._of_bit[numbers & 7]
        change = flags.to(torch.uint8) - ((self._bytes[where] & bits) != 0).to(torch.uint8)  # 1, 0 or -1, modulo 256
        self._bytes.index_add_(0, where, change * bits)

    def flags(self, start: int, stop: int, device: torch.device | None = None) -> Tensor:
        """Read a range: bool [stop - start] on `device`, True where the number is in the set. Default: where it lies.

        Only the set's bytes are copied to another device.
        """
        first = start // 8
        part = self._bytes[first : -(-stop // 8)].to(device or self.device)
        return ((part[:, None] & self._of_bit.to(part.device)) != 0).view(-1)[start - 8 * first : stop - 8 * first]

    def set(self, start: int, flags: Tensor) -> None:
        """Write a range: the numbers from `start` on are in the set where `flags` (bool [n]) are True. In pieces.

        The flags may lie on the host.
        """
        for at in range(0, len(flags), AT_ONCE):
            self._set(start + at, flags[at : at + AT_ONCE].to(self.device))

    def _set(self, start: int, flags: Tensor) -> None:
        first, last = start // 8, -(-(start + len(flags)) // 8)
        whole = self.flags(8 * first, min(8 * last, self.size))
        whole[start - 8 * first : start - 8 * first + len(flags)] = flags
        whole = torch.nn.functional.pad(whole, (0, 8 * (last - first) - len(whole)))
        self._bytes[first:last] = (whole.view(-1, 8) * self._of_bit).sum(1, dtype=torch.uint8)


def pack_bits(flags: Tensor) -> Tensor:
    """Pack bool [n] into uint8 [ceil(n / 8)] on the CPU."""
    return torch.from_numpy(np.packbits(flags.cpu().numpy()))


def unpack_bits(packed: Tensor, n: int) -> Tensor:
    """Unpack the first n flags of `pack_bits`: bool [n] on the CPU."""
    return torch.from_numpy(np.unpackbits(packed.numpy(), count=n).view(bool))
