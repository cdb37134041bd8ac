"""Watch every optimizer step over a model's sparse weights, whichever optimizer makes it.

torch calls hooks of the whole process around the `step` of every optimizer. They see steps that hooks of one optimizer
miss: of a second optimizer over the same weights, of an optimizer inside another (Accelerate, ZeroRedundancyOptimizer,
SAM, Lookahead), of an optimizer that replaces another. A step inside a step counts once.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import wraps
from types import FrameType
from typing import Any
from weakref import WeakValueDictionary

from torch import nn, optim
from torch.amp import GradScaler
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils.weak import WeakTensorKeyDictionary

from dynsparse.errors import UserError

Closure = Callable[[], Any]

_TICKET = "_dynsparse"


class Watcher(ABC):
    """Object that is called around every step over its weights."""

    @abstractmethod
    def before_step(self, optimizer: optim.Optimizer, closure: Closure | None) -> Closure | None:
        """Act before a step that is inside no other. Returns the closure to give to it."""

    @abstractmethod
    def inside_step(self, optimizer: optim.Optimizer) -> None:
        """Act before a step inside another one."""

    @abstractmethod
    def after_step(self, optimizer: optim.Optimizer) -> None:
        """Act after a step that was inside no other."""

    @abstractmethod
    def after_unscaling(self, optimizer: optim.Optimizer, scaler: GradScaler) -> None:
        """Act after a GradScaler has removed its factor from the gradients of the weights."""

    @abstractmethod
    def after_scaler(self, optimizer: optim.Optimizer) -> None:
        """Act after `GradScaler.step`, which has called the optimizer's step or skipped it."""

    @abstractmethod
    def meets(self, optimizer: optim.Optimizer) -> None:
        """Act before a step over none of the weights: raise UserError if it should be over them."""


_WATCHERS: WeakValueDictionary[int, Watcher] = WeakValueDictionary()
"""Watchers by the identity of each weight, which its watcher keeps alive."""

_COPIES = WeakTensorKeyDictionary()
"""Weights of deep copies of a watched model, with the identity of that model's watcher."""


