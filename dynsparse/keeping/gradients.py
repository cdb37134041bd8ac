"""The gradients of the sparse weights: new ones, and those that the present masks have masked already."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from dynsparse.errors import UserError
from dynsparse.keeping.scales import Scales
from dynsparse.masks import MaskSet, SparseLayer
from dynsparse.masks.rows import by_parameter
from dynsparse.masks.tensors import is_dense
from dynsparse.methods import Clock
from dynsparse.reallocation import Reallocator, Seen

_MASKED_AT = "_dynsparse_masked_at"
"""Attribute of a gradient: its version and the masks' when it was masked. If both hold, it is still masked."""


class Gradients:
    """Lets a method look at each gradient once, and masks it as often as it takes.

    The contract: after backward, gradients are 0 outside the masks, unless they are wanted whole. Then they are masked
    once they have been looked at. A round leads to one step: backward passes, looks, and clipping in between.
    """

    def __init__(
        self,
        masks: MaskSet,
        reallocator: Reallocator,
        coming: Callable[[], Clock],
        may_be_scaled: Callable[[], Collection[str]],
        follow: Callable[[], None],
        *,
        masking: bool,
    ) -> None:
        """`coming` gives the clock of the step to come. Without `masking` the loop itself keeps the contract.

        `may_be_scaled`: see `Scales`. `follow` moves the masks to where the weights lie.
        """
        self.masks = masks
        self.reallocator = reallocator
        self.coming = coming
        self.follow = follow
        self.masking = masking
        self.are_there = False
        """Whether the step has any gradients."""
        self.seen = Seen()
        """Facts of this round's gradients, from before they were masked."""
        self.scales = Scales(may_be_scaled)
        self._new: set[str] = set()
        self._has_looked = False
        self._masks_version = 0
        self._wants_whole: tuple[object, bool] = (None, False)
        self._layers = by_parameter(masks)
        self._hooks = [_hooked(layers[0].parameter, _noting(ref(self), name)) for name, layers in self._layers.items()]

    @property
    def are_wanted_whole(self) -> bool:
        """Whether the method reads gradients outside the masks too in the coming step."""
        clock = self.coming()
        depends_on = clock.step, self.reallocator.owed
        if self._wants_whole[0] != depends_on:
            self._wants_whole = depends_on, self.reallocator.wants_whole_gradients(clock)
        return self._wants_whole[1]

    def begin_round(self) -> None:
        """Forget what belonged to the step that is over."""
        self.are_there = self._has_looked = False
        self.seen = Seen()
        self.scales.begin_round()

    @torch.no_grad()
    def stepping(self, layers: Sequence[SparseLayer], scale: Tensor | None) -> None:
        """Take note of the factor that the step over these layers removes. UserError: see `Scales.stepping`."""
        self.reallocator.settle(self.seen, self.scales.stepping(layers, scale), scale)

    @torch.no_grad()
    def end_round(self, skipped: Collection[str]) -> None:
        """Score what still waits for its factor: no optimizer has moved it. Forget gradients of layers in `skipped`."""
        if skipped:
            self.seen.keep({layer.name for layer in self.masks}.difference(skipped))
        self.reallocator.settle(self.seen, *self.scales.end_round(self.masks))

    def follow_masks(self) -> None:
        """Masks have changed: mask all gradients anew."""
        self._masks_version += 1

    def release(self) -> None:
        """Remove the hooks."""
        for hook in self._hooks:
            hook.remove()

    @torch.no_grad()
    def look(self, layers: Iterable[SparseLayer], *, keep: bool = False) -> None:
        """Look at the gradients of these layers that are new since the last look, and mask those of all layers.

        The first look of a round is at all layers, as another optimizer may step on gradients of the same backward.
        `keep`: what was seen counts, though the gradient is gone.
        """
        gradients = self._found()
        self.are_there |= bool(gradients) or not len(self.masks)
        if not keep:
            self.seen.keep(gradients)
        changed = {name for name, gradient in gradients.items() if not self._is_as_masked(gradient)}
        new = set(self._new)
        if not self._has_looked:
            layers, new = self.masks, new | changed
        if self.are_wanted_whole:  # Gradients masked for an earlier step tell nothing about growth.
            new &= changed
        if to_see := [layer for layer in layers if layer.name in new]:
            self._see(to_see)
        is_written = changed and (self.masking or self._has_looked)  # Clipped, for instance, since the last look.
        if is_written or (to_see and self.are_wanted_whole):
            self.masks.mask_gradients()
        self._new, self._has_looked = set(), True
        for gradient in gradients.values():
            self._mark(gradient)

    def _see(self, layers: Sequence[SparseLayer]) -> None:
        """Let the reallocator look at gradients of these layers, at their true size."""
        clock = self.coming()
        if not self.reallocator.reads_gradients(clock):
            return
        for scale, group in self.scales.by_scale(layers):
            found = self.reallocator.look(clock, group, scale=scale.factor, later=scale.comes_later)
            self.scales.looked(group, scale)
            self.seen.add(found)

    def note(self, parameter: str, gradient: Tensor) -> None:
        """Take note of a parameter's gradient that backward has just made, and mask it unless it is wanted whole."""
        layers = self._layers[parameter]
        self._new.update(layer.name for layer in layers)
        self.scales.made(layer.name for layer in layers)
        if gradient.device != layers[0].device:
            self.follow()
        maskable = self.masking and not gradient.is_sparse and gradient.device == layers[0].device
        if maskable and not self.are_wanted_whole:
            for layer in layers:
                layer.mask_(layer.part(gradient))
            self._mark(gradient)

    def _mark(self, gradient: Tensor) -> None:
        """Note that a gradient is masked as it is."""
        setattr(gradient, _MASKED_AT, (gradient._version, self._masks_version))

    def _is_as_masked(self, gradient: Tensor) -> bool:
        """Whether the present masks have masked it, and nothing has been written to it since."""
        return bool(getattr(gradient, _MASKED_AT, None) == (gradient._version, self._masks_version))

    def _found(self) -> dict[str, Tensor]:
        """Gradients of parameters that exist, by layer, each without gaps in memory. UserError for a sparse tensor."""
        found = {}
        for layer in self.masks:
            gradient = layer.parameter.grad
            if gradient is None:
                continue
            if gradient.is_sparse:
                raise UserError(f"{layer.name} has a sparse gradient, which cannot be masked: exclude it")
            if not is_dense(layer.part(gradient)):
                gradient = layer.parameter.grad = torch.empty_like(layer.parameter).copy_(gradient)
            found[layer.name] = gradient
        return found


def _hooked(parameter: nn.Parameter, note: Callable[[Tensor], None]) -> RemovableHandle:
    """Call `note` for each gradient of a parameter, also of one that is frozen now and trains later."""
    trains = parameter.requires_grad
    parameter.requires_grad_(True)
    handle: RemovableHandle = parameter.register_post_accumulate_grad_hook(note)
    parameter.requires_grad_(trains)
    return handle


def _noting(gradients: ref[Gradients], parameter: str) -> Callable[[Tensor], None]:
    """Make a parameter's hook. It holds nothing that holds the parameter: Python cannot see such a circle."""

    def note(weight: Tensor) -> None:
        owner, gradient = gradients(), weight.grad
        if owner is not None and gradient is not None:
            owner.note(parameter, gradient)

    return note


def closure_that_looks(
    closure: Callable[[], Any], gradients: Gradients, layers: Sequence[SparseLayer]
) -> Callable[[], Any]:
    """Wrap a closure so that it also looks at the gradients of these layers that it has made.

    They have their true size: a GradScaler takes no closures.
    """

    def with_a_look() -> Any:
        loss = closure()
        gradients.stepping(layers, None)
        gradients.look(layers)
        return loss

    return with_a_look
