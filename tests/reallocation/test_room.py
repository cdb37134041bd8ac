"""Growth scores on a GPU: as many as an event leaves room for. Counted on torch's `meta` device, without values."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn

from benchmarks.parts.live_memory import Live, as_on_gpu
from benchmarks.parts.pieces import masked, tensors_of, vision_transformer
from dynsparse.masks import MaskSet
from dynsparse.methods import Clock
from dynsparse.methods.rigl import RiglSettings
from dynsparse.models.resnet50 import ResNet50Settings
from dynsparse.reallocation import Reallocator, room, seen
from dynsparse.schedules import StepTable

CLOCK = Clock(1, 0, steps_per_epoch=1, epochs=4)


@pytest.fixture(autouse=True)
def gpu() -> Iterator[None]:
    with torch.no_grad(), as_on_gpu():
        yield


def network(name: str) -> nn.Module:
    with torch.device("meta"):
        if name == "ResNet-50":
            return ResNet50Settings(name="imagenet_resnet50").build((3, 224, 224), 1000)
        return vision_transformer(24)


def with_gradients(model: nn.Module, density: float) -> tuple[MaskSet, Reallocator]:
    masks = masked(model, density)
    for one in model.parameters():
        one.grad = torch.empty_like(one)
    method = RiglSettings(name="rigl", period=StepTable(((0, 1),))).build()
    method.prepare(masks)
    return masks, Reallocator(model, masks, method)


def held(masks: MaskSet) -> int:
    """Bytes of the growth scores that stay on the GPU."""
    stays = room.staying(masks, draws=False)
    return sum(4 * layer.spec.units for layer in masks if layer.name in stays)


@pytest.mark.parametrize("density", [0.05, 0.1, 0.2])
def test_no_score_of_resnet_50_goes_by_the_host(density: float) -> None:
    """Keep all 102 MB at usual densities, and copy nothing to the host or from it."""
    model = network("ResNet-50")
    masks, mover = with_gradients(model, density)
    moved: list[Any] = []
    with patch.object(seen, "to_host", moved.append):
        gradients = [one.grad for one in model.parameters() if one.grad is not None]
        with Live([*model.parameters(), *gradients, *tensors_of([masks])]) as live:
            costs = mover.look(CLOCK, masks).growth_costs
    assert not moved
    assert live.now - live.before == held(masks) == 4 * masks.weights > 100e6
    for layer in masks:
        assert costs[layer.name] is costs[layer.name], "no copy"


@pytest.mark.parametrize(("name", "density", "mebibytes"), [
    ("ResNet-50", 1.0, 59), ("ViT-L", 0.05, 131), ("ViT-L", 0.5, 115), ("ViT-L", 1.0, 63),
])  # fmt: skip
def test_the_rest_of_an_event_finds_room(name: str, density: float, mebibytes: int) -> None:
    """The denser, the more the move takes: fewer scores stay. Others wait in the host's memory."""
    masks, mover = with_gradients(network(name), density)
    moved: list[int] = []

    def counted(values: Tensor) -> Tensor:
        moved.append(values.nbytes)
        return values

    with patch.object(seen, "to_host", counted):
        mover.look(CLOCK, masks)
    assert held(masks) >> 20 == mebibytes
    assert held(masks) + sum(moved) == 4 * masks.weights


def test_looks_at_parts_leave_no_more_on_the_gpu_than_one_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several optimizers, or closures, look at layers one after the other: the room is one for all."""
    monkeypatch.setattr(room, "A_WORD", 0)
    masks, mover = with_gradients(nn.Sequential(*(nn.Linear(10, 10, bias=False, device="meta") for _ in range(8))), 0.5)
    work = 800 * room.A_UNIT + 400 * room.AN_ACTIVE_WEIGHT + 400 * 8
    monkeypatch.setattr(room, "EVENT", work + 3 * 400)
    first = ["0.weight", "1.weight", "2.weight"]
    moved: list[str] = []
    for layer in reversed(masks.layers):
        with patch.object(seen, "to_host", lambda values, name=layer.name: moved.append(name) or values):
            mover.look(CLOCK, [layer])
    assert sorted(set(first) | set(moved)) == sorted(layer.name for layer in masks)
    assert not set(first) & set(moved)
    assert room.staying(masks, draws=True) == set(), "the drawn costs have the room"


def test_drawing_softly_takes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draws for the largest layer, here of 100 units, are made while the scores wait: at 28 + 90 bytes a unit.

    With 8 bytes for the drop score of each of 400 active weights and the drawn cost of each of 800 units, 3 layers of
    400 bytes fit into what is left.
    """
    monkeypatch.setattr(room, "A_WORD", 0)
    monkeypatch.setattr(room, "A_UNIT", 0)
    monkeypatch.setattr(room, "AN_ACTIVE_WEIGHT", 0)
    masks, _ = with_gradients(nn.Sequential(*(nn.Linear(10, 10, bias=False, device="meta") for _ in range(8))), 0.5)
    monkeypatch.setattr(room, "EVENT", 100 * (28 + 90) + 8 * (400 + 800) + 3 * 400)
    assert room.staying(masks, draws=True) == {"0.weight", "1.weight", "2.weight"}
    assert len(room.staying(masks, draws=False)) == 8
