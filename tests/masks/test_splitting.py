"""Parameters that pack several layers: which are recognised, and what the pieces of one are."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dynsparse.errors import UserError
from dynsparse.masks import MaskSet, sparse_layers
from dynsparse.masks.rows import by_parameter, kept_values, memory_of, pieces, put_values, whole_mask
from dynsparse.masks.splitting import packed
from pipelines.common.torchvision_ops import import_torchvision


def masks_of(model: nn.Module, active: int = 5, **options: object) -> MaskSet:
    layers = sparse_layers(model, include=["*weight*"], **options)  # type: ignore[arg-type]
    return MaskSet(model, layers, {layer.name: active for layer in layers})


def test_pieces_of_a_parameter() -> None:
    """Worked by hand: 4 rows of 2; the second and third are a layer each, with one active weight."""
    model = nn.Linear(2, 4, bias=False)
    layers = sparse_layers(model, split={"weight": 4}, include=["weight.1", "weight.2"])
    masks = MaskSet(model, layers, {"weight.1": torch.tensor([1]), "weight.2": torch.tensor([0])}, apply=False)
    with torch.no_grad():
        model.weight.copy_(torch.arange(8.0).view(4, 2) + 1)
    masks.apply_to_weights()
    assert model.weight.tolist() == [[1, 2], [0, 4], [5, 0], [7, 8]]
    (found,) = by_parameter(masks).values()
    assert [(rows.start, rows.stop, layer and layer.name) for rows, layer in pieces(model.weight, found)] == [
        (0, 1, None),
        (1, 2, "weight.1"),
        (2, 3, "weight.2"),
        (3, 4, None),
    ]
    assert kept_values(model.weight, found).tolist() == [1, 2, 4, 5, 7, 8]
    back = torch.zeros(4, 2)
    put_values(back, found, torch.tensor([1.0, 2, 4, 5, 7, 8]))
    assert torch.equal(back, model.weight)
    sent = [(flat if index is None else flat[index]).tolist() for flat, index in memory_of(back, back, found)]
    assert sent == [[1, 2], [4], [5], [7, 8]]
    assert torch.equal(whole_mask(model.weight, found), model.weight != 0)
    assert [layer.values().tolist() for layer in masks] == [[4], [5]]


def test_a_part_sees_its_own_rows() -> None:
    model = nn.MultiheadAttention(4, 2, bias=False)
    masks = masks_of(model)
    layer = masks.layers[1]
    assert layer.name == "in_proj_weight.k" and layer.weight.grad is None and layer.weight.requires_grad
    model.in_proj_weight.square().sum().backward()
    assert torch.equal(layer.weight, model.in_proj_weight[4:8])
    assert layer.weight.grad is not None and torch.equal(layer.weight.grad, 2 * model.in_proj_weight[4:8])
    masks.mask_gradients()
    assert int(model.in_proj_weight.grad.count_nonzero()) == 15
    masks.check()
    model.requires_grad_(False)
    assert not layer.weight.requires_grad


def test_saved_masks_say_which_rows_they_are_of() -> None:
    model = nn.Linear(4, 6, bias=False)
    state = masks_of(model, split={"weight": 2}).state_dict()
    assert state["layers"]["weight.1"]["block"] == {"parameter": "weight", "start": 3, "rows": 6}
    fresh = masks_of(model, split={"weight": 2}, active=4)
    fresh.load_state_dict(state)
    assert fresh.active_weights == 10
    state["layers"]["weight.1"]["block"]["start"] = 0
    with pytest.raises(UserError, match=r"presence: weight\.1"):
        fresh.load_state_dict(state)
    with pytest.raises(UserError, match="presence: weight"):
        masks_of(model).load_state_dict(state)


def test_convolutions_can_be_split_in_any_memory_format() -> None:
    """Units of kernel slices; the rows of the first dimension are outermost in both formats."""
    torch.manual_seed(0)
    model = nn.Conv2d(4, 6, 3, bias=False)
    masks = [masks_of(model, 7, split={"weight": 3}, granularity=2)]
    values = [layer.values() for layer in masks[0]]
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    masks.append(masks_of(model, 7, split={"weight": 3}, granularity=2))
    assert [layer.name for layer in masks[1]] == ["weight.q", "weight.k", "weight.v"]
    for mine, old in zip(masks[1], values, strict=True):
        assert torch.equal(mine.values(), old) and mine.spec.unit_size == 9
    masks[1].check()


def test_weights_that_do_not_lie_row_by_row_stay_whole() -> None:
    model = nn.MultiheadAttention(4, 2, bias=False)
    model.in_proj_weight = nn.Parameter(torch.randn(4, 12).t())
    assert [layer.name for layer in sparse_layers(model)] == ["in_proj_weight", "out_proj.weight"]
    with pytest.raises(UserError, match=r"sparsity\.split: in_proj_weight does not lie in memory row by row"):
        sparse_layers(model, split={"in_proj_weight": 3})


def test_attention_of_other_sizes_has_weights_of_its_own() -> None:
    model = nn.MultiheadAttention(8, 2, kdim=4, vdim=6)
    assert [layer.name for layer in sparse_layers(model)] == [
        *(f"{part}_proj_weight" for part in "qkv"),
        "out_proj.weight",
    ]


@pytest.mark.parametrize(
    ("library", "model", "split", "whole"),
    [
        ("torchvision", "swin_t", 12, []),
        ("torchvision", "maxvit_t", 22, []),
        ("timm", "vit_tiny_patch16_224", 12, []),
        ("timm", "tiny_vit_5m_224", 0, ["stages.1.blocks.0.attn.qkv.weight"]),  # heads lie between its three
    ],
)
def test_packed_layers_are_split_where_that_is_certain(library: str, model: str, split: int, whole: list[str]) -> None:
    import_torchvision()
    with torch.device("meta"):
        if library == "timm":
            built = pytest.importorskip("timm").create_model(model)
        else:
            import torchvision  # slow

            built = torchvision.models.get_model(model, weights=None)
    assert set(packed(built).values()) <= {3} and len(packed(built)) == split
    names = [layer.name for layer in sparse_layers(built)]
    assert sum(name.endswith(("qkv.weight.q", "qkv.weight.k", "qkv.weight.v")) for name in names) == 3 * split
    assert set(whole) <= set(names)
    if whole:  # Said in words, it is done.
        assert f"{whole[0]}.v" in [layer.name for layer in sparse_layers(built, split={"*.qkv.weight": 3})]
