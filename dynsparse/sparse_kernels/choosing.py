"""Choice of the layers that run by 2:4 kernels: those that are faster so, on the inputs that they get."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from statistics import median

import torch
from torch import Tensor, nn

from dynsparse.sparse_kernels.modules import adopt, compressed, is_product
from dynsparse.sparse_kernels.operands import DTYPES, Operand
from dynsparse.sparse_kernels.patterns import is_two_of_four

Timer = Callable[[Callable[[], object]], float]
"""Seconds that a call takes."""
Layer = nn.Linear | nn.Conv2d


@dataclass
class Chosen:
    """Layers of a model by their names."""

    sparse: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Layers that run by 2:4 kernels now, with their seconds dense and sparse."""
    dense: dict[str, str] = field(default_factory=dict)
    """Linear layers and convolutions that stay as they were, with the reason."""

    def __str__(self) -> str:
        times = [
            f"{name} ({1e3 * slow:.3g} ms dense, {1e3 * fast:.3g} ms 2:4)" for name, (slow, fast) in self.sparse.items()
        ]
        kept = [f"{name} ({why})" for name, why in self.dense.items()]
        return f"by 2:4 kernels: {', '.join(times) or 'none'}; dense: {', '.join(kept) or 'none'}"


def choose(model: nn.Module, inputs: Tensor, operand: type[Operand], timer: Timer, *, training: bool) -> Chosen:
    """Replace each linear layer and 1x1 convolution of 2:4 weights that is faster by the operand, in place."""
    named = {name: layer for name, layer in model.named_modules() if isinstance(layer, Layer)}
    found = Chosen(dense={name: why for name, layer in named.items() if (why := obstacle(layer, training))})
    open_ = {name: layer for name, layer in named.items() if name not in found.dense}
    for name, seen in _inputs_of(model, open_, inputs).items():
        try:
            slow, fast = seconds_of(open_[name], seen, operand, timer, training=training)
        except (RuntimeError, NotImplementedError) as error:  # A kernel that does not take this shape.
            found.dense[name] = str(error).partition("\n")[0]
            continue
        if fast < slow:
            _install(model, name, operand, training=training)
            found.sparse[name] = (slow, fast)
        else:
            found.dense[name] = f"{1e3 * slow:.3g} ms dense, {1e3 * fast:.3g} ms 2:4"
    found.dense |= {name: "not used" for name in open_ if name not in {**found.sparse, **found.dense}}
    return found


def obstacle(layer: Layer, training: bool) -> str | None:
    """Reason for which a layer has no 2:4 kernel, None if it may have one. Training needs the pattern both ways."""
    if not is_product(layer):
        return "neither linear nor 1x1"
    if not is_two_of_four(layer.weight):
        return "not 2:4 along its inputs"
    if training and not is_two_of_four(layer.weight, 0):
        return "not 2:4 along its outputs"
    if not training and layer.weight.dtype not in DTYPES:
        return f"{str(layer.weight.dtype).removeprefix('torch.')} weights"
    return None


def _inputs_of(model: nn.Module, layers: Mapping[str, Layer], inputs: Tensor) -> dict[str, Tensor]:
    """Copy the first input that each layer gets. The model's own state, as BatchNorm's, stays as it is."""
    seen: dict[str, Tensor] = {}
    trial = copy.deepcopy(model)
    for name in layers:
        trial.get_submodule(name).register_forward_pre_hook(_keeper(seen, name))
    with torch.no_grad():
        trial(inputs)
    return seen


def _keeper(seen: dict[str, Tensor], name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    def keep(_: nn.Module, given: tuple[Tensor, ...]) -> None:
        seen.setdefault(name, given[0].detach())

    return keep


def seconds_of(
    layer: Layer, seen: Tensor, operand: type[Operand], timer: Timer, *, training: bool
) -> tuple[float, float]:
    """Seconds of a layer on an input, dense and by the operand: forward, and backward too in `training`."""
    ours: nn.Module = copy.deepcopy(layer)
    if training:
        adopt(ours, operand)  # type: ignore[arg-type]
        return timer(lambda: _step(layer, seen)), timer(lambda: _step(ours, seen))
    ours = compressed(layer, operand)
    with torch.no_grad():
        return timer(lambda: layer(seen)), timer(lambda: ours(seen))


def _step(layer: nn.Module, seen: Tensor) -> None:
    """Go forward and backward; gradients go nowhere."""
    given = seen.detach().requires_grad_(seen.is_floating_point())
    out = layer(given)
    torch.autograd.grad(out, [given, *layer.parameters()], torch.ones_like(out), allow_unused=True)


def adopt_layers(model: nn.Module, names: Iterable[str], operand: type[Operand]) -> None:
    """Let these layers train by the operand, in place."""
    for name in names:
        layer = model.get_submodule(name)
        assert isinstance(layer, Layer)
        adopt(layer, operand)


def _install(model: nn.Module, name: str, operand: type[Operand], *, training: bool) -> None:
    if training:
        adopt_layers(model, [name], operand)
    else:
        layer = model.get_submodule(name)
        assert isinstance(layer, Layer)
        model.set_submodule(name, compressed(layer, operand))


def cuda_seconds(call: Callable[[], object], warmup: int = 5, repeats: int = 20) -> float:
    """Median seconds of a call on the current GPU."""
    for _ in range(warmup):
        call()
    times: list[float] = []
    for _ in range(repeats):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        call()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1e3)
    return median(times)
