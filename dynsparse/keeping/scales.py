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
    """Record of what is known of the factor of each layer's gradients.

    A fact lasts as long as its gradient: until a new one is made, or the round ends in which a step has used it.

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
        self._unused: set[str] = set()
        """Layers with gradients that no step has used. They may belong to a round that has begun already."""

    def begin_round(self) -> None:
        """Forget the gradients that a step has used."""
        self._known = {name: factor for name, factor in self._known.items() if name in self._unused}
        self._looked = {name: scale for name, scale in self._looked.items() if name in self._unused}
        if not self._unused:
            self._of_others = None

    def made(self, names: Iterable[str]) -> None:
        """Take note of new gradients of layers, of which nothing is known."""
        for name in names:
            self._known.pop(name, None)
            self._looked.pop(name, None)
            self._unused.add(name)
        self._of_others = None

    def used(self, layers: Iterable[SparseLayer]) -> None:
        """Take note of gradients that an optimizer has had its turn with, whether it made its step or skipped it."""
        self._unused.difference_update(layer.name for layer in layers)

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

    def stepping(self, layers: Sequence[SparseLayer], factor: Tensor | None) -> Sequence[SparseLayer]:
        """Take note of the factor that an optimizer's step removes. Returns the layers that have waited for it.

        UserError if some were looked at as of another.
        """
        waiting = []
        self.used(layers)
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
