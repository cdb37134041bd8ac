"""Parameters that pack several layers as blocks of rows, such as attention's query, key and value.

nn.MultiheadAttention multiplies by `in_proj_weight` [3 E, E] once, and splits the result. The rows of its three parts
are three layers: each has a task, and so a budget, of its own.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping

from torch import Tensor, nn

from dynsparse.errors import UserError
from dynsparse.masks import naming
from dynsparse.masks.granularity import RowBlock
from dynsparse.masks.tensors import is_dense
from pipelines.common.text import alike, cut

_QKV = ("q", "k", "v")
MOST_PARTS = 64
"""Most layers in one parameter."""

_PACKED: Mapping[str, str] = {
    "timm.layers.attention.Attention": "qkv",
    "timm.layers.attention.AttentionRope": "qkv",
    "timm.models.beit.Attention": "qkv",
    "timm.models.eva.EvaAttention": "qkv",
    "timm.models.swin_transformer.WindowAttention": "qkv",
    "timm.models.swin_transformer_v2.WindowAttention": "qkv",
    "timm.models.vision_transformer.Attention": "qkv",
    "torchvision.models.maxvit.RelativePositionalMultiHeadAttention": "to_qkv",
    "torchvision.models.swin_transformer.ShiftedWindowAttention": "qkv",
    "torchvision.models.swin_transformer.ShiftedWindowAttentionV2": "qkv",
}
"""Modules that split a linear layer's outputs into query, key and value, in this order, and the name of that layer.

The name alone does not tell. TinyViT's and LeViT's `qkv` have the three of one head next to each other, and so the
rows of a query are not consecutive.
"""


def packed(model: nn.Module) -> dict[str, int]:
    """Parameters that are certain to pack query, key and value, by name, with the number of their parts: 3."""
    found = {}
    for prefix, module in naming.modules(model):
        kind = f"{type(module).__module__}.{type(module).__qualname__}"
        if isinstance(module, nn.MultiheadAttention):
            name = "in_proj_weight"
        elif isinstance(module._modules.get(_PACKED.get(kind, "")), nn.Linear):
            name = f"{_PACKED[kind]}.weight"
        else:
            continue
        found[f"{prefix}.{name}" if prefix else name] = len(_QKV)
    return found


def parts_of(model: nn.Module, known: Mapping[str, Tensor], asked: Mapping[str, int]) -> dict[str, int]:
    """Number of layers in each parameter that packs several, by its first name.

    `known` are the parameters that can be sparse. `asked` maps shell patterns to numbers of parts: the last that
    matches a name holds, and 1 keeps it whole. UserError for a pattern that matches none, or a number that does not
    divide the rows.
    """
    found = {name: parts for name, parts in packed(model).items() if name in known}
    for pattern, parts in asked.items():
        names = fnmatch.filter(known, pattern)
        if not names:
            raise UserError(
                f"sparsity.split: '{cut(pattern)}' matches no weight that can be sparse{alike(pattern, known)}"
            )
        for name in names:
            _require_rows(name, known[name], parts)
            found[name] = parts
    return {name: parts for name, parts in found.items() if parts > 1 and _has_rows(known[name], parts)}


def _require_rows(name: str, weight: Tensor, parts: int) -> None:
    if parts > 1 and len(weight) % parts:
        raise UserError(
            f"sparsity.split: {name} has {len(weight)} rows, which {parts} equal parts do not make up; "
            f"give a number that divides them"
        )
    if parts > 1 and not _has_rows(weight, parts):
        raise UserError(
            f"sparsity.split: {name} does not lie in memory row by row: make it contiguous, or leave it out"
        )


def _has_rows(weight: Tensor, parts: int) -> bool:
    """Whether the parts are equal, and each lies in memory without gaps."""
    return len(weight) % parts == 0 and is_dense(weight.detach()[: len(weight) // parts])


def blocks_of(name: str, weight: Tensor, parts: int) -> dict[str, RowBlock]:
    """Names and places of the layers in a parameter.

    Example: `attn.qkv.weight` in 3 parts gives `attn.qkv.weight.q`, `.k` and `.v`; in 2 parts `.0` and `.1`.
    """
    rows, keys = len(weight), _QKV if parts == len(_QKV) else [str(part) for part in range(parts)]
    return {f"{name}.{key}": RowBlock(name, part * (rows // parts), rows) for part, key in enumerate(keys)}
