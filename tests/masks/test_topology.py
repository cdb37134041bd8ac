"""Scores of links by the mask alone, against counting in fractions, and the same bits however they are summed."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from torch import Tensor, nn

from dynsparse.masks import MaskSet, SparseLayer, sparse_layers, topology
from dynsparse.masks.topology import ch2_l3n, link_scores, relative_importance


def counted(links: list[list[int]], u: int, v: int) -> Fraction:
    """CH2-L3n of an output u and an input v that have no link, by its definition: sets of neighbours."""
    of_output = [{j for j, link in enumerate(row) if link} for row in links]
    of_input = [{i for i, row in enumerate(links) if row[j]} for j in range(len(links[0]))]
    score = Fraction(0)
    for of, mine, between in ((of_output, of_output[u], of_input[v]), (of_input, of_input[v], of_output[u])):
        for node in between:
            internal = len(of[node] & mine)
            external = len(of[node] - mine) - 1  # Without the link to the other end.
            score += Fraction(internal + 1, external + 1) if internal else 0
    return score


def test_worked_by_hand() -> None:
    """Three outputs, three inputs.

    1 1 0     Between output 0 and input 2: output 1 shares input 1 with output 0 and has no other link but that to
    0 1 1     input 2: (1 + 1) / (1 + 0) = 2. Input 1 shares output 1 with input 2, and output 2 is external:
    0 1 0     (1 + 1) / (1 + 1) = 1. Together 3.
    """
    links = torch.tensor([[1, 1, 0], [0, 1, 1], [0, 1, 0]]).bool()
    scores = ch2_l3n(links)
    assert scores[~links].tolist() == [3, 3, 3, 3]
    assert ch2_l3n(links[:2])[0, 2] == 4, "the docstring's example"


@pytest.mark.parametrize("density", [0.05, 0.2, 0.6, 0.95])
@pytest.mark.parametrize("shape", [(7, 19), (24, 5), (1, 9), (6, 1)])
def test_as_counted_in_fractions(shape: tuple[int, int], density: float) -> None:
    links = torch.rand(shape, generator=torch.Generator().manual_seed(5)) < density
    scores, rows = ch2_l3n(links), links.int().tolist()
    for u, v in (~links).nonzero().tolist():
        assert scores[u, v].item() == pytest.approx(float(counted(rows, u, v)), rel=1e-9)


def test_blocks_and_order_change_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums of the same numbers in another order: rows in blocks, and permuted outputs and inputs."""
    generator = torch.Generator().manual_seed(1)
    links = torch.rand(61, 47, generator=generator) < 0.3
    whole = ch2_l3n(links)
    rows, columns = torch.randperm(61, generator=generator), torch.randperm(47, generator=generator)
    assert torch.equal(ch2_l3n(links[rows][:, columns]), whole[rows][:, columns])
    assert torch.equal(ch2_l3n(links.T), whole.T)
    monkeypatch.setattr(topology, "_ENTRIES", 200)
    assert torch.equal(ch2_l3n(links), whole)
    monkeypatch.setattr(topology, "_MOST_ROWS", 1)
    assert torch.equal(ch2_l3n(links), whole)


@pytest.mark.parametrize("shape", [(2, 10_000_000), (10_000_000, 2), (8192, 28672)])
def test_blocks_are_bounded(shape: tuple[int, int]) -> None:
    blocks = list(topology._blocks(torch.empty(shape, dtype=torch.bool, device="meta")))
    rows = [block.stop - block.start for block in blocks]
    assert max(rows) * shape[1] <= max(shape[1], 1 << 22)
    assert max(rows) ** 2 <= 1 << 22
    assert blocks[0].start == 0
    assert blocks[-1].stop >= shape[0]


def found_on(device: str) -> list[Tensor]:
    """Scores of links and of weights, on the CPU, as a device finds them."""
    links = torch.rand(300, 784, generator=torch.Generator().manual_seed(1)) < 0.1
    layer = layer_of(nn.Linear(784, 300).to(device), links.view(-1).nonzero().squeeze(1).to(device))
    magnitudes = torch.rand(layer.active_units, generator=torch.Generator().manual_seed(2)).to(device)
    with torch.autocast(device):
        return [link_scores(layer).cpu(), relative_importance(layer, magnitudes).cpu()]


