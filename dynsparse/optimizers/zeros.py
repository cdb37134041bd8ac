"""Knowledge of which optimizers leave a masked weight alone."""

from __future__ import annotations

from torch import optim

from dynsparse.optimizers.lamb import Lamb

SOUND = (
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
    Lamb,
)


def leaves_zero_at_zero(optimizer: optim.Optimizer) -> bool:
    """Return whether the optimizer is known to leave a weight at exactly 0 if its gradient, value and state are 0.

    torch's own do, except Muon and SparseAdam. Classes derived from them and those of other libraries may not.
    """
    return type(optimizer) in SOUND
