"""Sparse training in a loop of your own: one object beside the model and the optimizer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any
from weakref import WeakSet

from pydantic import TypeAdapter, ValidationError
from torch import nn, optim
from torch.nn.parallel import DistributedDataParallel

from dynsparse.config import explain
from dynsparse.errors import UserError, nearest
from dynsparse.masks import MaskSet, optimizer_state, sparse_layers
from dynsparse.masks.allocation import ALLOCATIONS
from dynsparse.masks.granularity import Granularity, Kind
from dynsparse.methods import AnyMethod, Clock, MethodSettings
from dynsparse.reallocation import OnDesync, ReallocationReport, Reallocator

_MADE_SPARSE: WeakSet[nn.Module] = WeakSet()


class SparseTraining:
    """Makes `model` sparse now, and keeps it so at every `optimizer.step()` from now on.

    It hooks into the optimizer: before a step gradients are masked, after it
    weights are reallocated when the method says so. All ranks of a
    DistributedDataParallel run construct it with the same arguments.

    Args:
        model: any module, or the DistributedDataParallel that wraps it; convolutions and linear layers become sparse.
        optimizer: SGD or AdamW over its parameters, or another that leaves a weight at 0 whose gradient and state
            are 0.
        method: a method's name, or its settings as in a config: `{"name": "rigl", "period": 100, "fraction": 0.3}`.
        sparsity: share of zeros in each layer, or by kind: `{"conv": 0.9, "fc": 0.5}`.
        steps_per_epoch, epochs: what schedules refer to.
        allocation, granularity, include, exclude: as in a config's `sparsity` section.
        on_reallocation: called with each `ReallocationReport`.

    Raises UserError for settings that cannot work. To save a run, save
    `state_dict()` beside the model's and the optimizer's; to go on, load it after theirs.
    What uses gradients before the step, such as clipping by norm, should see masked ones:
    call `prepare_gradients()` first.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: optim.Optimizer,
        method: str | Mapping[str, Any] | MethodSettings,
        *,
        sparsity: float | Mapping[Kind, float],
        steps_per_epoch: int,
        epochs: int,
        allocation: str = "uniform",
        granularity: Granularity = 4,
        include: Sequence[str] | None = None,
        exclude: Sequence[str] = (),
        seed: int = 0,
        on_desync: OnDesync = "abort",
        on_reallocation: Callable[[ReallocationReport], None] | None = None,
    ) -> None:
        settings = _settings(method)
        if settings.starts == "tied":
            raise UserError(
                "method tied replaces parameters: call dynsparse.masks.tying.tie before making the optimizer"
            )
        model = model.module if isinstance(model, DistributedDataParallel) else model
        share: dict[Kind, float] = {"conv": 0.0, "fc": 0.0}
        share |= sparsity if isinstance(sparsity, Mapping) else {"conv": sparsity, "fc": sparsity}
        if settings.starts == "dense":
            share = {"conv": 0.0, "fc": 0.0}
        if model in _MADE_SPARSE:
            raise UserError("the model has a SparseTraining already; one object keeps it sparse: make a new model")
        specs = sparse_layers(model, include=include, exclude=exclude, granularity=granularity)
        if allocation not in ALLOCATIONS:
            raise UserError(f"allocation is '{allocation}'{nearest(allocation, ALLOCATIONS)}")
        counts = ALLOCATIONS[allocation](specs, share)
        held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        weights = dict(model.named_parameters())
        if strangers := [spec.name for spec in specs if id(weights[spec.name]) not in held]:
            raise UserError(f"the optimizer does not hold {strangers[0]}; make it over this model's parameters")
        _MADE_SPARSE.add(model)
        self.masks = MaskSet(model, specs, counts, seed=seed)
        for layer in self.masks:
            for _, moment in optimizer_state.moments(optimizer, layer):
                layer.mask_(moment)  # Of an optimizer that has stepped before: it would move what is to stay 0.
        self.method = settings.build()
        self.method.prepare(self.masks)
        self.steps = 0
        self._steps_per_epoch, self._epochs = steps_per_epoch, epochs
        self._reallocator = Reallocator(model, self.masks, self.method, optimizer, seed=seed, on_desync=on_desync)
        self._tell = on_reallocation or (lambda report: None)
        self._checked = self._prepared = False
        optimizer.register_step_pre_hook(lambda *_: self._before_step())
        optimizer.register_step_post_hook(lambda *_: self._after_step())

    def __repr__(self) -> str:
        masks = self.masks
        return (
            f"SparseTraining({type(self.method).__name__}, {len(masks)} layers, {masks.active_weights:,} of "
            f"{masks.weights:,} weights active, step {self.steps})"
        )

    def prepare_gradients(self) -> None:
        """Look at the gradients and mask them now; otherwise `optimizer.step()` does it. After the last backward."""
        if not self._checked:
            self._check()
        self._reallocator.before_step(self._clock(self.steps + 1))
        self._prepared = True

    def state_dict(self) -> dict[str, Any]:
        """Plain data and CPU tensors."""
        return {"steps": self.steps, "masks": self.masks.state_dict(), "method": self.method.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state, after the model's and the optimizer's. ValueError if the layers differ."""
        self.steps = state["steps"]
        self.masks.load_state_dict(state["masks"])
        self.method.load_state_dict(state["method"])

    def _check(self) -> None:
        """Once, before the first step: weights that were loaded after construction need their masks too."""
        for layer in self.masks:
            if layer.weight.detach().masked_select(layer.inactive).any():
                raise UserError(
                    f"{layer.name} has weights outside its mask; after loading a model load the state_dict() of its "
                    f"SparseTraining too"
                )
        self._checked = True

    def _clock(self, step: int) -> Clock:
        return Clock(step, (step - 1) // self._steps_per_epoch, self._steps_per_epoch, self._epochs)

    def _before_step(self) -> None:
        if not self._prepared:  # Masked gradients tell nothing of where to grow: they are looked at once.
            self.prepare_gradients()

    def _after_step(self) -> None:
        self.steps += 1
        self._prepared = False
        report = self._reallocator.after_step(self._clock(self.steps))
        if report is not None:
            self._tell(report)


def _settings(method: str | Mapping[str, Any] | MethodSettings) -> MethodSettings:
    if isinstance(method, MethodSettings):
        return method
    raw = {"name": method} if isinstance(method, str) else dict(method)
    adapter: TypeAdapter[MethodSettings] = TypeAdapter(AnyMethod)
    try:
        return adapter.validate_python(raw)
    except ValidationError as error:
        lines = [explain({**d, "loc": ("method", *d["loc"])}, "SparseTraining", (), {}) for d in error.errors()]
        raise UserError(*lines) from None
