"""SynFlow: units by what flows through them, in rounds, without data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from dynsparse.errors import UserError
from dynsparse.first_masks.choosing import chosen_units, require_telling, unit_means
from dynsparse.first_masks.settings import SynflowMasks
from dynsparse.first_masks.untouched import untouched
from dynsparse.masks import LayerSpec
from dynsparse.masks.naming import named_parameters
from dynsparse.masks.obstacles import listed
from dynsparse.masks.structure import fitted


def synflow_units(
    settings: SynflowMasks,
    model: nn.Module,
    specs: Sequence[LayerSpec],
    counts: Sequence[int],
    shape: Sequence[int],
    key: str,
) -> list[Tensor]:
    """Return the units that SynFlow keeps: int64, rising, in each layer.

    Tanaka, Kunin, Yamins & Ganguli, "Pruning neural networks without any data by iteratively conserving synaptic flow",
    NeurIPS 2020. R is the sum of the outputs for an input of ones, [1, *shape], through the network with
    the absolute values of all its parameters and buffers, in evaluation mode. A weight's score is w dR/dw. Round k of n
    keeps density^(k / n).

    Departures: float64, as R grows by a factor with each layer and leaves float32 after some tens of them. Each layer
    keeps a unit. What one round has pruned does not come back. Copy and gradient take 8 bytes a weight each.
    """
    with untouched(model, lambda value: value.abs().double()):
        model.eval()
        flow = _Flow(model, specs, shape, key)
        for goal in goals(specs, counts, settings.iterations):
            costs = flow.costs()
            most = [int(one.isfinite().sum()) for one in costs]
            flow.keep(list(chosen_units(specs, costs, goal, settings.scope, most)))
        return flow.kept


def goals(specs: Sequence[LayerSpec], counts: Sequence[int], rounds: int) -> Iterator[list[int]]:
    """Yield units of each layer after each round: units x density^(k / rounds), `counts` in the end.

    Example: 1 of 100 units in two rounds are 10, then 1.
    """
    for k in range(1, rounds):
        yield [
            fitted(spec, max(count, round(spec.units * (count / spec.units) ** (k / rounds))))
            for spec, count in zip(specs, counts, strict=True)
        ]
    yield list(counts)


class _Flow:
    """A network of absolute values in float64, whose weights are pruned in place."""

    def __init__(self, model: nn.Module, specs: Sequence[LayerSpec], shape: Sequence[int], key: str) -> None:
        self.model, self.specs, self.key = model, specs, key
        known = named_parameters(model)
        self.weights = {spec.parameter: known[spec.parameter].requires_grad_(True) for spec in specs}
        self.ones = torch.ones(1, *shape, dtype=torch.float64, device=known[specs[0].parameter].device)
        self.kept: list[Tensor] = []

    def costs(self) -> list[Tensor]:
        """Negated scores, float64 [units]; inf where units are pruned. UserError for scores that tell nothing."""
        found = dict(zip(self.weights, self._gradients(), strict=True))
        if missing := [spec.name for spec in self.specs if found[spec.parameter] is None]:
            raise UserError(f"{self.key}: nothing flows through {listed(missing)} to the outputs: exclude it")
        scores = {name: value * self.weights[name].detach() for name, value in found.items() if value is not None}
        costs = [-unit_means(spec, scores[spec.parameter]) for spec in self.specs]
        if not self.kept:
            require_telling(self.specs, costs, self.key)
            return costs
        return [_only(one, units) for one, units in zip(costs, self.kept, strict=True)]

    def _gradients(self) -> Sequence[Tensor | None]:
        try:
            outputs = self.model(self.ones)
            return torch.autograd.grad(outputs.sum(), list(self.weights.values()), allow_unused=True)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, AttributeError, TypeError) as error:
            reason = " ".join(str(error).split()).rstrip(".")
            raise UserError(
                f"{self.key}: the network cannot take a float64 input of ones, {list(self.ones.shape)} ({reason}): "
                f"take snip or grasp"
            ) from None

    @torch.no_grad()
    def keep(self, units: list[Tensor]) -> None:
        """Prune all other units."""
        self.kept = units
        for spec, one in zip(self.specs, units, strict=True):
            flags = torch.ones(spec.units, dtype=torch.bool, device=one.device).index_fill_(0, one, False)
            self.weights[spec.parameter][spec.rows].masked_fill_(flags.view(spec.mask_shape), 0)


def _only(costs: Tensor, units: Tensor) -> Tensor:
    """Costs of these units, inf for all others."""
    return torch.full_like(costs, torch.inf).index_copy_(0, units, costs.index_select(0, units))
