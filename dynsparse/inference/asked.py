"""Checks of what speed_up is given, before anything is timed."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from itertools import chain

import torch
from torch import Tensor, nn

from dynsparse.errors import UserError
from dynsparse.inference.engines import ENGINES, TORCH, require_libraries
from dynsparse.inference.rounds import LEAST_ROUNDS
from dynsparse.masks.naming import unwrapped
from pipelines.common.text import nearest

DEVICES = ("cpu", "cuda")


def checked_copy(model: nn.Module, example: Tensor, through: str, rounds: int) -> nn.Module:
    """Return a copy of the model, without wrappers such as DDP. Raises UserError for what cannot be sped up."""
    if through not in (known := (TORCH, *ENGINES)):
        raise UserError(f"speed_up: through is '{through}'{nearest(str(through), known)}")
    if rounds < LEAST_ROUNDS:
        raise UserError(f"speed_up: rounds is {rounds}; it must be at least {LEAST_ROUNDS}")
    require_libraries(through)
    for problem in chain(_of_example(example), _of_model(model)):
        raise UserError(f"speed_up: {problem}")
    for problem in _of_both(model, example, through):
        raise UserError(f"speed_up: {problem}")
    try:
        return copy.deepcopy(unwrapped(model)).requires_grad_(False)
    except Exception as error:  # As many kinds as there are modules.
        raise UserError(
            f"speed_up: the model cannot be copied ({_reason(error)}); give it as a plain module"
        ) from error


def outputs(model: nn.Module, images: Tensor) -> Tensor:
    """Return the model's outputs. Raises UserError where there are none to compare with."""
    try:
        with torch.no_grad():
            found, again = model(images), model(images)
    except Exception as error:  # As many kinds as there are networks.
        shape = "x".join(map(str, images.shape))
        raise UserError(
            f"speed_up: the model does not take an example of {shape} ({_reason(error)}); give one batch of its input"
        ) from error
    if not isinstance(found, Tensor):
        raise UserError(f"speed_up: the model gives a {type(found).__name__}; it has to give one tensor")
    if not bool(found.isfinite().all()):
        raise UserError("speed_up: the model gives NaN or inf for the example; give a batch of its input")
    if not torch.allclose(found, again, rtol=1e-3):
        raise UserError("speed_up: the model gives other outputs each time; nothing can be compared with them")
    return found


def _of_example(example: object) -> Iterator[str]:
    if not isinstance(example, Tensor):
        yield f"the example is a {type(example).__name__}; give one batch of the model's input as a tensor"
    elif example.dtype != torch.float32:
        yield f"the example is {example.dtype}; give float32"
    elif example.dim() < 2 or example.numel() == 0:
        yield f"the example's shape is {tuple(example.shape)}; give a batch of one input at least"


def _of_model(model: nn.Module) -> Iterator[str]:
    training = next((name for name, module in model.named_modules() if module.training), None)
    if training is not None:
        where = f" in {training}" if training else ""
        yield f"the model is in training mode{where}; call model.eval() first"
    for name, value in chain(model.named_parameters(), model.named_buffers()):
        if value.is_floating_point() and value.dtype != torch.float32:
            yield f"{name} is {value.dtype}; only float32 can be sped up: call model.float() first"


def _of_both(model: nn.Module, example: Tensor, through: str) -> Iterator[str]:
    for name, value in chain(model.named_parameters(), model.named_buffers()):
        if value.device != example.device:
            yield f"the example is on {example.device} and {name} on {value.device}; move them to one device"
    if example.device.type not in DEVICES:
        yield f"the example is on {example.device}; move it and the model to the CPU or a GPU"
    if example.device.type != "cpu" and through not in (TORCH, "inductor"):
        yield f"through='{through}' runs on the CPU and the model is on {example.device}; call model.cpu()"


def _reason(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
