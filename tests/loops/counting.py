"""Counts for itself, at every optimizer step, what a sparse run has to keep.

Nothing of dynsparse is used here, and none of its checks: weights come from the user's model, masks as plain tensors,
and the steps from a hook on torch's optimizers, which runs after those of the optimizer itself.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

WRAPPERS = ("module", "_orig_mod", "_forward_module")
WORST = ("outside", "state_outside", "gradients_outside", "copies_outside", "off_budget", "grown_elsewhere")
INNER = ("optimizer", "optim", "base_optimizer")


@dataclass
class Count:
    """Counts of a run. Each number is the worst of all steps, unless its line says otherwise."""

    budget: int
    """Active positions at the start."""
    budgets: dict[str, int]
    """Active weights of each layer."""
    steps: int = 0
    """Steps of the optimizer."""
    looks: int = 0
    """Number of times that everything was counted: after each step, and on request."""
    reallocations: int = 0
    """Steps since whose predecessor a mask has changed."""
    grown: int = 0
    """Positions that became active, over all of them."""
    outside: int = 0
    """Weights outside their mask that are not 0 (NaN is none)."""
    state_outside: int = 0
    """Entries of optimizer state outside the masks that are not 0."""
    gradients_outside: int = 0
    """Gradients outside the masks that are not 0, just before their norm is taken."""
    copies_outside: int = 0
    """Weights outside the masks that are not 0 in an average of the weights, or another copy."""
    off_budget: int = 0
    """Active positions too many or too few, over all layers."""
    off_layer_budget: int = 0
    """Distance from the budget in the layer where it is largest: layers of some methods trade."""
    grown_elsewhere: int = 0
    """Grown though another free position had a larger gradient (or momentum of it); only where they were shown."""
    growths_judged: int = 0
    """Reallocations for which they were, over all."""
    copies_seen: int = 0
    """Number of times that a copy was checked, over all steps."""
    learnt: int = 0
    """Active weights that the last step changed, over all steps and layers: more than 0 where it trains at all."""
    digest: str = ""
    """Digest of all masks and weights at the end, to compare ranks and runs."""
    notes: list[str] = field(default_factory=list)
    """The first few faults, in words."""

    def faults(self, *, layers_keep: bool, reallocations: int = 1) -> list[str]:
        """Name all faults. `layers_keep`: no layer may gain or lose; there are at least so many `reallocations`."""
        wrong = [*self.notes]
        for name in WORST:
            if getattr(self, name):
                wrong.append(f"{name} is {getattr(self, name)}")
        if layers_keep and self.off_layer_budget:
            wrong.append(f"a layer's budget is off by {self.off_layer_budget}")
        if self.reallocations < reallocations:
            wrong.append(f"{self.reallocations} reallocations, fewer than {reallocations}")
        if not self.learnt:
            wrong.append("no weight ever changed")
        return wrong


class Counter:
    """Watches `optimizers` from its construction on, until `close()`."""

    def __init__(
        self,
        weights: Mapping[str, nn.Parameter],
        masks: Callable[[], Mapping[str, Tensor]],
        optimizers: Sequence[Any],
    ) -> None:
        """`weights` of the user's model by name; `masks` gives the bool mask of each as it is now."""
        self.weights = dict(weights)
        self._masks = masks
        self.optimizers = list(optimizers)
        self._ours = {id(_that_steps(optimizer)) for optimizer in optimizers}
        self._before = self._masks_now()
        self._values = {name: weight.detach().clone() for name, weight in self.weights.items()}
        self._copies: list[nn.Module] = []
        self._shown: dict[str, Tensor] = {}
        self._evidence: dict[str, Tensor] = {}
        self._momentum = 0.0
        budgets = {name: int(mask.count_nonzero()) for name, mask in self._before.items()}
        self.count = Count(sum(budgets.values()), budgets)
        self.look()
        self._handle = register_optimizer_step_post_hook(self._after_step)

    def close(self) -> None:
        """Count for the last time."""
        self.look()
        self.count.digest = self._digest(self._masks_now())
        self._handle.remove()

    @torch.no_grad()
    def show_gradients(self, momentum: float = 0.0) -> None:
        """The coming step is made by the gradients as they are now, whole: hold what grows against them.

        Or against their running sum, which decays by `momentum`.
        """
        self._momentum = momentum
        self._shown = {
            name: weight.grad.detach().clone() for name, weight in self.weights.items() if weight.grad is not None
        }

    def follow(self, copy: nn.Module) -> None:
        """Count an average of the weights, or another copy, with them from now on."""
        self._copies.append(copy)

    @torch.no_grad()
    def look_at_gradients(self) -> None:
        """Count what gradients have outside the masks: it would be part of their norm."""
        masks = self._masks_now()
        for name, weight in self.weights.items():
            if weight.grad is not None:
                self._worst("gradients_outside", int(weight.grad[~masks[name]].count_nonzero()), name)

    @torch.no_grad()
    def look(self) -> None:
        """Count everything now."""
        count, masks = self.count, self._masks_now()
        count.looks += 1
        for name, weight in self.weights.items():
            mask = masks[name]
            self._worst("outside", int(weight.detach()[~mask].count_nonzero()), name)
            for what, moment in self._moments(weight):
                self._worst("state_outside", int(moment[~mask].count_nonzero()), f"{what} of {name}")
            off = abs(int(mask.count_nonzero()) - count.budgets[name])
            count.off_layer_budget = max(count.off_layer_budget, off)
        active = sum(int(mask.count_nonzero()) for mask in masks.values())
        self._worst("off_budget", abs(active - count.budget), f"{active} active of {count.budget}")
        for copy in self._copies:
            self._look_at_copy(copy, masks)

    def _look_at_copy(self, copy: nn.Module, masks: Mapping[str, Tensor]) -> None:
        found = dict(named_weights(copy, self.weights))
        missing = set(self.weights) - set(found)
        assert not missing, f"the copy has no {min(missing)}"
        self.count.copies_seen += 1
        for name, tensor in found.items():
            self._worst("copies_outside", int(tensor.detach()[~masks[name]].count_nonzero()), name)

    @torch.no_grad()
    def _after_step(self, optimizer: Any, *_: Any) -> None:
        if id(optimizer) not in self._ours:
            return
        self.count.steps += 1
        masks = self._masks_now()
        grown = {name: masks[name] & ~self._before[name] for name in masks}
        for name, gradient in self._shown.items():
            before = self._evidence.get(name, torch.zeros_like(gradient))
            self._evidence[name] = before.mul(self._momentum).add(gradient)
        if any(not torch.equal(masks[name], self._before[name]) for name in masks):
            self.count.reallocations += 1
            self.count.grown += sum(int(flags.count_nonzero()) for flags in grown.values())
            self._judge(grown)
        for name, weight in self.weights.items():
            stayed = masks[name] & self._before[name]
            self.count.learnt += int((weight.detach() != self._values[name])[stayed].count_nonzero())
            self._values[name] = weight.detach().clone()
        self._before, self._shown = masks, {}
        self.look()

    def _judge(self, grown: Mapping[str, Tensor]) -> None:
        """Whether what grew had the largest of all positions that were free."""
        if not self._shown:
            return
        self.count.growths_judged += 1
        for name, flags in grown.items():
            k = int(flags.count_nonzero())
            if k and name in self._evidence:
                size = self._evidence[name].abs()
                least = size[~self._before[name]].topk(k).values[-1]
                self._worst("grown_elsewhere", int((size[flags] < least).count_nonzero()), name)

    def _masks_now(self) -> dict[str, Tensor]:
        masks = {name: mask.detach().clone() for name, mask in self._masks().items()}
        for name, weight in self.weights.items():
            assert masks[name].dtype == torch.bool and masks[name].shape == weight.shape, name
        return masks

    def _moments(self, weight: nn.Parameter) -> Iterator[tuple[str, Tensor]]:
        for optimizer in self.optimizers:
            for inner in _nested(optimizer):
                state = getattr(inner, "state", {})
                if weight in state:
                    for key, value in state[weight].items():
                        if isinstance(value, Tensor) and value.shape == weight.shape:
                            yield key, value

    def _worst(self, name: str, number: int, where: str) -> None:
        if number and len(self.count.notes) < 5:
            self.count.notes.append(f"step {self.count.steps}: {name} {number} ({where})")
        setattr(self.count, name, max(getattr(self.count, name), number))

    def _digest(self, masks: Mapping[str, Tensor]) -> str:
        sha = hashlib.sha256()
        for name in sorted(masks):
            sha.update(masks[name].cpu().contiguous().numpy().tobytes())
            sha.update(self.weights[name].detach().float().cpu().contiguous().numpy().tobytes())
        return sha.hexdigest()[:16]


