from __future__ import annotations

from unittest.mock import patch

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from dynsparse.masks import bits as bits_module
from dynsparse.masks.bits import Bits, pack_bits, unpack_bits

CPU = torch.device("cpu")


@given(
    st.integers(1, 70).flatmap(lambda n: st.tuples(st.just(n), st.lists(st.sets(st.integers(0, n - 1)), max_size=4)))
)
def test_a_set_of_numbers(case: tuple[int, list[set[int]]]) -> None:
    """Against Python's sets; bits lie as NumPy packs them."""
    size, additions = case
    bits, expected = Bits(size, CPU), set[int]()
    for numbers in additions:
        ordered = torch.tensor(sorted(numbers), dtype=torch.int64)
        assert ordered[bits.add(ordered)].tolist() == sorted(numbers - expected)
        expected |= numbers
    flags = [number in expected for number in range(size)]
    assert bits.flags(0, size).tolist() == flags
    assert bits._bytes.tolist() == np.packbits(flags).tolist()


@given(st.data(), st.integers(1, 70), st.sampled_from([1, 3, 8, 1 << 20]))
def test_any_part_can_be_read_and_replaced(data: st.DataObject, size: int, at_once: int) -> None:
    with patch.object(bits_module, "AT_ONCE", at_once):
        check_replaced(data, size)


def check_replaced(data: st.DataObject, size: int) -> None:
    flags = data.draw(st.lists(st.booleans(), min_size=size, max_size=size))
    start = data.draw(st.integers(0, size))
    part = data.draw(st.lists(st.booleans(), max_size=size - start))
    bits = Bits(size, CPU)
    bits.set(0, torch.tensor(flags))
    bits.set(start, torch.tensor(part, dtype=torch.bool))
    flags[start : start + len(part)] = part
    assert bits.flags(0, size).tolist() == flags
    assert bits.flags(start, size).tolist() == flags[start:]


@given(
    st.lists(st.booleans(), min_size=1, max_size=70).flatmap(
        lambda flags: st.tuples(st.just(flags), st.dictionaries(st.integers(0, len(flags) - 1), st.booleans()))
    )
)
def test_single_numbers_are_put_in_and_out(case: tuple[list[bool], dict[int, bool]]) -> None:
    flags, changes = case
    bits = Bits(len(flags), CPU)
    bits.set(0, torch.tensor(flags))
    numbers = torch.tensor(list(changes), dtype=torch.int64)
    bits.put(numbers, torch.tensor(list(changes.values()), dtype=torch.bool))
    for number, flag in changes.items():
        flags[number] = flag
    assert bits.flags(0, len(flags)).tolist() == flags
    assert bits.at(numbers).tolist() == list(changes.values())
    everything = torch.arange(len(flags)).view(-1, 1)
    assert bits.at(everything).tolist() == [[flag] for flag in flags]


@given(st.lists(st.booleans(), max_size=50))
def test_bits_round_trip(flags: list[bool]) -> None:
    packed = pack_bits(torch.tensor(flags, dtype=torch.bool))
    assert packed.numel() == -(-len(flags) // 8)
    assert unpack_bits(packed, len(flags)).tolist() == flags