class Ticket:
    """Tie between watchers and a module: they live as long, and a deep copy of the module is recognised."""

    def __init__(self) -> None:
        self.watchers: dict[nn.Parameter, Watcher | None] = {}
        """Watcher of each weight of the module, None for a copy's."""
        self.original: dict[nn.Parameter, int] = {}
        """Identity of the watcher of each weight, or of the weight that it is a copy of."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Ticket:
        copied = Ticket()
        for weight in self.watchers:
            if id(weight) in memo:
                copied.watchers[memo[id(weight)]] = None
                copied.original[memo[id(weight)]] = _COPIES[memo[id(weight)]] = self.original[weight]
        return copied

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        return type(None), ()  # A pickled model can be read without this package.


class Keeper:
    """Attribute of a weight that keeps its watcher alive as long, whatever module holds it."""

    def __init__(self, watcher: Watcher) -> None:
        self.watcher = watcher

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        return type(None), ()


def watcher_of(weight: nn.Parameter) -> Watcher | None:
    """Watcher of steps over this weight, if it has one."""
    return _WATCHERS.get(id(weight))


def watch(watcher: Watcher, held: Sequence[tuple[nn.Module, nn.Parameter]]) -> None:
    """Call `watcher` from now on around every step over the weights, which these modules hold."""
    for module, weight in held:
        _COPIES.pop(weight, None)
        _WATCHERS[id(weight)] = watcher
        setattr(weight, _TICKET, Keeper(watcher))
        ticket = module.__dict__.get(_TICKET) or Ticket()
        ticket.watchers[weight] = watcher
        ticket.original[weight] = id(watcher)
        setattr(module, _TICKET, ticket)


def unwatch(watcher: Watcher, held: Sequence[tuple[nn.Module, nn.Parameter]]) -> None:
    """Stop calling `watcher`, and let copies be trained as they are."""
    for weight, original in list(_COPIES.items()):
        if original == id(watcher):
            del _COPIES[weight]
    for module, weight in held:
        if _WATCHERS.get(id(weight)) is watcher:
            del _WATCHERS[id(weight)]
            delattr(weight, _TICKET)
        ticket = module.__dict__.get(_TICKET)
        if ticket is not None and ticket.watchers.get(weight) is watcher:
            del ticket.watchers[weight]


def inner_optimizers(optimizer: object) -> list[optim.Optimizer]:
    """Torch optimizers in a wrapper, itself among them if it is one."""
    found: list[optim.Optimizer] = []
    _collect(optimizer, found, 0)
    return found


def _collect(candidate: object, found: list[optim.Optimizer], depth: int) -> None:
    if depth > 3 or any(candidate is one for one in found):
        return
    if isinstance(candidate, optim.Optimizer):
        found.append(candidate)
    for value in vars(candidate).values() if hasattr(candidate, "__dict__") else ():
        if isinstance(value, optim.Optimizer):
            _collect(value, found, depth + 1)


def _watchers(optimizer: optim.Optimizer) -> list[Watcher]:
    found: dict[int, Watcher] = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            watcher = _WATCHERS.get(id(parameter))
            if watcher is not None:
                found[id(watcher)] = watcher
    return list(found.values())


def _before(optimizer: optim.Optimizer, args: Any, kwargs: Any) -> tuple[Any, Any] | None:
    if not _WATCHERS and not _COPIES:
        return None
    watchers = _watchers(optimizer)
    outer = _outer_steps(sys._getframe(1))
    closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
    given = closure
    for watcher in watchers:
        if _is_watched(watcher, outer):
            watcher.inside_step(optimizer)
        else:
            closure = watcher.before_step(optimizer, closure)
    _require_no_copies(optimizer)
    for watcher in {id(one): one for one in list(_WATCHERS.values())}.values():
        if watcher not in watchers:
            watcher.meets(optimizer)
    if closure is given:
        return None
    return (args, {**kwargs, "closure": closure}) if "closure" in kwargs else ((args[0], closure, *args[2:]), kwargs)


def _after(optimizer: optim.Optimizer, args: Any, kwargs: Any) -> None:
    watchers = _watchers(optimizer) if _WATCHERS else []
    outer = _outer_steps(sys._getframe(1)) if watchers else []
    for watcher in watchers:
        if not _is_watched(watcher, outer):
            watcher.after_step(optimizer)


def _is_watched(watcher: Watcher, optimizers: Sequence[optim.Optimizer]) -> bool:
    return any(watcher in _watchers(optimizer) for optimizer in optimizers)


def _outer_steps(frame: FrameType) -> list[optim.Optimizer]:
    """Optimizers whose steps are running around this one, given the frame that calls the hooks.

    They are read from the stack: a counter of steps that began would stay wrong after a step that raised.
    """
    return [found for one in _callers(frame) if isinstance(found := one.f_locals.get("self"), optim.Optimizer)]


def _callers(frame: FrameType) -> Iterator[FrameType]:
    """Frames further out that run the same code."""
    code, outer = frame.f_code, frame.f_back
    while outer is not None:
        if outer.f_code is code:
            yield outer
        outer = outer.f_back


def _require_no_copies(optimizer: optim.Optimizer) -> None:
    if _COPIES and any(parameter in _COPIES for group in optimizer.param_groups for parameter in group["params"]):
        raise UserError(
            "the optimizer steps over a deep copy of a sparse model, which nothing keeps sparse: make a SparseTraining "
            "for the copy, with state= the state_dict() of the first one"
        )


def _telling(unscale: Callable[[GradScaler, optim.Optimizer], None]) -> Callable[[GradScaler, optim.Optimizer], None]:
    """Let `GradScaler.unscale_` call watchers. torch has no hook for it, and it changes no version of a gradient."""

    @wraps(unscale)
    def unscale_(self: GradScaler, optimizer: optim.Optimizer) -> None:
        unscale(self, optimizer)
        for watcher in _watchers(optimizer) if _WATCHERS and self.is_enabled() else ():
            watcher.after_unscaling(optimizer, self)

    return unscale_


def _telling_skips(step: Callable[..., Any]) -> Callable[..., Any]:
    """Let `GradScaler.step` call watchers: no hook of an optimizer sees a step that is skipped."""

    @wraps(step)
    def with_word(self: GradScaler, optimizer: optim.Optimizer, *args: Any, **kwargs: Any) -> Any:
        result = step(self, optimizer, *args, **kwargs)
        for watcher in _watchers(optimizer) if _WATCHERS and self.is_enabled() else ():
            watcher.after_scaler(optimizer)
        return result

    return with_word


GradScaler.unscale_ = _telling(GradScaler.unscale_)  # type: ignore[assignment, method-assign]
GradScaler.step = _telling_skips(GradScaler.step)  # type: ignore[method-assign]
register_optimizer_step_pre_hook(_before)
register_optimizer_step_post_hook(_after)
