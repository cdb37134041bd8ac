"""Random streams: a seed for each event of a run, and the random bits that a seed gives."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

# Odd constants of SplitMix64, see `random_bits`. The first is the golden ratio's, as an int64.
_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
_MIX = 0xBF58476D1CE4E5B9 - (1 << 64), 0x94D049BB133111EB - (1 << 64)


def seed_for(*parts: object) -> int:
    """Return a 63-bit seed from the parts that name an event, such as (run seed, step, layer name).

    It is the same in every process, which Python's `hash` of a string is not.
    """
    text = "\0".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def random_bits(seeds: Tensor | int, places: Tensor) -> Tensor:
    """Return int64 in [0, 2^63): entry i is output number `places[i]` of the stream with seed `seeds[i]`.

    `seeds` is int64 of the shape of `places`, or one number for all. `places` is int64.

    SplitMix64 (Steele, Lea & Flood, "Fast splittable pseudorandom number generators", 2014). It reaches any place of a
    stream at once, in integer arithmetic alone: the bits are the same on every device.
    """
    words = (places + 1).mul_(_GOLDEN).add_(seeds)
    for shift, factor in zip((30, 27), _MIX, strict=True):
        words.bitwise_xor_(_shifted_right(words, shift)).mul_(factor)
    return words.bitwise_xor_(_shifted_right(words, 31)).bitwise_and_((1 << 63) - 1)


def random_normal(seeds: Tensor | int, places: Tensor) -> Tensor:
    """Return float32 numbers of mean 0 and standard deviation 1, one for each of `places` (int64, below 2^61).

    `seeds` is as for `random_bits`.

    Each is the sum of twelve uniform integers of 15 bits, less its mean, over 2^15: nearly normal (excess kurtosis
    -0.1), and at most 6 away from 0. Integers and a power of 2 alone are in it, so that the bits are the same on every
    device; logarithms and cosines are not.

    Example: words whose parts of 15 bits sum to 229370 give (229370 - 6 * 32767) / 32768 = 1.0.
    """
    total = torch.zeros_like(places)
    for part in range(3):
        words = random_bits(seeds, 3 * places + part)
        for shift in (0, 15, 30, 45):
            total += (words >> shift).bitwise_and_(0x7FFF)
    return total.sub_(6 * 0x7FFF).float().mul_(2.0**-15)


def _shifted_right(words: Tensor, bits: int) -> Tensor:
    """Shift int64 as if they were unsigned: zeros come in, not copies of the sign."""
    return (words >> bits).bitwise_and_((1 << (64 - bits)) - 1)
