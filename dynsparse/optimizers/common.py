"""SGD and AdamW, with their settings.

Both leave a weight at exactly 0 if its gradient, value and moments are 0, with weight decay too. So masked weights stay
0 without being masked again. Both are torch's fused ones, which pass over memory once (docs/performance.md).
"""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator
from torch import optim

from dynsparse.optimizers.base import Beta, Decay, Eps, Parameters
from pipelines.common.settings import Settings


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

    def build(self, parameters: Parameters, lr: float) -> optim.Optimizer:
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
    eps: Eps = 1e-8
    """Number added to the denominator, so that it is never 0."""
    weight_decay: Decay = 1e-2
    """Fraction of each weight that a step subtracts, times the learning rate."""

    def build(self, parameters: Parameters, lr: float) -> optim.Optimizer:
        """Return the optimizer; `lr` is the rate of the first step."""
        return optim.AdamW(
            parameters,
            lr=lr,
            betas=(self.beta1, self.beta2),
            eps=self.eps,
            weight_decay=self.weight_decay,
            fused=True,
        )
