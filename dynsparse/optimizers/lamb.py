"""LAMB: Adam whose step is scaled in each tensor to the size of its weights, for large batches.

You et al. 2020, "Large Batch Optimization for Deep Learning: Training BERT in 76 minutes", algorithm 2. With Adam's
bias-corrected moments m and v, decay d and rate lr, each tensor w takes the step

    u = m / (sqrt(v) + eps) + d w,      w <- w - lr (|w| / |u|) u

The trust ratio |w| / |u| is 1 where either norm is 0, and is not bounded (the paper's phi is the identity). As in the
authors' own runs, parameters without decay, such as norms and biases, can be left out of it: see `Lamb`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn, optim

from dynsparse.optimizers.base import Beta, Decay, Eps, Parameters
from pipelines.common.settings import Settings


class LambSettings(Settings):
    """LAMB, for large batches (You et al. 2020). Its trust ratio is of active weights: the others are 0.

    Parameters without decay have no trust ratio either, as in the paper's own runs: those that `train.parameters`
    names in `no_decay`, and norms and biases with `decay_norms_and_biases` off.
    """

    name: Literal["lamb"]
    beta1: Beta = 0.9
    """Decay of the running mean of gradients, per step."""
    beta2: Beta = 0.999
    """Decay of the running mean of squared gradients, per step."""
    eps: Eps = 1e-6
    """Number added to the denominator, so that it is never 0."""
    weight_decay: Decay = 1e-2
    """Fraction of each weight that is added to its step, before the trust ratio."""

    def build(self, parameters: Parameters, lr: float) -> optim.Optimizer:
        """Return the optimizer; `lr` is the rate of the first step."""
        betas = self.beta1, self.beta2
        return Lamb(parameters, lr=lr, betas=betas, eps=self.eps, weight_decay=self.weight_decay)


class Lamb(optim.Optimizer):
    """The optimizer.

    A masked weight with a gradient and moments of 0 has a step of 0, so it stays 0. It adds nothing to either norm: the
    trust ratio is that of the active weights. Groups with `adapted: False` have none.
    """

    def __init__(
        self, parameters: Parameters, *, lr: float, betas: tuple[float, float], eps: float, weight_decay: float
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "adapted": True}
        super().__init__(parameters, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Make a step. Returns the loss of the closure, if one is given."""
        with torch.enable_grad():
            loss = None if closure is None else closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._step(parameter, parameter.grad, group)
        return loss

    def _step(self, weight: nn.Parameter, gradient: Tensor, group: dict[str, Any]) -> None:
        update = _adam(self._state(weight), gradient, group["betas"], group["eps"])
        if group["weight_decay"]:
            update.add_(weight, alpha=group["weight_decay"])
        if group["adapted"]:
            update.mul_(_trust_ratio(weight, update))
        weight.sub_(update, alpha=group["lr"])

    def _state(self, weight: nn.Parameter) -> dict[str, Tensor]:
        state: dict[str, Tensor] = self.state[weight]
        if not state:
            # On the weight's device, as after a resume: the powers of beta are then the same to the bit.
            state["step"] = torch.zeros((), dtype=torch.float64, device=weight.device)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(weight), torch.zeros_like(weight)
        return state


def _adam(state: dict[str, Tensor], gradient: Tensor, betas: tuple[float, float], eps: float) -> Tensor:
    """Take a gradient into the moments. Returns Adam's step at a rate of 1."""
    mean, square, step = state["exp_avg"], state["exp_avg_sq"], state["step"]
    step += 1
    mean.lerp_(gradient, 1 - betas[0])
    square.mul_(betas[1]).addcmul_(gradient, gradient, value=1 - betas[1])
    return (mean / (1 - betas[0] ** step)).div_((square / (1 - betas[1] ** step)).sqrt_().add_(eps))


def _trust_ratio(weight: Tensor, update: Tensor) -> Tensor:
    """Norm of the weights over that of the step, a scalar on the device; 1 where either is 0."""
    of_weight, of_update = torch.linalg.vector_norm(weight), torch.linalg.vector_norm(update)
    return torch.where((of_weight > 0) & (of_update > 0), of_weight / of_update, 1.0)