@pytest.mark.gpu
def test_the_same_bits_on_a_gpu() -> None:
    for ours, theirs in zip(found_on("cpu"), found_on("cuda"), strict=True):
        assert torch.equal(ours, theirs)


def layer_of(module: nn.Module, active: Tensor, **options: int) -> SparseLayer:
    (spec,) = (spec for spec in sparse_layers(module, **options))  # type: ignore[arg-type]
    return MaskSet(module, [spec], {spec.name: active}).layers[0]


@pytest.mark.parametrize(("granularity", "columns"), [(4, 27), (3, 9), (2, 3)])
def test_a_convolution_is_a_matrix_of_its_units(granularity: int, columns: int) -> None:
    """Filters are outputs; inputs are those of the convolution at each place that a unit can have."""
    links = torch.rand(8, columns, generator=torch.Generator().manual_seed(3)) < 0.4
    layer = layer_of(nn.Conv2d(3, 8, 3), links.view(-1).nonzero().squeeze(1), granularity=granularity)
    assert torch.equal(link_scores(layer), ch2_l3n(links).float().view(-1))


def test_a_transposed_convolution_has_its_outputs_second() -> None:
    """Units (inputs, outputs, 2, 2): unit i, o, y, x is the link of output o and input i at y, x."""
    units = torch.rand(3, 5, 2, 2, generator=torch.Generator().manual_seed(3)) < 0.4
    layer = layer_of(nn.ConvTranspose2d(3, 5, 2), units.view(-1).nonzero().squeeze(1), granularity=4)
    assert not layer.spec.outputs_first
    scores = link_scores(layer).view(3, 5, 2, 2)
    expected = ch2_l3n(units.movedim(1, 0).reshape(5, 12)).float()
    assert torch.equal(scores[2, 4, 1, 0], expected[4, 2 * 4 + 2])
    assert torch.equal(scores.movedim(1, 0).reshape(5, 12), expected)


def test_whole_filters_have_no_paths() -> None:
    layer = layer_of(nn.Conv2d(3, 8, 3), torch.tensor([0, 3, 4]), granularity=1)
    assert link_scores(layer)[[1, 2, 5, 6, 7]].tolist() == [0] * 5


def test_relative_importance_worked_by_hand() -> None:
    """The docstring's example: 1/4 + 1/1, 3/4 + 3/4, 1/1 + 1/4."""
    layer = layer_of(nn.Linear(2, 2), torch.tensor([0, 1, 3]))
    found = relative_importance(layer, torch.tensor([1.0, 3.0, 1.0]))
    assert found.tolist() == pytest.approx([1.25, 1.5, 1.25])
    assert relative_importance(layer, torch.zeros(3)).tolist() == [0, 0, 0]
    assert relative_importance(layer, torch.tensor([1.0, torch.nan, 1.0])).isnan().tolist() == [False, True, False]


@pytest.mark.parametrize("outputs_first", [True, False])
def test_relative_importance_as_by_whole_matrices(outputs_first: bool) -> None:
    module = nn.Conv2d(4, 6, 3) if outputs_first else nn.ConvTranspose2d(4, 6, 3)
    generator = torch.Generator().manual_seed(2)
    active = (torch.rand(216, generator=generator) < 0.3).nonzero().squeeze(1)
    layer = layer_of(module, active, granularity=4)
    matrix = layer.weight.detach().abs().movedim(0 if outputs_first else 1, 0).double()
    flat = matrix.reshape(6, 36)
    whole = flat / flat.sum(1, keepdim=True) + flat / flat.sum(0, keepdim=True)
    expected = whole.view(matrix.shape).movedim(0, 0 if outputs_first else 1).reshape(-1)[active]
    found = relative_importance(layer, layer.values().abs())
    assert torch.allclose(found.double(), expected, rtol=1e-5)
