"""A large layer in parts: the same choices and draws as of the whole."""

from __future__ import annotations

import math
from itertools import accumulate

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from benchmarks.parts.gpu.waits import host_waits
from benchmarks.parts.live_memory import as_on_gpu
from dynsparse.masks import MaskSet, SparseLayer, sparse_layers
from dynsparse.masks.drawing import draw_distinct, foreseen
from dynsparse.masks.parted import Parted
from dynsparse.masks.parted_drawing import counts_of, draw_in_parts, parted_half
from dynsparse.masks.selection import chosen, chosen_in_parts, cuts_below, cuts_fraction, cuts_smallest

CPU = torch.device("cpu")
VALUES = st.sampled_from([-math.inf, -2.0, -0.5, -0.0, 0.0, 1e-38, 0.5, 1.0, 3.0, math.inf, math.nan, -math.nan])


def layer_of(rows: int, columns: int, density: float, **options: int) -> SparseLayer:
    model = nn.Sequential(nn.Linear(columns, rows, bias=False))
    specs = sparse_layers(model)
    (layer,) = MaskSet(model, specs, {specs[0].name: max(1, round(density * specs[0].units))}, **options)
    return layer


def in_parts(values: Tensor, size: int) -> Parted:
    """Give values to the parts of a layer of one column, `size` to each."""
    pieces = values.split(size)
    return Parted(layer_of(len(values), 1, 1.0).parts(size), lambda k, _: pieces[k].clone(), len(values))


@given(
    st.lists(VALUES, min_size=1, max_size=30),
    st.integers(1, 31),
    st.sampled_from([torch.float32, torch.float64]),
    st.data(),
)
def test_cuts_are_those_of_the_whole(values: list[float], size: int, dtype: torch.dtype, data: st.DataObject) -> None:
    """Ties, NaN, infinities and both zeros among them."""
    scores = torch.tensor(values, dtype=dtype)
    parted = in_parts(scores, size)
    count = data.draw(st.integers(0, int((~scores.isnan()).sum())))
    (whole,), (found,) = cuts_smallest([scores], [count]), cuts_smallest([parted], [count])
    assert found == whole
    assert cuts_below([parted], 0.5) == cuts_below([scores], 0.5)
    taken = torch.cat([flags for _, flags in chosen_in_parts(parted, found)])
    assert torch.equal(taken, chosen(scores, whole)) and int(taken.sum()) == count
    if not scores.isnan().any():
        assert cuts_fraction([parted], 0.3) == cuts_fraction([scores], 0.3)


@given(
    sizes=st.lists(st.integers(0, 40), min_size=1, max_size=6).filter(lambda sizes: sum(sizes) > 0),
    seed=st.integers(0, 2**62),
    data=st.data(),
)
def test_draws_are_those_of_the_whole(sizes: list[int], seed: int, data: st.DataObject) -> None:
    """However the range is divided; and the host reads nothing but the course of the rounds."""
    count = data.draw(st.integers(0, sum(sizes)))
    (repeats,) = foreseen([parted_half(sizes, count, seed)], CPU)
    with as_on_gpu(), host_waits(CPU) as waits:
        marks = list(draw_in_parts(sizes, count, seed, CPU, repeats))
    assert waits == []
    starts = accumulate(sizes, initial=0)
    drawn = [torch.nonzero(one).squeeze(1) + start for one, start in zip(marks, starts, strict=False)]
    assert [len(one) for one in drawn] == counts_of(sizes, count, repeats)
    assert torch.equal(torch.cat(drawn), draw_distinct([sum(sizes)], [count], [seed], CPU))


@pytest.mark.parametrize("density", [0.02, 0.4, 1.0])
@pytest.mark.parametrize("units", [1, 7, 14, 30, 1000])
def test_parts_are_views_of_rows(units: int, density: float) -> None:
    layer = layer_of(9, 7, density, seed=3)
    layer.parameter.grad = torch.randn_like(layer.parameter)
    parts = list(layer.parts(units))
    assert all(part.spec.units <= max(units, 7) for part in parts)
    assert [part.spec.units for part in parts] == layer.units_in_parts(units)
    assert [part.active_units for part in parts] == layer.active_in_parts(units)
    starts = accumulate(layer.units_in_parts(units), initial=0)
    assert torch.equal(
        torch.cat([part.active + start for part, start in zip(parts, starts, strict=False)]), layer.active
    )
    assert torch.equal(torch.cat([part.values() for part in parts]), layer.values())
    assert torch.equal(torch.cat([part.explored for part in parts]), layer.explored)
    assert sum(part.active_units for part in parts) == layer.active_units
    for part in parts:
        assert part.name == layer.name and part.gradient is not None
        assert torch.equal(part.gradient, layer.parameter.grad[part.spec.rows])
        assert part.weight.data_ptr() == layer.parameter[part.spec.rows].data_ptr()


def test_parts_of_a_part_and_of_a_moved_mask() -> None:
    """A block of rows of a packed parameter has parts, too, and a mask that has moved is counted anew."""
    attention = nn.MultiheadAttention(6, 2)
    model = nn.Sequential(attention)
    specs = sparse_layers(model)
    masks = MaskSet(model, specs, {spec.name: 9 for spec in specs}, seed=1)
    for layer in masks:
        for units in (5, 13):
            parts = list(layer.parts(units))
            assert torch.equal(torch.cat([part.values() for part in parts]), layer.values())
    layer = masks.layers[1]
    masks.set_active(layer, torch.tensor([0, 30, 35]))
    assert [part.active.tolist() for part in layer.parts(12)] == [[0], [], [6, 11]]


def test_an_empty_part_has_a_piece_of_none() -> None:
    layer = layer_of(9, 7, 0.02)
    pieces = [list(part.active_pieces(4)) for part in layer.parts(7)]
    assert [len(one) for one in pieces] == [1] * 9
    assert sum(piece.numel() for one in pieces for piece in one) == layer.active_units == 1


def test_a_weight_that_lies_column_by_column_is_not_divided() -> None:
    """Its rows have gaps, of which there is no flat view."""
    linear = nn.Linear(4, 6, bias=False)
    for by_columns in (False, True):
        if by_columns:
            linear.weight = nn.Parameter(linear.weight.detach().t().contiguous().t())
        specs = sparse_layers(linear)
        (layer,) = MaskSet(linear, specs, {specs[0].name: 5})
        assert layer.divides == (not by_columns)
    convolution = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    specs = sparse_layers(convolution)
    (layer,) = MaskSet(convolution, specs, {specs[0].name: 5})
    assert layer.divides


def test_pieces_of_values_in_channels_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dynsparse.masks.layer.AT_ONCE", 4)
    monkeypatch.setattr("dynsparse.masks.tensors.AT_ONCE", 4)
    for density in (0.3, 1.0):
        model = nn.Sequential(nn.Conv2d(3, 4, 3)).to(memory_format=torch.channels_last)
        specs = sparse_layers(model)
        (layer,) = MaskSet(model, specs, {specs[0].name: round(density * specs[0].units)}, seed=1)
        pieces = list(layer.values_in_pieces(layer.weight))
        assert len(pieces) > 2 and torch.equal(torch.cat(pieces), layer.values())
