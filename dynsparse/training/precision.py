"""Number formats of a training step: autocast, loss scaling, NaN and inf."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from enum import IntEnum
from typing import Any, Literal

import torch
from torch import Tensor, nn, optim

Format = Literal["fp32", "bf16", "fp16"]


class Outcome(IntEnum):
    """Outcome of a step. On the device it is a number."""

    MADE = 0
    BAD = 1
    SEARCHING = 2
    """Skipped, and fp16's loss scale may be at fault: it is being looked for."""


class Precision:
    """Runs the forward pass in the format asked for. Weights, gradients and optimizer state are float32 in each.

    fp16 has numbers up to 65504 only and loses those below 6e-8. So the loss is scaled up before backward and the
    gradients down after it, by a factor that is halved where they overflow (`torch.amp.GradScaler`). The scale follows
    from reduced gradients, so it is the same on every rank.
    """

    def __init__(self, format: Format, device: torch.device) -> None:  # noqa: A002 - the word for it
        self.format = format
        self.device = device
        self.scaler = torch.amp.GradScaler(device.type, enabled=format == "fp16")

    def autocast(self) -> AbstractContextManager[object]:
        """A context of forward passes in this format."""
        if self.format == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16 if self.format == "bf16" else torch.float16)

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a scalar loss. A loss of NaN or inf makes all of them NaN.

        So the sum over the ranks tells each rank, and none needs to ask the others.
        """
        poison = 1 + 0 * loss.detach()  # Exactly 1, or NaN.
        self.scaler.scale(loss * poison).backward()

    def outcome(self, optimizer: optim.Optimizer, parameters: Iterable[nn.Parameter]) -> Tensor:
        """Give the reduced gradients their true size. Returns the step's `Outcome`, the same on every rank.

        It is an int64 scalar on the device, MADE if all gradients are finite. `step` or `skip` follows.
        """
        self.scaler.unscale_(optimizer)
        is_bad = ~all_finite([parameter.grad for parameter in parameters if parameter.grad is not None])
        return is_bad * self._fault()

    def _fault(self) -> Tensor | int:
        """Outcome of a step that is skipped: the fault may lie in the scale, which gets lower, down to 1."""
        if not self.scaler.is_enabled():
            return Outcome.BAD
        scale = self.scaler.scale(torch.ones((), device=self.device))
        return torch.where(scale > 1, int(Outcome.SEARCHING), int(Outcome.BAD))

    def step(self, optimizer: optim.Optimizer, unless: Tensor | None = None) -> None:
        """Let the optimizer step with finite gradients, or skip the step where a flag on the device says so.

        torch's fused optimizers read such a flag, under the name that GradScaler gives it.
        """
        if unless is None:
            optimizer.step()
        else:
            optimizer.found_inf = unless.float()  # type: ignore[attr-defined]
            optimizer.step()
            del optimizer.found_inf  # type: ignore[attr-defined]
        self.scaler.update()

    def skip(self) -> None:
        """Take no `step`. The scale is lower after it."""
        self.scaler.update()

    def state_dict(self) -> dict[str, Any]:
        """The scaler's state, empty without one."""
        return self.scaler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load a scaler's state. Older checkpoints and other formats have none."""
        if self.scaler.is_enabled() and state:
            self.scaler.load_state_dict(state)


def all_finite(tensors: Sequence[Tensor]) -> Tensor:
    """Bool scalar: whether no value of the tensors is NaN or inf."""
    if tensors[0].is_cuda:  # A few kernels for all; on a CPU it takes ten times as long.
        return torch.nn.utils.get_total_norm(tensors, norm_type=torch.inf).isfinite()
    return torch.stack([extreme for tensor in tensors for extreme in torch.aminmax(tensor)]).isfinite().all()
