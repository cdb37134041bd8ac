"""The optimizers, with their settings.

Both leave a weight at exactly 0 if its gradient, value and moments are 0, with weight decay too. So masked weights stay
0 without being masked again. Both are torch's fused ones, which pass over memory once (docs/performance.md).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import Field, model_validator
from torch import Tensor, nn, optim

from pipelines.common.settings import Settings

Decay = Annotated[float, Field(ge=0)]
Beta = Annotated[float, Field(ge=0, lt=1)]


class SgdSettings(Settings):
    """Stochastic gradient descent with momentum."""

    name: Literal["sgd"] = "sgd"
    momentum: Beta = 0.9
    """Fraction of the last step's momentum that is kept; 0 is plain gradient descent."""
    nesterov: bool = True
    """Use Nesterov's momentum, which needs a momentum above 0."""
    weight_decay: Decay = 1e-4
    """Factor of the L2 penalty: this much of each weight is added to its gradient."""

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> SgdSettings:
        if self.nesterov and self.momentum == 0:
            raise ValueError("momentum is 0 and nesterov is on; Nesterov's step needs momentum: set nesterov: false")
        return self

    def build(self, parameters: Iterable[nn.Parameter], lr: float) -> optim.Optimizer:
        """Return the optimizer; `lr` is the rate of the first step."""
        return optim.SGD(
            parameters,
            lr=lr,
            momentum=self.momentum,
            nesterov=self.nesterov,
            weight_decay=self.weight_decay,
            fused=True,
        )


class AdamWSettings(Settings):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019)."""

    name: Literal["adamw"]
    beta1: Beta = 0.9
    """Decay of the running mean of gradients, per step."""
    beta2: Beta = 0.999
    """Decay of the running mean of squared gradients, per step."""
    eps: Annotated[float, Field(gt=0)] = 1e-8
    """Number added to the denominator, so that it is never 0."""
    weight_decay: Decay = 1e-2
    """Fraction of each weight that a step subtracts, times the learning rate."""

    def build(self, parameters: Iterable[nn.Parameter], lr: float) -> optim.Optimizer:
        """Return the optimizer; `lr` is the rate of the first step."""
        return optim.AdamW(
            parameters,
            lr=lr,
            betas=(self.beta1, self.beta2),
            eps=self.eps,
            weight_decay=self.weight_decay,
            fused=True,
        )


STATE_KEYS = {
    "sgd": frozenset({"momentum_buffer"}),
    "adamw": frozenset({"step", "exp_avg", "exp_avg_sq"}),
}
"""Names of the state that each keeps of a parameter after its first step."""

_SOUND = (
    optim.SGD,
    optim.Adam,
    optim.AdamW,
    optim.NAdam,
    optim.RAdam,
    optim.Adamax,
    optim.Adagrad,
    optim.Adadelta,
    optim.Adafactor,
    optim.RMSprop,
    optim.Rprop,
    optim.ASGD,
    optim.LBFGS,
)


def leaves_zero_at_zero(optimizer: optim.Optimizer) -> bool:
    """Return whether the optimizer is known to leave a weight at exactly 0 if its gradient, value and state are 0.

    torch's own do, except Muon and SparseAdam. Classes derived from them and those of other libraries may not.
    """
    return type(optimizer) in _SOUND


OptimizerSettings = Annotated[SgdSettings | AdamWSettings, Field(discriminator="name")]


def check_layouts(parameters: Iterable[nn.Parameter]) -> None:
    """Assert that gradients have the memory layout of their parameters, as autograd promises.

    On a CPU the fused optimizers (torch 2.13) rely on it: otherwise they would add gradients to other weights.
    """
    for parameter in parameters:
        if parameter.grad is not None:
            layouts = [_layout(parameter), _layout(parameter.grad)]
            assert layouts[0] == layouts[1], f"a gradient lies otherwise than its parameter: {layouts}"


def _layout(tensor: Tensor) -> list[int]:
    """Return the strides of the dimensions larger than 1."""
    return [stride for stride, size in zip(tensor.stride(), tensor.shape, strict=True) if size > 1]
