"""Parameters that keep their trained values: named by shell patterns, with the BatchNorm statistics beside them.

A frozen parameter gets no gradient, and so no optimizer state and no traffic between the ranks. A frozen sparse layer
rests: it keeps its mask, gives no weights to other layers and takes none.
"""

from __future__ import annotations

import fnmatch
import logging
from collections.abc import Iterator, Sequence

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from dynsparse.errors import UserError
from dynsparse.masks.naming import named_parameters
from dynsparse.masks.obstacles import listed
from pipelines.common.text import alike, cut

log = logging.getLogger(__name__)


def frozen_names(model: nn.Module, patterns: Sequence[str]) -> set[str]:
    """Return the parameters that the patterns match. UserError for one that matches none, and if none would train."""
    known = named_parameters(model)
    found: set[str] = set()
    for pattern in patterns:
        matches = fnmatch.filter(known, pattern)
        if not matches:
            raise UserError(f"train.freeze: '{cut(pattern)}' matches no parameter{alike(pattern, known)}")
        found.update(matches)
    if len(found) == len(known):
        raise UserError(f"train.freeze: all {len(known)} parameters are frozen, nothing would train: leave some out")
    return found


def freeze(model: nn.Module, patterns: Sequence[str]) -> None:
    """Take the parameters that the patterns match out of training."""
    found = frozen_names(model, patterns)
    for name, parameter in named_parameters(model).items():
        if name in found:
            parameter.requires_grad_(False)


def fixed_norms(model: nn.Module) -> list[nn.Module]:
    """Return the BatchNorms whose parameters are all frozen. They use and keep the statistics that they have."""
    return list(_fixed_norms(model))


def _fixed_norms(model: nn.Module) -> Iterator[nn.Module]:
    for module in model.modules():
        own = list(module.parameters(recurse=False))
        if isinstance(module, _NormBase) and own and not any(parameter.requires_grad for parameter in own):
            yield module


def warn_of_random_masks(layers: Sequence[str], model: nn.Module, patterns: Sequence[str]) -> None:
    """Warn of trained layers that were masked at random and are frozen: nothing mends what was cut off."""
    frozen = frozen_names(model, patterns)
    if cut_off := [name for name in layers if name in frozen]:
        log.warning(
            "train.freeze: %s is frozen with a random mask, which has set most of its trained weights to 0 for good: "
            "set sparsity.initial=magnitude, or name it in sparsity.exclude to keep it dense",
            listed(cut_off),
        )
