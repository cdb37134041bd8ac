"""The sparse weights of a model: checks that they are those that were masked, and 0 outside the masks."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from dynsparse import later
from dynsparse.errors import UserError
from dynsparse.masks import MaskSet, SparseLayer, naming
from dynsparse.masks.obstacles import listed

log = logging.getLogger(__name__)

WATCHED_STEPS = 3
"""Steps after which strays are counted, at the start and after anything that may have written some."""
LOOK_EVERY = 10
"""Steps between two counts of strays at all other times."""


class KeptWeights:
    """Record of the weights of `masks` in `model`, as they were when it was made.

    `keeps_reserve`: the method has values beside them, of the dtype of now.
    """

    def __init__(self, model: nn.Module, masks: MaskSet, *, keeps_reserve: bool) -> None:
        self.model = model
        self.masks = masks
        self._dtypes = {layer.name: layer.parameter.dtype for layer in masks} if keeps_reserve else {}
        self.relies = True
        """Whether the optimizers are trusted to leave 0 at 0. If not, weights are masked after each step."""
        self.held = [(module, weight) for module, _, weight in _places_of(model, masks)]
        """Each module that holds a sparse weight, with the weight. In a model without any: all of its parameters."""
        self._edges = list(_edges_of(model, masks))
        self._watched = WATCHED_STEPS
        self._counted: tuple[int, later.Later] | None = None
        """Step whose strays a GPU has been asked to count, and their numbers."""
        self._versions = self._current_versions()

    def are_intact(self) -> bool:
        """Whether the same tensors are in the same modules."""
        return all(holder.get(key) is held for holder, key, held in self._edges)

    def watch(self, steps: int = WATCHED_STEPS) -> None:
        """Count strays after the next steps."""
        self._watched = max(self._watched, steps)

    def remember(self) -> None:
        """Accept what has been written to the weights so far."""
        self._versions = self._current_versions()

    def require_same(self) -> None:
        """Raise UserError if weights were replaced or resized, or cast while others are in reserve."""
        if not self.are_intact():
            now = naming.named_parameters(self.model)
            if replaced := [layer.name for layer in self.masks if now.get(layer.spec.parameter) is not layer.parameter]:
                raise UserError(
                    f"{listed(replaced)} was replaced since SparseTraining was made, and its mask would hold the old "
                    f"weights: replace, shard or cast layers first, make SparseTraining after that"
                )
            self._edges = list(_edges_of(self.model, self.masks))
        if resized := [layer.name for layer in self.masks if layer.parameter.shape != layer.spec.parameter_shape]:
            raise UserError(f"{listed(resized)} has another shape since SparseTraining was made: make it after that")
        if cast := [
            layer.name for layer in self.masks if self._dtypes.get(layer.name) not in (None, layer.parameter.dtype)
        ]:
            raise UserError(
                f"{listed(cast)} has another dtype since SparseTraining was made, and this method keeps inactive "
                f"weights of the one before: cast the model first, make SparseTraining after that"
            )

    def have_moved(self) -> bool:
        """Whether the weights lie on another device than the masks. UserError if they lie on several."""
        if all(layer.parameter.device == layer.device for layer in self.masks):
            return False
        devices = {str(layer.parameter.device) for layer in self.masks}
        if len(devices) > 1:
            raise UserError(f"sparse layers lie on {', '.join(sorted(devices))} now, and masks need them on one device")
        return True

    def require_clean(self, step: int) -> None:
        """Raise UserError for weights that were written outside the masks since `remember`, after step `step`."""
        if self._current_versions() == self._versions:
            return
        if strays := self.masks.strays():
            raise UserError(
                f"{listed(list(strays))} has weights outside its mask, {sum(strays.values()):,} in all, that were "
                f"written since step {step}; after loading a model load the state_dict() of its SparseTraining of the "
                f"same time too, or cut them off with apply_masks()"
            )
        self.watch()

    @torch.no_grad()
    def keep_outside_zero(self, step: int, *, look: bool) -> None:
        """Mask the weights after step `step`, or check that the optimizers have left those at 0 that stay 0.

        They are checked where `look` says so, in steps that are watched, and every `LOOK_EVERY` steps. What a GPU
        counts in the latter is read after the step that follows, so that the host does not wait for it.
        """
        self._judge_late()
        if not self.relies:
            self.masks.apply_to_weights()
        elif look or self._watched:
            self._watched = max(0, self._watched - 1)
            self._judge(step, self.masks.strays())
        elif step % LOOK_EVERY == 0 and len(self.masks):
            self._counted = step, later.Later(self.masks.stray_counts())
            if not later.is_far(self.masks.layers[0].device):
                self._judge_late()

    def _judge_late(self) -> None:
        """Take note of the strays that were counted in an earlier step, if any were."""
        if self._counted is not None:
            (step, counts), self._counted = self._counted, None
            self._judge(step, self.masks.named(counts.read()))

    def _judge(self, step: int, strays: Mapping[str, int]) -> None:
        """Mask the weights from now on, if there were any strays after step `step`."""
        if strays:
            self.relies = False
            self.masks.apply_to_weights()
            log.warning(
                "%d weights outside the masks of %s were not 0 after step %d: the optimizer moves weights that have no "
                "gradient, or something wrote to them; they are 0 now, and weights are masked after each step",
                sum(strays.values()),
                listed(list(strays)),
                step,
            )

    def in_copy(self, model: nn.Module) -> list[tuple[SparseLayer, Tensor]]:
        """Pair each layer with its weights in a copy of the model, or in a module inside it. UserError for no copy."""
        shapes = {layer.spec.parameter: layer.parameter.shape for layer in self.masks}
        for candidate in model.modules():
            theirs = naming.named_parameters(candidate)
            if all(name in theirs and theirs[name].shape == shape for name, shape in shapes.items()):
                return [(layer, layer.part(theirs[layer.spec.parameter])) for layer in self.masks]
        raise UserError("the model is not a copy of the sparse one: it has no layers of the same names and shapes")

    def _current_versions(self) -> list[int]:
        """Versions of the weights, which change when something writes to them in place."""
        return [layer.parameter._version for layer in self.masks]


def _places_of(model: nn.Module, masks: MaskSet) -> Iterator[tuple[nn.Module, str, nn.Parameter]]:
    """Yield each module that holds a sparse weight, its name for it, the weight. Without any: all parameters."""
    sparse = {id(layer.parameter) for layer in masks}
    for _, module, key, parameter in naming.places(model):
        if id(parameter) in sparse or not sparse:
            yield module, key, parameter


def _edges_of(model: nn.Module, masks: MaskSet) -> Iterator[tuple[Mapping[str, object], str, object]]:
    """Yield each link from the model to its sparse weights: dictionary of modules or parameters, key, content."""
    ends = {id(module) for module, _, _ in _places_of(model, masks)}
    for module in model.modules():
        for key, child in module._modules.items():
            if child is not None and any(id(one) in ends for one in child.modules()):
                yield module._modules, key, child
    for module, key, weight in _places_of(model, masks):
        yield module._parameters, key, weight
