"""The optimizers that move the sparse weights: given ones, those inside them, and those that came later."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor, nn, optim

from dynsparse.errors import UserError
from dynsparse.keeping.steps import inner_optimizers
from dynsparse.masks import MaskSet, SparseLayer, optimizer_state
from dynsparse.optimizers import skips_on_device
from dynsparse.optimizers.beside import holders, steps_alone

_HOOKS = "_optimizer_step_pre_hooks"
"""Attribute of an optimizer whose steps call hooks. Wrappers that do not call `Optimizer.__init__` lack it."""


class KnownOptimizers:
    """Record of the optimizers that move the sparse weights. It keeps later ones alive no longer than others do."""

    def __init__(
        self, given: object, weights: Mapping[str, nn.Parameter], *, whole_state: bool, keeps_reserve: bool = False
    ) -> None:
        """`given` is an optimizer or a list of them, `weights` the weights that they must hold, by name.

        UserError if they do not hold them. Also, with `whole_state` or a method that `keeps_reserve`, if a rank has
        only a part of their state, and with the latter if one makes steps along directions of all weights.
        """
        parts = [inner_optimizers(one) for one in (given if isinstance(given, (list, tuple)) else [given])]
        if not parts or not all(parts):
            raise UserError("the optimizer is not a torch.optim.Optimizer and holds none: its steps cannot be seen")
        wanted = {id(weight) for weight in weights.values()}
        self.given = [part for part in parts if not wanted.isdisjoint(held_by(part))] or parts[:1]
        """Each optimizer with those inside it. In a list, those that hold any of the weights make one step together."""
        held = {one for part in self.given for one in held_by(part)}
        if strangers := [name for name, weight in weights.items() if id(weight) not in held]:
            raise UserError(f"the optimizer does not hold {strangers[0]}; make it over this model's parameters")
        inner = [held_by(part[1:]) for part in self.given if len(part) > 1]
        if whole_state and any(not wanted <= part for part in inner):
            raise UserError(
                "on_desync is 'repair', and this optimizer keeps only a part of its state on each rank, which cannot "
                "be given to the others: take 'abort'"
            )
        if keeps_reserve:
            _require_steps_beside(
                [one for part in self.given for one in part], weights, partial=any(not wanted <= p for p in inner)
            )
        self._seen: list[ref[optim.Optimizer]] = []
        self._states: WeakKeyDictionary[optim.Optimizer, dict[str, Any]] = WeakKeyDictionary()
        self._scaled: WeakKeyDictionary[optim.Optimizer, bool] = WeakKeyDictionary()
        """Whether a GradScaler left its factor to the last step of each."""
        for one in (one for part in self.given for one in part):
            self.see(one)

    @property
    def alive(self) -> list[optim.Optimizer]:
        """Optimizers that were given or have stepped over the weights, inner ones too."""
        return [one for one in (known() for known in self._seen) if one is not None]

    @property
    def waiting(self) -> list[optim.Optimizer]:
        """Given optimizers that cannot skip a step by a flag on the device, so that the host must wait for its outcome.

        Of an optimizer with others inside it, it is the outermost that torch's hooks see.
        """
        seen = [next((one for one in part if hasattr(one, _HOOKS)), part[0]) for part in self.given]
        return [one for one in seen if not skips_on_device(one)]

    def see(self, optimizer: optim.Optimizer) -> None:
        """Remember an optimizer."""
        if not any(optimizer is one for one in self.alive):
            self._seen = [known for known in self._seen if known() is not None] + [ref(optimizer)]

    def layers_of(self, optimizer: optim.Optimizer, masks: MaskSet) -> Sequence[SparseLayer]:
        """The layers whose weights a step of this optimizer moves."""
        if len(self.given) == 1:
            return masks.layers
        held = held_by([optimizer])
        return [layer for layer in masks if id(layer.parameter) in held]

    def scale_of(self, optimizer: optim.Optimizer) -> Tensor | None:
        """Factor of a GradScaler that a fused optimizer removes in the step that it begins, a scalar on its device."""
        scale = getattr(optimizer, "grad_scale", None)
        self._scaled[optimizer] = scale is not None
        return scale

    def scaled(self, masks: MaskSet) -> set[str]:
        """Layers whose fused optimizers may be told a factor at the next step: as at the last one, or the first."""
        likely = [one for one in self.alive if skips_on_device(one) and self._scaled.get(one, True)]
        held = held_by(likely)
        return {layer.name for layer in masks if id(layer.parameter) in held}

    def untrained(self, masks: MaskSet) -> set[str]:
        """Layers whose weights no optimizer holds any more."""
        held = held_by(self.alive)
        return {layer.name for layer in masks if id(layer.parameter) not in held}

    def number_of(self, optimizer: optim.Optimizer, masks: MaskSet) -> int | None:
        """Number of the given optimizer that this is, is inside of, or has replaced. None if only one was given."""
        if len(self.given) == 1:
            return None
        number = next((i for i, part in enumerate(self.given) if any(one is optimizer for one in part)), None)
        if number is None:
            ours, held = {id(layer.parameter) for layer in masks}, held_by([optimizer])
            places = (i for i, part in enumerate(self.given) if held & ours == held_by(part) & ours)
            if (number := next(places, None)) is not None:
                self.given[number] = [optimizer]
        return number

    def only_skipping(self, turns: Mapping[int, bool], masks: MaskSet) -> set[str]:
        """Layers of given optimizers that skipped their step, by number, and of none that made it."""
        skipped, made = (
            held_by([one for number, is_made in turns.items() if is_made is which for one in self.given[number]])
            for which in (False, True)
        )
        return {layer.name for layer in masks if id(layer.parameter) in skipped - made}

    def have_stepped(self, masks: MaskSet) -> bool:
        """Whether any optimizer has state of a sparse weight."""
        return any(optimizer.state.get(layer.parameter) for optimizer in self.alive for layer in masks)

    @torch.no_grad()
    def mask_new_states(self, masks: MaskSet) -> None:
        """Mask optimizer state that is new, for instance loaded: it would move weights that stay 0."""
        for optimizer in self.alive:
            known = self._states.setdefault(optimizer, {})
            for layer in masks:
                state = optimizer.state.get(layer.parameter)
                if state is not None and known.get(layer.name) is not state:
                    known[layer.name] = state
                    for _, moment in optimizer_state.moments(optimizer, layer):
                        layer.mask_(moment)

    def mask_states(self, masks: MaskSet) -> None:
        """Mask all optimizer state, as after other masks were loaded."""
        self._states.clear()
        self.mask_new_states(masks)


def _require_steps_beside(
    optimizers: Sequence[optim.Optimizer], weights: Mapping[str, nn.Parameter], *, partial: bool
) -> None:
    """Raise UserError for optimizers whose step cannot be made on weights beside theirs, the same on every rank."""
    if partial:
        raise UserError(
            "the method trains inactive weights too, and this optimizer keeps only a part of its state on each rank, "
            "which they need: take one that keeps all of it, or another method"
        )
    if any(isinstance(one, optim.LBFGS) for one in optimizers):
        raise UserError(
            "the method trains inactive weights too, and LBFGS steps along directions of all weights at once: take "
            "another optimizer, or another method"
        )
    found = holders(optimizers)
    for name, weight in weights.items():
        optimizer, group = found[id(weight)]
        if not steps_alone(optimizer, group, weight):
            raise UserError(
                f"the method trains inactive weights too, apart from their layer, and {type(optimizer).__name__} has "
                f"no step for parts of {name}: take an optimizer that moves each weight alone, such as SGD or AdamW, "
                f"or another method"
            )


def held_by(optimizers: Sequence[optim.Optimizer]) -> set[int]:
    """Identities of the parameters that these optimizers hold."""
    groups = (group for one in optimizers for group in one.param_groups)
    return {id(parameter) for group in groups for parameter in group["params"]}


def skip_flag(optimizer: optim.Optimizer) -> Tensor | None:
    """Flag on the device, a bool scalar, whether a fused optimizer skips this step; None where nothing can tell it to.

    A GradScaler sets it, or a trainer in its place.
    """
    found = getattr(optimizer, "found_inf", None)
    return found != 0 if isinstance(found, Tensor) else None


def overflows(optimizer: optim.Optimizer) -> bool:
    """Whether a GradScaler has told a fused optimizer to skip this step."""
    flag = skip_flag(optimizer)
    return flag is not None and bool(flag)
