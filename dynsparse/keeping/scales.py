"""The factor that a GradScaler gives to gradients, and until when they have it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor

from dynsparse.errors import UserError
from dynsparse.masks import SparseLayer


@dataclass(frozen=True)
class Scale:
    """Factor of the gradients of a layer, when they were looked at."""

    factor: Tensor | None = None
    """A scalar; None: their size is the true one."""
    comes_later: bool = False
    """Whether the optimizer may yet tell the factor, at its step."""
    is_certain: bool = False
    """Whether somebody has told it. Otherwise it is assumed."""


class Scales:
    """Record of what is known, in one round, of the factor of each layer's gradients.

    Nothing tells it before the optimizer's step, or the call of `unscale_`. Fused optimizers remove it themselves, and
    get it as `grad_scale`. For others a GradScaler removes it: in `unscale_`, at the latest before the step.
    """

    def __init__(self, may_come: Callable[[], Collection[str]]) -> None:
        """`may_come` gives the layers whose fused optimizers are likely to get a factor at the step."""
        self._may_come = may_come
        self._known: dict[str, Tensor | None] = {}
        self._looked: dict[str, Scale] = {}
        """Scales that layers were looked at with, and that are not certain yet."""
        self._of_others: Tensor | None = None
        """Factor of the scaler that another optimizer of the round uses."""

    def begin_round(self) -> None:
        """Forget what belonged to the step that is over."""
        self._known.clear()
        self._looked.clear()
        self._of_others = None

    def made(self, names: Iterable[str]) -> None:
        """Take note of new gradients of layers, of which nothing is known."""
        for name in names:
            self._known.pop(name, None)
            self._looked.pop(name, None)
        self._of_others = None

    def by_scale(self, layers: Iterable[SparseLayer]) -> Sequence[tuple[Scale, Sequence[SparseLayer]]]:
        """Group layers by the scale that their gradients have, as far as is known."""
        may_come = self._may_come() if self._of_others is None else ()
        groups: dict[tuple[bool, bool, int], tuple[Scale, list[SparseLayer]]] = {}
        for layer in layers:
            scale = self._scale_of(layer.name, may_come)
            key = scale.is_certain, scale.comes_later, id(scale.factor)
            groups.setdefault(key, (scale, []))[1].append(layer)
        return list(groups.values())

    def _scale_of(self, name: str, may_come: Collection[str]) -> Scale:
        if name in self._known:
            return Scale(self._known[name], is_certain=True)
        return Scale(self._of_others, comes_later=name in may_come)

    def looked(self, layers: Iterable[SparseLayer], scale: Scale) -> None:
        """Remember that the method has seen gradients of these layers as of this scale."""
        if not scale.is_certain:
            self._looked |= {layer.name: scale for layer in layers}

    def unscaled(self, layers: Iterable[SparseLayer], factor: Tensor | None) -> None:
        """Take note that a scaler has removed the factor, which others still have.

        UserError if the layers were looked at before that.
        """
        for layer in layers:
            scale = self._looked.pop(layer.name, None)
            if scale is not None and scale.factor is None:
                raise UserError(_too_early(layer.name))
            self._known[layer.name] = None
        self._of_others = factor

    def stepping(self, layers: Iterable[SparseLayer], factor: Tensor | None) -> Sequence[SparseLayer]:
        """Take note of the factor that an optimizer's step removes. Returns the layers that have waited for it.

        UserError if some were looked at as of another.
        """
        waiting = []
        for layer in layers:
            scale = self._looked.pop(layer.name, None)
            if scale is not None and scale.comes_later:
                waiting.append(layer)
            elif scale is not None and (scale.factor is None) != (factor is None):
                raise UserError(_too_early(layer.name) if scale.factor is None else _not_scaled(layer.name))
            self._known[layer.name] = factor
        self._of_others = self._of_others if factor is None else factor
        return waiting

    def end_round(self, layers: Iterable[SparseLayer]) -> tuple[Sequence[SparseLayer], Tensor | None]:
        """Return the layers that still wait, as no optimizer has moved them, and the factor to take for theirs."""
        waiting = {name for name, scale in self._looked.items() if scale.comes_later}
        return [layer for layer in layers if layer.name in waiting], self._of_others


def _too_early(name: str) -> str:
    return (
        f"{name} was looked at while its gradient still had the factor of a GradScaler: before prepare_gradients() "
        "call scaler.unscale_(optimizer) (Accelerate: accelerator.unscale_gradients()), after it clip by torch.nn.utils"
    )


def _not_scaled(name: str) -> str:
    return (
        f"{name} makes a step without the GradScaler that other weights of this model use, and its gradient was taken "
        f"to have the same factor: step all its optimizers by scaler.step(), or unscale_ all of them before the first"
    )
