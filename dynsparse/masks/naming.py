"""Names of a model's modules and parameters, whatever wraps them.

`torch.compile`, DataParallel, DistributedDataParallel, AveragedModel, Fabric and activation checkpoints put a module
around a module, and a prefix into the names. Here modules and parameters have their names in the plain model.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

_HELD_AS = ("_orig_mod", "_forward_module", "_checkpoint_wrapped_module")
"""Attributes in which wrappers hold a module: torch.compile, Lightning Fabric, activation checkpoints."""


def plain_name(name: str) -> str:
    """Return a parameter's name without the parts that these wrappers put into it, at any depth."""
    return ".".join(part for part in name.split(".") if part not in _HELD_AS)


def unwrapped(module: nn.Module) -> nn.Module:
    """Return the module inside all wrappers, or the module itself."""
    while True:
        inner = next((module._modules[name] for name in _HELD_AS if module._modules.get(name) is not None), None)
        if inner is None and isinstance(module, (DataParallel, DistributedDataParallel, AveragedModel)):
            inner = module.module
        if inner is None:
            return module
        module = inner


def modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield each module once, with its name in the plain model. Wrappers are skipped."""
    yield from _modules(model, "", set())


def _modules(module: nn.Module, name: str, seen: set[int]) -> Iterator[tuple[str, nn.Module]]:
    module = unwrapped(module)
    if id(module) in seen:
        return
    seen.add(id(module))
    yield name, module
    for key, child in module._modules.items():
        if child is not None:
            yield from _modules(child, f"{name}.{key}" if name else key, seen)


def places(model: nn.Module) -> Iterator[tuple[str, nn.Module, str, nn.Parameter]]:
    """Yield each place that holds a parameter: full name, module, the module's own name for it, the parameter.

    A parameter that several modules share comes once for each of them.
    """
    for prefix, module in modules(model):
        for key, parameter in module._parameters.items():
            if parameter is not None:
                yield f"{prefix}.{key}" if prefix else key, module, key, parameter


def named_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Each parameter once, by its first name: `model.named_parameters()` without the prefixes of wrappers."""
    found: dict[str, nn.Parameter] = {}
    seen: set[int] = set()
    for name, _, _, parameter in places(model):
        if id(parameter) not in seen:
            seen.add(id(parameter))
            found[name] = parameter
    return found
