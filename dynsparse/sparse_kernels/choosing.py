"""Choice of the layers that run by 2:4 kernels: those that are faster so, on the inputs that they get."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

import torch
from torch import Tensor, nn

from dynsparse.recording import record_inputs
from dynsparse.sparse_kernels.modules import adopt, compressed, is_product
from dynsparse.sparse_kernels.operands import DTYPES, Operand
from dynsparse.sparse_kernels.patterns import is_two_of_four

Timer = Callable[[Callable[[], object]], float]
"""Seconds that a call takes."""
Layer = nn.Linear | nn.Conv2d
NOT_CALLED = "its forward is not called"
"""Reason for a layer that is idle, or whose weight another module reads."""


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
            found.sparse[name] = (slow, fast)
        else:
            found.dense[name] = f"{1e3 * slow:.3g} ms dense, {1e3 * fast:.3g} ms 2:4"
    found.dense |= {name: NOT_CALLED for name in open_ if name not in {**found.sparse, **found.dense}}
    if training:
        adopt_layers(model, found.sparse, operand)
        return found
    for name, why in _install(model, inputs, list(found.sparse), operand).items():
        found.dense[name] = why
        del found.sparse[name]
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
    """Keep the first input that each layer gets. The model's own state, as BatchNorm's, stays as it is."""
    seen: dict[str, Tensor] = {}
    trial = copy.deepcopy(model)

    def keep(name: str, given: Tensor) -> None:
        seen.setdefault(name, given.detach())

    record_inputs(trial, inputs, {name: trial.get_submodule(name) for name in layers}, keep)
    return seen


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
    """Go forward and backward; gradients go nowhere. Under autocast each pass casts its weights, as in training."""
    torch.clear_autocast_cache()
    given = seen.detach().requires_grad_(seen.is_floating_point())
    out = layer(given)
    torch.autograd.grad(out, [given, *layer.parameters()], torch.ones_like(out), allow_unused=True)


def adopt_layers(model: nn.Module, names: Iterable[str], operand: type[Operand]) -> None:
    """Let these layers train by the operand, in place."""
    for name in names:
        layer = model.get_submodule(name)
        assert isinstance(layer, Layer)
        adopt(layer, operand)


def _install(model: nn.Module, inputs: Tensor, names: Sequence[str], operand: type[Operand]) -> dict[str, str]:
    """Replace the layers for inference, in place, but those without which the model does not run: with the reasons."""
    layers = {name: model.get_submodule(name) for name in names}
    for name, layer in layers.items():
        _replace(model, name, layer, operand)
    if not names or _failure(model, inputs) is None:
        return {}
    for name, layer in layers.items():
        model.set_submodule(name, layer)
    refused = {}
    for name, layer in layers.items():
        _replace(model, name, layer, operand)
        if (why := _failure(model, inputs)) is not None:
            model.set_submodule(name, layer)
            refused[name] = f"the model does not run without it: {why}"
    return refused


def _replace(model: nn.Module, name: str, layer: nn.Module, operand: type[Operand]) -> None:
    assert isinstance(layer, Layer)
    model.set_submodule(name, compressed(layer, operand))


@torch.no_grad()
def _failure(model: nn.Module, inputs: Tensor) -> str | None:
    """Return why the model does not run, None if it does. Its buffers stay as they are."""
    before = {name: value.clone() for name, value in model.named_buffers()}
    try:
        model(inputs)
    except Exception as error:  # noqa: BLE001 - networks of others raise about anything
        return str(error).partition("\n")[0] or type(error).__name__
    finally:
        for name, value in model.named_buffers():
            value.copy_(before[name])
    return None


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
