from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from dynsparse.distributed import digest
from dynsparse.distributed.digest import mask_digest, weight_digest
from dynsparse.masks import MaskSet, sparse_layers

CPU = torch.device("cpu")


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


@given(st.lists(st.integers(0, 40), min_size=1, max_size=6), st.integers(0, 2**31), st.integers(1, 300))
def test_both_ways_to_hash_agree(sizes: list[int], seed: int, at_once: int) -> None:
    """The ways for processors and for GPUs, with chunks of 7 words, agree with Python's integers, in any pieces."""
    generator = torch.Generator().manual_seed(seed)
    words = torch.randint(-(2**63), 2**63 - 1, (sum(sizes),), generator=generator)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(digest, "_CHUNK", 7)
        patch.setattr(digest, "AT_ONCE", at_once)
        digest._keys.cache_clear()
        keys, factors = digest._keys(CPU).tolist(), digest._factors(7, CPU).tolist()
        by_run, in_pieces = digest.hashes_by_run(words, sizes), digest.hashes_at_once(words, sizes)
        assert torch.equal(digest.rows_of(iter(words.split(sizes))), digest.hashes(words, sizes))
    digest._keys.cache_clear()
    assert torch.equal(by_run, in_pieces)
    for row, run in zip(by_run.tolist(), words.split(sizes), strict=True):
        expected = sum(word * keys[i % 7] * factors[i // 7] for i, word in enumerate(run.tolist()))
        assert (row - expected) % 2**64 == 0


def test_runs_of_zeros_differ_by_length() -> None:
    rows = digest.hashes(torch.zeros(6, dtype=torch.int32), [1, 2, 3, 0])
    assert rows.unique().numel() == 4


def test_flipped_signs_do_not_cancel() -> None:
    """The bits of a sign are the highest of a word: sums in which only these change have many zeros below."""
    rows = set()
    for first, second in itertools.combinations(range(60), 2):
        values = torch.ones(60)
        values[first] = values[second] = -1
        rows.add(int(digest.hashes(values.view(torch.int32), [60])))
    assert len(rows) == 60 * 59 // 2


def test_bits_spread() -> None:
    """Digests of 2,000 neighbouring masks share no value, and each bit is set about half of the time."""
    model = nn.Linear(2000, 1, bias=False)
    masks = MaskSet(model, sparse_layers(model), {"weight": 1})
    layer, seen = masks.layers[0], []
    for position in range(2000):
        masks.set_active(layer, torch.tensor([position]))
        seen.append(mask_digest(masks))
    assert len(set(seen)) == 2000
    for bit in range(64):
        assert 800 < sum(one >> bit & 1 for one in seen) < 1200, bit
