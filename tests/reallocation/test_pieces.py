"""Large networks on a GPU: in pieces, the same bits in memory that does not grow. Counted on the CPU, by its ways."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import nn

from benchmarks.parts.gpu.waits import host_waits
from benchmarks.parts.live_memory import as_on_gpu
from benchmarks.parts.pieces import of_network
from dynsparse.distributed import digest
from dynsparse.masks import MaskSet, bits, block, drawing, joint, layer, sparse_layers, tensors
from dynsparse.methods import Clock, deepr
from dynsparse.reallocation import Reallocator, room
from dynsparse.reallocation.parted_choice import PartedChoice
from tests.methods.test_contract import method_named, structure_of
from tests.reallocation.test_blocks import step_with_random_numbers

Bounds = dict[str, int]
WHOLE: Bounds = {"block": 1 << 22, "draw": 1 << 20, "hash": 1 << 21, "scores": 1 << 26, "event": 1 << 28}
PIECES: Bounds = {"block": 200, "draw": 7, "hash": 5, "scores": 0, "event": 0}


def bound(monkeypatch: pytest.MonkeyPatch, bounds: Bounds) -> None:
    monkeypatch.setattr(block, "ON_GPU", bounds["block"])
    monkeypatch.setattr(block, "A_PART", bounds["block"] // 4)
    monkeypatch.setattr(joint, "AT_ONCE", bounds["block"] * 4)
    monkeypatch.setattr(drawing, "AT_ONCE", bounds["draw"])
    monkeypatch.setattr(digest, "AT_ONCE", bounds["hash"])
    for module in (deepr, bits, layer, tensors):
        monkeypatch.setattr(module, "AT_ONCE", bounds["draw"])
    for module in (joint, room):
        monkeypatch.setattr(module, "MOST", bounds["scores"])
    monkeypatch.setattr(room, "EVENT", bounds["event"])


def run(name: str, options: dict[str, Any], *, on_gpu: bool) -> tuple[int, int, Any]:
    """Blocks, the most reads of an event, and what there is after each of two events."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 8, 3), nn.Conv2d(8, 6, 3), nn.Conv2d(6, 4, 1), nn.Linear(9, 5), nn.Linear(5, 7))
    structure = structure_of(name)
    if structure != "free":
        model = nn.Sequential(nn.Linear(8, 24), nn.Linear(24, 8), nn.Linear(8, 24), nn.Linear(24, 6))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    for one in model.parameters():
        optimizer.state[one] = {"step": torch.tensor(3.0), "exp_avg_sq": torch.rand_like(one)}
    specs = sparse_layers(model, structure=structure)
    found, reads = [], [0]
    with as_on_gpu() if on_gpu else nullcontext():
        share = 2 if structure == "1:2" else 3 if structure == "free" else 4
        masks = MaskSet(model, specs, {spec.name: spec.units // share for spec in specs}, seed=1)
        method = method_named(name, **options)
        method.prepare(masks)
        mover = Reallocator(model, masks, method, optimizer, seed=2)
        for step in (1, 2):
            clock = step_with_random_numbers(masks, step)
            with host_waits(torch.device("cpu")) as waits:
                report = mover.after_step(clock, mover.before_step(clock))
            reads.append(len(waits))
            masks.check()
            moments = [optimizer.state[layer.parameter]["exp_avg_sq"].sum().item() for layer in masks]
            found.append((digest.mask_digest(masks), digest.weight_digest(model, masks), report, moments))
    return len(masks.blocks), max(reads), found


CASES = [
    ("deepr", {}),
    ("deepr", {"new_weights": "initial"}),
    ("dsr", {}),
    ("set", {"new_weights": "initial"}),
    ("gmp", {}),
    ("granet", {}),
    ("pruning", {}),
    ("rigl", {}),
    ("rigl", {"scope": "global"}),
    ("rigl", {"soft_growth": 2, "soft_drop": 2}),
    ("sparse_momentum", {}),
    ("mest", {}),
    ("chts", {}),
    ("topkast", {}),
    ("srigl", {}),
    ("nm", {}),
]
IN_PARTS = ("dsr", "set", "rigl", "granet", "gmp", "pruning")
"""Methods that go through a large layer in parts."""
QUICK = [("deepr", {}), ("dsr", {}), ("rigl", {"scope": "global"}), ("topkast", {}), ("srigl", {})]
"""One of each kind: growth at random, by one threshold, with a reserve, with a structure."""


@contextmanager
def parted_moves() -> Iterator[list[str]]:
    """Collect the names of the layers that move in parts."""
    found, move = list[str](), PartedChoice.move

    def noted(choice: PartedChoice, *known: Any) -> Any:
        found.append(choice.layer.name)
        return move(choice, *known)

    with patch.object(PartedChoice, "move", noted):
        yield found


@pytest.mark.parametrize(
    ("name", "options"), [pytest.param(*one, marks=[] if one in QUICK else pytest.mark.slow) for one in CASES]
)
def test_pieces_give_the_same_bits(name: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces do what a processor does, and a GPU with all at once.

    The host reads at most 24 times all the same, but for layers with a structure, which are looked at block by block.
    """
    _, _, expected = run(name, options, on_gpu=False)
    bound(monkeypatch, WHOLE)
    one, reads, whole = run(name, options, on_gpu=True)
    assert (one, whole) == (1, expected)
    bound(monkeypatch, PIECES)
    with parted_moves() as parted:
        several, more_reads, pieces = run(name, options, on_gpu=True)
    assert several >= 3 and pieces == expected
    assert bool(parted) == (name in IN_PARTS and "soft_growth" not in options)
    assert max(reads, more_reads) <= (24 if structure_of(name) == "free" else 24 + 8 * several)
    assert len({masks for masks, *_ in expected}) == 2, "it moved"


def test_a_set_that_comes_to_a_gpu_is_divided_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its layers stay the same objects, with what they have explored."""
    bound(monkeypatch, PIECES)
    model = nn.Sequential(nn.Linear(20, 8), nn.Linear(8, 10), nn.Linear(10, 30))
    specs = sparse_layers(model)
    masks = MaskSet(model, specs, {spec.name: 20 for spec in specs}, seed=1)
    masks.set_active(masks.layers[1], torch.tensor([0, 7, 79]))
    before = [(layer, layer.active.tolist(), layer.explored.tolist(), layer.explored_units) for layer in masks]
    assert len(masks.blocks) == 1
    with as_on_gpu():
        masks.to(torch.device("cpu"))
    assert [len(block.layers) for block in masks.blocks] == [1, 1, 1]
    after = [(layer, layer.active.tolist(), layer.explored.tolist(), layer.explored_units) for layer in masks]
    assert after == before


@pytest.mark.slow
def test_memory_does_not_grow_with_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """24 layers take no more than 12 beside what is kept, and at most 64 bytes for each weight of one layer.

    So much an event may take here. Growth scores of 11 layers fit at the lower density, and of 7 at the higher one.
    """
    side = 128
    layer = side * side
    bound(monkeypatch, {"block": layer, "draw": 1 << 10, "hash": 1 << 12, "scores": 4 * layer, "event": 64 * layer})
    for density in (0.1, 0.5):
        few, many = (
            of_network(nn.Sequential(*(nn.Linear(side, side, bias=False) for _ in range(layers))), density)
            for layers in (12, 24)
        )
        for kind, most in many.items():
            assert most <= 1.1 * few[kind] + 24 * 256, (density, kind, few, many)
            assert most <= 64 * side * side, (density, kind, most / side / side)


@pytest.mark.parametrize("name", ["rigl", "set"])
def test_units_of_several_weights_in_parts_with_gaps(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels as units, ties among scores, parts without an active unit, and a weight that lies column by column."""

    def moved(*, on_gpu: bool) -> tuple[int, int, list[Any]]:
        torch.manual_seed(0)
        linear = nn.Linear(20, 30, bias=False)
        linear.weight = nn.Parameter(linear.weight.detach().t().contiguous().t())
        model = nn.Sequential(nn.Conv2d(4, 60, 3), nn.ConvTranspose2d(40, 6, 3), linear)
        with as_on_gpu() if on_gpu else nullcontext(), parted_moves() as parted:
            specs = sparse_layers(model, granularity=2)
            masks = MaskSet(model, specs, {spec.name: 20 for spec in specs}, seed=1)
            masks.set_active(masks.layers[0], torch.arange(100, 120))
            method = method_named(name)
            method.prepare(masks)
            mover = Reallocator(model, masks, method, seed=2)
            for step in (1, 2):
                for one in model.parameters():
                    one.grad = torch.randint(-3, 4, one.shape, generator=torch.Generator().manual_seed(step)) / 2
                    one.data.copy_(one.grad.flip(0))
                masks.apply_to_weights()
                clock = Clock(2 * step, 2 * step - 1, steps_per_epoch=1, epochs=16)
                mover.after_step(clock, mover.before_step(clock))
                masks.check()
            return digest.mask_digest(masks), digest.weight_digest(model, masks), parted

    *expected, _ = moved(on_gpu=False)
    bound(monkeypatch, {**PIECES, "block": 40})
    *found, parted = moved(on_gpu=True)
    assert found == expected and set(parted) == {"0.weight", "1.weight"}


def test_memory_does_not_grow_with_a_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer of three times the rows takes no more, but for its old index, and what goes and grows.

    These are 8 bytes for each of its active weights, and 8 to 20 for each that moves.
    """
    side, density = 64, 0.3
    bound(monkeypatch, {"block": side * side, "draw": 1 << 9, "hash": 1 << 9, "scores": 0, "event": 0})
    a_weight = {"event of set": 11, "event of rigl": 14}
    others = ("digest of masks", "digest of weights", "first masks, at random")
    small, large = (
        of_network(nn.Sequential(nn.Linear(side, rows, bias=False)), density, [*a_weight, *others])
        for rows in (2 * side, 6 * side)
    )
    more = density * 4 * side * side
    for kind, most in large.items():
        allowed = small[kind] + a_weight.get(kind, 0) * more + 4_096
        assert most <= allowed, (kind, (most - small[kind]) / more)
