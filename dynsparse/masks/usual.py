"""Layers that stay dense unless they are named, with the reason for each: small ones that a network cannot do without.

Their weights are few, and what the paper's and later results make sparse leaves them out. Biases, norms and embeddings
are no layers' weights, and stay dense in any case.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain

from torch import Tensor, nn

from dynsparse.masks import naming
from dynsparse.masks.candidates import Candidate, candidates

LEAST_FAN_IN = 32
"""Fewest inputs of each output for a layer to be sparse by default.

With uniform density d, an output of fan-in f has no weight left with a chance of (1 - d)^f. At 90 % zeros that is 39 %
for a depthwise 3x3 kernel, 18 % at f = 16, and 3 % at f = 32.
"""
MOST_COLOURS = 4
"""Most channels of an image: grey, colour, and one of opacity."""


def usually_dense(model: nn.Module) -> dict[str, str]:
    """Reasons for the weights of layers to stay dense by default, by the first names of the parameters."""
    known = {name: one for name, one in candidates(model, None).items() if one.by_default}
    names = {id(one.parameter): name for name, one in known.items()}
    special = {names[id(weight)]: reason for weight, reason in _special(model) if id(weight) in names}
    small = {name: reason for name, one in known.items() if (reason := _too_small(one))}
    return {name: (small | special)[name] for name in known if name in small or name in special}


def chosen_by_default(model: nn.Module, dense: Mapping[str, str]) -> list[str]:
    """Names of the parameters whose layers are sparse by default, given those that stay dense."""
    return [name for name, one in candidates(model, None).items() if one.by_default and name not in dense]


def _special(model: nn.Module) -> Iterator[tuple[Tensor, str]]:
    """Yield the weights that have a special place in the network, the most telling reason last."""
    convolutions = [one for _, one in naming.modules(model) if isinstance(one, nn.modules.conv._ConvNd)]
    yield from ((one.weight, "depthwise convolution") for one in convolutions if _is_depthwise(one))
    first = next((one for one in convolutions if one.groups == 1 and one.in_channels <= MOST_COLOURS), None)
    if first is not None:
        patches = first.kernel_size == first.stride and first.kernel_size[0] > 1
        yield first.weight, "patch embedding" if patches else "first convolution, takes the image"
    yield from ((one.weight, "classification head") for one in _heads(model, convolutions))


def _is_depthwise(module: nn.modules.conv._ConvNd) -> bool:
    return module.groups > 1 and module.groups == module.in_channels


def _heads(
    model: nn.Module, convolutions: list[nn.modules.conv._ConvNd]
) -> Sequence[nn.Linear | nn.modules.conv._ConvNd]:
    """Modules that give the logits: those that a timm network names, else the last linear layer.

    A network without any, such as SqueezeNet, has its last convolution for a head.
    """
    named = getattr(naming.unwrapped(model), "get_classifier", None)
    if callable(named):
        found = named()
        modules = chain.from_iterable(one.modules() for one in (found if isinstance(found, tuple) else (found,)))
        return [one for one in modules if isinstance(one, nn.Linear | nn.modules.conv._ConvNd)]
    linear = [one for _, one in naming.modules(model) if isinstance(one, nn.Linear)]
    return linear[-1:] or convolutions[-1:]


def _too_small(one: Candidate) -> str | None:
    if one.parameter is None or nn.parameter.is_lazy(one.parameter):
        return None
    shape = one.parameter.shape
    fan_in = math.prod(shape[1:]) if one.outputs_first else shape[0] * math.prod(shape[2:])
    return f"fan-in {fan_in} is below {LEAST_FAN_IN}" if fan_in < LEAST_FAN_IN else None
