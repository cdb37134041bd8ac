from __future__ import annotations

import pytest
import torch
from torch import nn

from dynsparse.distributed.digest import mask_digest, weight_digest
from dynsparse.masks import MaskSet, sparse_layers


def network(dtype: torch.dtype = torch.float32, granularity: int = 4) -> tuple[nn.Module, MaskSet]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8, 5)).to(dtype)
    specs = sparse_layers(model, granularity=granularity)  # type: ignore[arg-type]
    return model, MaskSet(model, specs, {spec.name: spec.units // 2 for spec in specs})


@pytest.mark.parametrize("granularity", [1, 2, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_any_single_change_changes_the_weight_digest(dtype: torch.dtype, granularity: int) -> None:
    """Active, inactive and dense parameters, in the last bit, and by a swap."""
    model, masks = network(dtype, granularity)
    whole = weight_digest(model, masks)
    for parameter in model.parameters():
        flat = parameter.data.view(-1)
        for position in range(0, flat.numel(), 7):
            old = flat[position].clone()
            flat[position] = torch.nextafter(old, torch.full_like(old, 9)) if dtype != torch.bfloat16 else old + 0.25
            assert weight_digest(model, masks) != whole
            flat[position] = old
    assert weight_digest(model, masks) == whole
    a, b = masks.layers[0].positions(masks.layers[0].weight)[:2]
    flat = model[0].weight.data.view(-1)
    flat[a], flat[b] = flat[b].clone(), flat[a].clone()
    assert weight_digest(model, masks) != whole


def test_mask_digest_tells_masks_and_layers_apart() -> None:
    model, masks = network()
    whole = mask_digest(masks)
    for layer in masks:
        kept = layer.active
        masks.set_active(layer, kept[1:])
        assert mask_digest(masks) != whole
        masks.set_active(layer, kept)
    assert mask_digest(masks) == whole
    assert 0 <= whole < 2**64


def test_the_same_for_any_memory_format() -> None:
    model, masks = network()
    digests = mask_digest(masks), weight_digest(model, masks)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    assert (mask_digest(masks), weight_digest(model, masks)) == digests


def test_the_same_however_it_is_chunked(monkeypatch: pytest.MonkeyPatch) -> None:
    model, masks = network()
    whole = mask_digest(masks), weight_digest(model, masks)
    monkeypatch.setattr("dynsparse.distributed.digest._CHUNK", 5)
    assert (mask_digest(masks), weight_digest(model, masks)) == whole


def test_bits_spread() -> None:
    """Digests of 2,000 neighbouring masks share no value, and each bit is set about half of the time."""
    model = nn.Linear(2000, 1, bias=False)
    masks = MaskSet(model, sparse_layers(model), {"weight": 1})
    layer, digests = masks.layers[0], []
    for position in range(2000):
        masks.set_active(layer, torch.tensor([position]))
        digests.append(mask_digest(masks))
    assert len(set(digests)) == 2000
    for bit in range(64):
        assert 800 < sum(digest >> bit & 1 for digest in digests) < 1200, bit