def plain(name: str) -> str:
    """A parameter's name without what wrappers put into it."""
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def named_weights(model: nn.Module, names: Iterable[str]) -> Iterator[tuple[str, nn.Parameter]]:
    """The parameters of a model, wrapped or not, that are called `names` where it is not."""
    wanted = {plain(name): name for name in names}
    for name, parameter in model.named_parameters():
        if plain(name) in wanted:
            yield wanted[plain(name)], parameter


def counter_for(sparse: Any, model: nn.Module, *optimizers: Any) -> Counter:
    """A Counter for a SparseTraining: of it only the layers' names and masks are asked for."""
    names = [layer.name for layer in sparse.masks]
    weights = dict(named_weights(model, names))
    assert set(weights) == set(names), "the model's weights are called otherwise"
    return Counter(weights, lambda: {layer.name: layer.mask for layer in sparse.masks}, optimizers)


def _that_steps(optimizer: Any) -> Any:
    """The outermost of an optimizer and what it wraps that is one of torch's: its steps call hooks."""
    return next(inner for inner in _nested(optimizer) if hasattr(inner, "_optimizer_step_post_hooks"))


def _nested(optimizer: Any) -> Iterator[Any]:
    """An optimizer, and what it wraps."""
    seen: set[int] = set()
    waiting = [optimizer]
    while waiting:
        inner = waiting.pop()
        if inner is None or id(inner) in seen:
            continue
        seen.add(id(inner))
        yield inner
        waiting += [getattr(inner, name, None) for name in INNER]
