"""The weights of a model that can be sparse, and the choice among them."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

from torch import nn

from dynsparse.errors import UserError
from dynsparse.masks import naming
from dynsparse.masks.granularity import Granularity, Kind, LayerSpec, RowBlock
from dynsparse.masks.obstacles import obstacle, refuse
from dynsparse.masks.splitting import blocks_of, parts_of
from pipelines.common.text import alike, cut


@dataclass(frozen=True)
class Candidate:
    """Weight that can be made sparse, or could but for an obstacle."""

    kind: Kind
    parameter: nn.Parameter | None
    """None where the module computes its weight from other parameters."""
    obstacle: str | None = None
    """Reason against keeping it sparse, with the remedy."""
    outputs_first: bool = True
    by_default: bool = True
    """True for the weight of a layer. Others are made sparse only where `include` names them."""
    block: RowBlock | None = None
    """Rows of the parameter, where several layers are packed into it."""
    parts: int = 1
    """Number of layers that are packed into the parameter."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the layer. It has one only where the parameter is there."""
        assert self.parameter is not None
        whole = tuple(self.parameter.shape)
        return whole if self.block is None else (self.block.rows // self.parts, *whole[1:])


def candidates(model: nn.Module, split: Mapping[str, int] | None = MappingProxyType({})) -> dict[str, Candidate]:
    """All weights that can be sparse, by name and in the model's order, with the obstacles that some have.

    These are the weights of convolutions (transposed ones too), linear and bilinear layers, recurrent layers and
    attention. Any other parameter of two or more dimensions can be named. A parameter that several modules share
    stands under its first name. One that packs several layers comes as these: see `splitting.parts_of`, also for
    `split`; None splits none.
    """
    whole = _whole_candidates(model)
    if split is None:
        return whole
    known = {name: one.parameter for name, one in whole.items() if one.parameter is not None and one.obstacle is None}
    parts = parts_of(model, known, split)
    found: dict[str, Candidate] = {}
    for name, one in whole.items():
        if name not in parts:
            found[name] = one
            continue
        blocks = blocks_of(name, known[name], parts[name])
        found |= {key: replace(one, block=block, parts=parts[name]) for key, block in blocks.items()}
    return found


def _whole_candidates(model: nn.Module) -> dict[str, Candidate]:
    first_names = {id(parameter): name for name, parameter in naming.named_parameters(model).items()}
    order = {name: i for i, name in enumerate(first_names.values())}
    found: dict[str, Candidate] = {}
    for prefix, module in naming.modules(model):
        for key, kind in _layer_weights(module):
            parameter = module._parameters.get(key)
            name = first_names[id(parameter)] if parameter is not None else f"{prefix}.{key}" if prefix else key
            outputs_first = not isinstance(module, nn.modules.conv._ConvTransposeNd)
            found.setdefault(name, Candidate(kind, parameter, obstacle(module, key), outputs_first))
    layers = set(found)
    for _, module, key, parameter in naming.places(model):
        first = first_names[id(parameter)]
        if first in layers and (reason := obstacle(module, key)):
            found[first] = replace(found[first], obstacle=reason)
        elif first not in found and not nn.parameter.is_lazy(parameter) and parameter.dim() >= 2:
            found[first] = Candidate("fc", parameter, obstacle(module, key), by_default=False)
    return dict(sorted(found.items(), key=lambda item: order.get(item[0], len(order))))


def _layer_weights(module: nn.Module) -> list[tuple[str, Kind]]:
    """The module's own names of its weights, without biases."""
    match module:
        case nn.modules.conv._ConvNd():
            return [("weight", "conv")]
        case nn.Linear() | nn.Bilinear():
            return [("weight", "fc")]
        case nn.RNNBase():
            return [(key, "fc") for key in module._flat_weights_names if key.startswith("weight_")]
        case nn.RNNCellBase():
            return [("weight_ih", "fc"), ("weight_hh", "fc")]
        case nn.MultiheadAttention():
            split = not module._qkv_same_embed_dim
            keys = ["q_proj_weight", "k_proj_weight", "v_proj_weight"] if split else ["in_proj_weight"]
            return [(key, "fc") for key in keys]
        case _:
            return []


def sparse_layers(
    model: nn.Module,
    *,
    default: Sequence[str] | None = None,
    include: Sequence[str] | None = None,
    exclude: Sequence[str] = (),
    granularity: Granularity = 4,
    kinds: Sequence[Kind] = ("conv", "fc"),
    split: Mapping[str, int] | None = MappingProxyType({}),
    structure: str = "free",
) -> list[LayerSpec]:
    """Choose the layers to make sparse.

    Args:
        model: any module, wrapped or not.
        default: names of the weights that the model itself proposes. None: those of all layers, see `candidates`.
        include: shell patterns over parameter names (`layer3.*`), which replace the default.
        exclude: shell patterns of names to take away.
        granularity: the unit of a convolution (out, in, kh, kw): 4 element, 3 kernel row, 2 kernel slice, 1 filter (in
            a transposed one: all of an input). Linear weights are always elementwise, as in the paper's code.
        kinds: only layers of these kinds.
        split: shell patterns of parameters that pack several layers as blocks of rows, with their number
            (`{"*.qkv.weight": 3}`). Those that are certain to pack query, key and value are split without it;
            `{name: 1}` keeps one whole. None splits none.
        structure: pattern of the masks: free, fan_in, or N:M (`structure`).

    Raises UserError for a pattern that matches nothing, and for layers that cannot be kept sparse.
    """
    known = candidates(model, split)
    chosen = {name for name, one in known.items() if _is_chosen(name, one, default)}
    if include is not None:
        chosen = matching(model, include, "sparsity.include", known)
    chosen -= matching(model, exclude, "sparsity.exclude", known)
    wanted = {name: one for name, one in known.items() if name in chosen and one.kind in kinds}
    refuse({name: one.obstacle for name, one in wanted.items() if one.obstacle is not None})
    return [
        LayerSpec(
            name,
            one.kind,
            one.shape,
            _mask_dims(one.kind, one.shape, granularity),
            one.outputs_first,
            one.block,
            structure,
        )
        for name, one in wanted.items()
    ]


def _is_chosen(name: str, one: Candidate, default: Sequence[str] | None) -> bool:
    """Whether a layer is sparse where no pattern says so. The name of a packed parameter stands for its layers."""
    if default is None:
        return one.by_default
    return name in default or (one.block is not None and one.block.parameter in default)


def _all_names(model: nn.Module, known: Mapping[str, Candidate]) -> dict[str, list[str]]:
    """First names of the candidates, by all names that stand for them. A packed parameter's stands for all its layers.

    A parameter that several modules share has a name in each: they stand for it, and for its layers with their parts.
    """
    by_parameter: dict[int, list[str]] = {}
    for name, one in known.items():
        if one.parameter is not None:
            by_parameter.setdefault(id(one.parameter), []).append(name)
    found = {name: [name] for name in known}
    for name, _, _, parameter in naming.places(model):
        layers = by_parameter.get(id(parameter), [])
        found |= {name: layers} if layers else {}
        found |= {f"{name}.{one.rpartition('.')[2]}": [one] for one in layers if known[one].block is not None}
    return found


def _mask_dims(kind: Kind, shape: tuple[int, ...], granularity: Granularity) -> int:
    return len(shape) if kind == "fc" or granularity == 4 else min(granularity, len(shape))


def matching(model: nn.Module, patterns: Iterable[str], key: str, known: Mapping[str, Candidate]) -> set[str]:
    """First names of the candidates `known` that the patterns match. UserError for a pattern that matches none."""
    names = _all_names(model, known)
    found: set[str] = set()
    for pattern in patterns:
        matches = fnmatch.filter(names, pattern)
        if not matches:
            raise UserError(f"{key}: '{cut(pattern)}' matches no weight that can be sparse{alike(pattern, names)}")
        found.update(name for match in matches for name in names[match])
    return found
