"""Random streams: a seed for each event of a run, and the random bits that a seed gives."""

from __future__ import annotations

import hashlib

from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
_MIX = 0x94D049BB133111EB
"""Odd constants of SplitMix64, see `random_bits`."""


def seed_for(*parts: object) -> int:
    """A 63-bit seed from what names an event, such as (run seed, step, layer name).

    The same in every process, which Python's `hash` of a string is not.
    """
    text = "\0".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def random_bits(seeds: Tensor | int, places: Tensor) -> Tensor:
    """int64 in [0, 2^63): entry i is output number `places[i]` of the stream with seed `seeds[i]` (int64, or one).

    SplitMix64 (Steele, Lea & Flood 2014), which reaches any place of a stream at once. Integer arithmetic alone: the
    same on every device.
    """
    words = (places + 1).mul_(_GOLDEN).add_(seeds)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, _MIX)):
        words.bitwise_xor_(_shifted(words, shift)).mul_(_signed(factor))
    return words.bitwise_xor_(_shifted(words, 31)).bitwise_and_((1 << 63) - 1)


def _shifted(words: Tensor, bits: int) -> Tensor:
    """To the right, as if unsigned."""
    return (words >> bits).bitwise_and_((1 << (64 - bits)) - 1)


def _signed(word: int) -> int:
    """The int64 of these 64 bits."""
    return word - (1 << 64) if word >> 63 else word
