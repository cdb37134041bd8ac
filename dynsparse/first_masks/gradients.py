"""Scores from a few batches: the gradient of the dense network, and its product with the Hessian."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from dynsparse.errors import UserError
from dynsparse.masks import LayerSpec
from dynsparse.masks.naming import named_parameters
from dynsparse.masks.obstacles import listed

Loss = Callable[[Any, Any], Tensor]
"""Mean loss over a batch, a scalar, of the model's outputs and the targets."""


@dataclass(frozen=True)
class Example:
    """Batch to take gradients of."""

    inputs: Any
    """Argument of the model: one tensor, several in a tuple or list, or keyword arguments in a mapping."""
    targets: Any
    weight: float
    """Part of this batch in the mean over all batches of all ranks."""
    seed: int
    """Seed of what the network draws, such as dropout."""


@dataclass(frozen=True)
class Derivatives:
    """Derivatives of the mean loss over examples, by the weights of layers.

    They take one float a weight, besides what a backward pass takes. Nothing is left in `.grad`.
    """

    model: nn.Module
    specs: Sequence[LayerSpec]
    examples: Sequence[Example]
    loss: Loss
    key: str
    """Name of the masks in messages."""
    temperature: float = 1.0

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """Parameters that hold the layers, by name."""
        known = named_parameters(self.model)
        return {spec.parameter: known[spec.parameter] for spec in self.specs}

    def gradient(self) -> dict[str, Tensor]:
        """Return this rank's part of the gradient, by parameter. UserError for a layer that gets none."""
        weights, total = self._weights(), dict[str, Tensor]()
        for example in self.examples:
            found = torch.autograd.grad(self._loss(example), list(weights.values()), allow_unused=True)
            _add(total, dict(zip(weights, found, strict=True)))
        if missing := [spec.name for spec in self.specs if spec.parameter not in total]:
            raise UserError(f"{self.key}: {listed(missing)} gets no gradient from the loss: exclude it")
        return total

    def product(self, gradient: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return this rank's part of the Hessian times `gradient`, by parameter (double backward).

        Both concern the layers' own rows alone. UserError for what cannot be differentiated twice.
        """
        weights, total = self._weights(), {name: torch.zeros_like(value) for name, value in gradient.items()}
        for example in self.examples:
            with sdpa_kernel(SDPBackend.MATH):  # The other kernels have no second derivative.
                loss = self._loss(example)
            _add(total, dict(zip(weights, self._twice(loss, weights, gradient), strict=True)))
        return total

    def _twice(
        self, loss: Tensor, weights: Mapping[str, nn.Parameter], gradient: Mapping[str, Tensor]
    ) -> Sequence[Tensor | None]:
        try:
            found = torch.autograd.grad(loss, list(weights.values()), create_graph=True, allow_unused=True)
            once = dict(zip(weights, found, strict=True))
            rows = [(gradient[one.parameter][one.rows], once[one.parameter], one.rows) for one in self.specs]
            along = torch.stack([(mine * its[at]).sum() for mine, its, at in rows if its is not None]).sum()
            _require_whole_graph(along)
            return torch.autograd.grad(along, list(weights.values()), allow_unused=True)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            reason = " ".join(str(error).split()).rstrip(".")
            raise UserError(
                f"{self.key}: the loss cannot be differentiated twice ({reason}): take snip or synflow"
            ) from None

    def _weights(self) -> dict[str, nn.Parameter]:
        found = self.parameters
        for one in found.values():
            one.requires_grad_(True)
        return found

    def _loss(self, example: Example) -> Tensor:
        """Forward pass of an example. Returns its part of the mean loss."""
        torch.manual_seed(example.seed)
        outputs = applied(self.model, example.inputs)
        if self.temperature != 1:
            if not isinstance(outputs, Tensor):
                raise UserError(
                    f"{self.key}: the model returns {type(outputs).__name__}, and a temperature divides one tensor of "
                    f"logits: wrap the model's outputs, or take snip or synflow"
                )
            outputs = outputs / self.temperature
        loss = self.loss(outputs, example.targets)
        self._require_number(loss)
        return loss * example.weight

    def _require_number(self, loss: object) -> None:
        """Raise UserError for what has no gradient: no number, several ones, or one that follows from no weight."""
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            what = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            raise UserError(f"{self.key}: the loss is {what}; it must be a tensor of one number, the batch's mean")
        if not loss.requires_grad:
            raise UserError(
                f"{self.key}: the loss follows from no weight, as if it had been detached: let the loss be of the "
                f"model's outputs"
            )


def applied(model: nn.Module, inputs: Any) -> Any:
    """Outputs of the model for one tensor, a tuple or list of arguments, or a mapping of keyword arguments."""
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, (tuple, list)) else model(inputs)


def _require_whole_graph(value: Tensor) -> None:
    """Raise RuntimeError for a graph that holds a function without a second derivative.

    `autograd.grad` visits what leads to its inputs alone. Behind `once_differentiable` nothing does, so that it would
    take that part for 0 in silence.
    """
    seen, ahead = set[Any](), [value.grad_fn]
    while ahead:
        node = ahead.pop()
        if node is None or node in seen:
            continue
        if node.name().endswith("::Error"):
            raise RuntimeError("a function in it is marked with @once_differentiable")
        seen.add(node)
        ahead += [before for before, _ in node.next_functions]


@torch.no_grad()
def _add(total: dict[str, Tensor], found: Mapping[str, Tensor | None]) -> None:
    """Add what was found to the totals, in place."""
    for name, value in found.items():
        if value is not None:
            total[name] = total[name].add_(value) if name in total else value.detach()
