"""Groups of parameters whose weight decay or learning rate is their own."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Annotated, Any

from pydantic import Field
from torch import nn, optim

from dynsparse.errors import UserError
from dynsparse.optimizers.chain import depths
from pipelines.common.settings import Settings
from pipelines.common.text import alike, cut

Pattern = Annotated[str, Field(max_length=1000)]
_TIED = re.compile(r"(^|\.)parametrizations\.(\w+)\.original$")


class ParameterSettings(Settings):
    """Weight decay and learning rate of single parameters, where they differ from the others'."""

    decay_norms_and_biases: bool = True
    """Weight decay on scales and shifts of norms and on biases too: parameters of one dimension."""
    no_decay: Annotated[list[Pattern], Field(max_length=1000)] = []
    """Shell patterns of more parameters without weight decay, such as `*pos_embedding`."""
    lr_factors: Annotated[dict[str, Annotated[float, Field(gt=0, le=1e6)]], Field(max_length=1000)] = {}
    """Factors of the learning rate by shell patterns of parameter names; the first pattern that matches holds."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Factor of the learning rate from one block of a transformer to the one before it; the head has the whole rate."""

    @property
    def is_off(self) -> bool:
        """Whether all parameters are treated alike."""
        return self == ParameterSettings()


def parameter_groups(model: nn.Module, settings: ParameterSettings) -> list[dict[str, Any]]:
    """Return the groups of an optimizer over the model's parameters: one with those of each decay and rate.

    UserError for a pattern that matches no parameter, and for a model without blocks to count. Weights on the meta
    device will do.
    """
    names = {_name(name): parameter for name, parameter in model.named_parameters()}
    _require_matches("no_decay", settings.no_decay, names)
    _require_matches("lr_factors", settings.lr_factors, names)
    factors = _factors(model, settings, names)
    groups: dict[tuple[bool, float], list[nn.Parameter]] = {}
    for name, parameter in names.items():
        groups.setdefault((_decays(name, parameter, model, settings), factors[name]), []).append(parameter)
    return [_group(parameters, decays, factor) for (decays, factor), parameters in groups.items()]


def set_rate(optimizer: optim.Optimizer, rate: float) -> None:
    """Set the learning rate of each group: the schedule's, times the group's factor."""
    for group in optimizer.param_groups:
        group["rate"] = rate
        group["lr"] = rate * group["lr_factor"] if "lr_factor" in group else rate


def rate_of(optimizer: optim.Optimizer) -> float:
    """Return the schedule's rate, before factors of groups."""
    group = optimizer.param_groups[0]
    return float(group.get("rate", group["lr"]))


def described(optimizer: optim.Optimizer) -> list[str]:
    """Return lines that say how many parameters decay, and how many have another rate."""
    counts: dict[tuple[float, float], list[int]] = {}
    for group in optimizer.param_groups:
        sizes = counts.setdefault((float(group.get("weight_decay", 0)), group.get("lr_factor", 1.0)), [])
        sizes += [parameter.numel() for parameter in group["params"]]
    return list(_lines(counts))


def _lines(counts: Mapping[tuple[float, float], list[int]]) -> Iterator[str]:
    everything = [size for sizes in counts.values() for size in sizes]
    for what, place in (("weight decay", 0), ("learning rate x", 1)):
        values = {key[place] for key in counts}
        for value in sorted(values, reverse=True) if what == "weight decay" or values != {1.0} else ():
            sizes = [size for key, some in counts.items() if key[place] == value for size in some]
            yield (
                f"{what} {value:g}: {sum(sizes):,} of {sum(everything):,} parameters, in {len(sizes):,} of "
                f"{len(everything):,} tensors"
            )


def _name(name: str) -> str:
    """Return a parameter's name in the plain model; a tied weight's bank has that of the weight."""
    return _TIED.sub(r"\1\2", name)


def _decays(name: str, parameter: nn.Parameter, model: nn.Module, settings: ParameterSettings) -> bool:
    if any(fnmatchcase(name, pattern) for pattern in settings.no_decay):
        return False
    return settings.decay_norms_and_biases or parameter.dim() > 1 or not _is_plain(name, model)


def _is_plain(name: str, model: nn.Module) -> bool:
    """Whether the model holds the parameter under this name: not the bank of a tied weight, which has one dimension."""
    path, _, key = name.rpartition(".")
    return key in model.get_submodule(path)._parameters


def _factors(model: nn.Module, settings: ParameterSettings, names: Mapping[str, nn.Parameter]) -> dict[str, float]:
    """Factor of the learning rate of each parameter."""
    found = {name: _first(settings.lr_factors, name) for name in names}
    if settings.layer_decay == 1:
        return found
    below = depths(model, names)
    last = max(below.values())
    return {name: factor * settings.layer_decay ** (last - below[name]) for name, factor in found.items()}


def _first(factors: Mapping[str, float], name: str) -> float:
    return next((factor for pattern, factor in factors.items() if fnmatchcase(name, pattern)), 1.0)


def _require_matches(key: str, patterns: Any, names: Mapping[str, nn.Parameter]) -> None:
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise UserError(f"train.parameters.{key}: '{cut(pattern)}' matches no parameter{alike(pattern, names)}")


def _group(parameters: list[nn.Parameter], decays: bool, factor: float) -> dict[str, Any]:
    group: dict[str, Any] = {"params": parameters}
    if not decays:
        group |= {"weight_decay": 0.0, "adapted": False}  # The latter is LAMB's.
    if factor != 1:
        group["lr_factor"] = factor
    return group
