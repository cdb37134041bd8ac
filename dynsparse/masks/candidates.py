"""The weights of a model that can be sparse, and the choice among them."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import nn

from dynsparse.errors import UserError
from dynsparse.masks import naming
from dynsparse.masks.granularity import Granularity, Kind, LayerSpec
from dynsparse.masks.obstacles import obstacle, refuse
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


def candidates(model: nn.Module) -> dict[str, Candidate]:
    """All weights that can be sparse, by name and in the model's order, with the obstacles that some have.

    These are the weights of convolutions (transposed ones too), linear and bilinear layers, recurrent layers and
    attention. Any other parameter of two or more dimensions can be named. A parameter that several modules share
    stands under its first name.
    """
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
) -> list[LayerSpec]:
    """Choose the layers to make sparse.

    Args:
        model: any module, wrapped or not.
        default: names that the model itself proposes. None: the weights of all layers, see `candidates`.
        include: shell patterns over parameter names (`layer3.*`), which replace the default.
        exclude: shell patterns of names to take away.
        granularity: the unit of a convolution (out, in, kh, kw): 4 element, 3 kernel row, 2 kernel slice, 1 filter (in
            a transposed one: all of an input). Linear weights are always elementwise, as in the paper's code.
        kinds: only layers of these kinds.

    Raises UserError for a pattern that matches nothing, and for layers that cannot be kept sparse.
    """
    known = candidates(model)
    chosen = {name for name, one in known.items() if one.by_default} if default is None else set(default)
    if include is not None:
        chosen = matching(model, include, "sparsity.include")
    chosen -= matching(model, exclude, "sparsity.exclude")
    wanted = {name: one for name, one in known.items() if name in chosen and one.kind in kinds}
    refuse({name: one.obstacle for name, one in wanted.items() if one.obstacle is not None})
    shapes = {name: tuple(one.parameter.shape) for name, one in wanted.items() if one.parameter is not None}
    return [
        LayerSpec(name, one.kind, shapes[name], _mask_dims(one.kind, shapes[name], granularity), one.outputs_first)
        for name, one in wanted.items()
    ]


def _all_names(model: nn.Module, known: Mapping[str, Candidate]) -> dict[str, str]:
    """First name of each candidate, by all of its names."""
    first_names = {id(one.parameter): name for name, one in known.items() if one.parameter is not None}
    shared = {
        name: first_names[id(parameter)]
        for name, _, _, parameter in naming.places(model)
        if id(parameter) in first_names
    }
    return {name: name for name in known} | shared


def _mask_dims(kind: Kind, shape: tuple[int, ...], granularity: Granularity) -> int:
    return len(shape) if kind == "fc" or granularity == 4 else min(granularity, len(shape))


def matching(model: nn.Module, patterns: Iterable[str], key: str) -> set[str]:
    """First names of the candidates that the shell patterns match. UserError for a pattern that matches none."""
    names = _all_names(model, candidates(model))
    found: set[str] = set()
    for pattern in patterns:
        matches = fnmatch.filter(names, pattern)
        if not matches:
            raise UserError(f"{key}: '{cut(pattern)}' matches no weight that can be sparse{alike(pattern, names)}")
        found.update(names[match] for match in matches)
    return found
