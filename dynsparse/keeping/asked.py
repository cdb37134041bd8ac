"""What a user of the front door asks for, checked before anything is touched."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field, ValidationError, field_validator, model_validator
from torch import Tensor, nn

from dynsparse.errors import UserError
from dynsparse.explain import explain_all
from dynsparse.keeping.steps import watcher_of
from dynsparse.masks import LayerSpec, MaskSet, sparse_layers
from dynsparse.masks.allocation import ALLOCATIONS
from dynsparse.masks.candidates import candidates, matching
from dynsparse.masks.granularity import Granularity, Kind
from dynsparse.masks.naming import named_parameters
from dynsparse.masks.obstacles import listed
from dynsparse.methods import AnyMethod, Method, MethodSettings
from dynsparse.methods.base import Schedule
from dynsparse.reallocation import OnDesync
from pipelines.common.settings import Settings

log = logging.getLogger(__name__)

SOURCE = "SparseTraining"
_KINDS: Sequence[Kind] = ("conv", "fc")
Sparsity = Annotated[float, Field(ge=0, lt=1)]
_MANY = 0.01
"""Share of a model's parameters that are left dense without a word."""
_MANY_ZEROS = 0.05
"""Share of a layer's weights that may be 0 in a network that is not sparse yet."""
_DEAD = 0.05
"""Share of a convolution's filters that may have no weight without a word."""


class Asked(Settings):
    """The arguments of the front door that are plain data."""

    sparsity: dict[Kind, Sparsity] | None
    total_steps: Annotated[int, Field(ge=1)]
    steps_per_epoch: Annotated[int, Field(ge=1)] | None
    allocation: Literal["erk", "uniform"]
    granularity: Granularity
    include: Annotated[list[str], Field(min_length=1)] | None
    exclude: list[str]
    steps: Annotated[int, Field(ge=0)]
    seed: Annotated[int, Field(ge=0, lt=2**63)]
    on_desync: OnDesync

    @field_validator("sparsity", mode="before")
    @classmethod
    def _by_kind(cls, value: Any) -> Any:
        """One number is meant for both kinds; a kind that is left out stays dense."""
        if isinstance(value, Mapping):
            if unknown := [kind for kind in value if kind not in _KINDS]:
                raise ValueError(f"has the kind {unknown[0]!r}; there are conv and fc")
            return {"conv": 0.0, "fc": 0.0, **value}
        if isinstance(value, (int, float)) and not 0 <= value < 1:
            raise ValueError(f"is {value}; it must be at least 0 and below 1")
        return value if value is None else {"conv": value, "fc": value}

    @field_validator("total_steps", "steps_per_epoch", "steps", "seed", mode="before")
    @classmethod
    def _as_int(cls, value: Any) -> Any:
        """NumPy's integers are integers."""
        return int(value) if isinstance(value, np.integer) else value

    @model_validator(mode="after")
    def _begins_before_its_end(self) -> Asked:
        if self.steps >= self.total_steps:
            raise ValueError(f"steps is {self.steps}, and the run ends with total_steps, {self.total_steps}")
        return self

    @field_validator("include", "exclude", mode="before")
    @classmethod
    def _as_list(cls, value: Any) -> Any:
        return list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value

    @classmethod
    def of(cls, **arguments: Any) -> Asked:
        """UserError lists all that is wrong."""
        try:
            return cls(**arguments)
        except ValidationError as error:
            raise UserError(*explain_all(error, cls, SOURCE)) from None

    @property
    def schedule(self) -> Schedule:
        return Schedule(self.total_steps, self.steps_per_epoch)


@dataclass(frozen=True)
class Start:
    """What a model begins with: the method, the sparse layers, what is active in them."""

    model: nn.Module
    method: Method
    method_name: str
    specs: Sequence[LayerSpec]
    active: Mapping[str, int | Tensor]
    """Units of each layer: how many, or which (int64, rising)."""
    built: MaskSet | None = None
    """Masks that the model has already."""
    draws: bool = False
    """Whether what is active is drawn at random."""
    left_dense: Sequence[str] = ()
    """Weights that nobody spoke of and that stay dense."""

    @classmethod
    def of(
        cls,
        model: nn.Module,
        method: str | Mapping[str, Any] | MethodSettings | Method,
        asked: Asked,
        masks: MaskSet | Mapping[str, Tensor] | str | None,
        state: Mapping[str, Any] | None,
    ) -> Start:
        """Changes nothing. UserError for what cannot work."""
        settings = method if isinstance(method, Method) else settings_of(method)
        if isinstance(masks, MaskSet):
            if asked.sparsity is not None:
                raise UserError("masks= says what is active at the start, and sparsity= does: give one of them")
            return cls._with_masks(model, settings, masks)
        share = asked.sparsity or ((state or {}).get("sparsity") if masks is None else None)
        if (share is None) == (not isinstance(masks, Mapping)):
            raise UserError("give sparsity=, the share of zeros in each layer, or masks=, one for each layer")
        starts = "sparse" if isinstance(settings, Method) else settings.starts
        if starts == "tied":
            raise UserError(
                "method tied replaces parameters: call dynsparse.masks.tying.tie before making the optimizer"
            )
        if not isinstance(settings, Method) and share is not None:
            settings = settings.aiming_at(share)
        if starts == "dense" and asked.allocation != "uniform":
            raise UserError(
                f"allocation is '{asked.allocation}', and this method starts from a dense network and shares out by a "
                f"rule of its own: leave it out"
            )
        kinds = [kind for kind, value in share.items() if value > 0] if share and starts == "sparse" else _KINDS
        specs = sparse_layers(
            model,
            include=[_literally(name) for name in masks] if isinstance(masks, Mapping) else asked.include,
            exclude=asked.exclude,
            granularity=asked.granularity,
            kinds=kinds,
        )
        _require_layers(model, specs, kinds, asked)
        active = cls._active(specs, share if starts == "sparse" else None, asked, masks)
        weights = named_parameters(model)
        _require_unwatched([weights[spec.name] for spec in specs])
        if masks is None and state is None:
            _require_no_trained_zeros(model, specs, active)
        built = settings if isinstance(settings, Method) else settings.build()
        built.check(specs, {name: one if isinstance(one, int) else one.numel() for name, one in active.items()})
        return cls(
            model,
            built,
            type(built).__name__ if isinstance(settings, Method) else settings.name,
            specs,
            {spec.name: spec.units for spec in specs} if state is not None else active,
            draws=masks is None and state is None and starts == "sparse",
            left_dense=_left_dense(model, specs, asked) if masks is None else (),
        )

    @classmethod
    def _with_masks(cls, model: nn.Module, settings: MethodSettings | Method, masks: MaskSet) -> Start:
        mine = named_parameters(model)
        if strange := [layer.name for layer in masks if mine.get(layer.name) is not layer.weight]:
            raise UserError(f"masks= is of another model: {listed(strange)} is no weight of this one")
        _require_unwatched([layer.weight for layer in masks])
        method = settings if isinstance(settings, Method) else settings.build()
        specs = [layer.spec for layer in masks]
        active = {layer.name: layer.active_units for layer in masks}
        method.check(specs, active)
        name = type(method).__name__ if isinstance(settings, Method) else settings.name
        return cls(model, method, name, specs, active, built=masks)

    @staticmethod
    def _active(
        specs: Sequence[LayerSpec],
        share: Mapping[Kind, float] | None,
        asked: Asked,
        masks: Mapping[str, Tensor] | str | None,
    ) -> Mapping[str, int | Tensor]:
        if isinstance(masks, Mapping):
            return {spec.name: _units(spec, masks[spec.name]) for spec in specs}
        if masks not in (None, "random"):
            raise UserError(f"masks is {masks!r}; give a bool tensor for each layer, or 'random'")
        return dict(ALLOCATIONS[asked.allocation](specs, dict(share) if share else {"conv": 0.0, "fc": 0.0}))

    @property
    def weights(self) -> dict[str, nn.Parameter]:
        """The weights to make sparse."""
        mine = named_parameters(self.model)
        return {spec.name: mine[spec.name] for spec in self.specs}

    def build_masks(self, seed: int) -> MaskSet:
        """The masks; weights outside them are as they were."""
        return self.built or MaskSet(self.model, self.specs, self.active, seed=seed, apply=False)

    def say_what_is_left(self, masks: MaskSet) -> None:
        """Warn of what is otherwise than one may think: weights that stay dense, filters without weights."""
        if not masks.layers and self.built is None:
            log.warning("no layer is sparse: every sparsity is 0, or there is no layer of a kind that is to be sparse")
        if self.left_dense:
            log.warning(
                "%s stays dense; name it in include= to make it sparse, in exclude= to hear of it no more",
                listed(list(self.left_dense)),
            )
        for name, dead, filters in _dead_filters(masks):
            log.warning(
                "%d of the %d filters of %s have no weight and give nothing but their bias: exclude it, or make it "
                "denser (allocation='erk')",
                dead,
                filters,
                name,
            )


class _AnyMethod(Settings):
    method: AnyMethod


def settings_of(method: str | Mapping[str, Any] | MethodSettings) -> MethodSettings:
    """A method's settings from its name, or from what a config says of it. UserError lists all that is wrong."""
    if isinstance(method, MethodSettings):
        return method
    if not isinstance(method, (str, Mapping)):
        raise UserError(f"method is {method!r}; give a name, settings as in a config, or a Method")
    try:
        raw = {"name": method} if isinstance(method, str) else dict(method)
        return _AnyMethod.model_validate({"method": raw}).method
    except ValidationError as error:
        raise UserError(*explain_all(error, _AnyMethod, SOURCE)) from None


def _require_unwatched(weights: Sequence[nn.Parameter]) -> None:
    if any(watcher_of(weight) is not None for weight in weights):
        raise UserError(
            "the model has a SparseTraining already; one object keeps it sparse: make a new model, or release() it"
        )


def _literally(name: str) -> str:
    """The shell pattern that matches this name alone."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)


def _require_layers(model: nn.Module, specs: Sequence[LayerSpec], kinds: Sequence[Kind], asked: Asked) -> None:
    if not specs and kinds:
        raise UserError(
            f"no weight of the model ({type(model).__name__}) is to be sparse: it has no "
            f"{' or '.join(_WORDS[kind] for kind in kinds)} that include= and exclude= leave; name others in include="
        )
    if asked.granularity != 4 and specs and not any(spec.kind == "conv" for spec in specs):
        raise UserError(
            f"granularity is {asked.granularity}, and no sparse layer is a convolution; others are always elementwise: "
            f"leave it at 4"
        )


_WORDS: dict[Kind, str] = {"conv": "convolution", "fc": "linear, recurrent or attention layer"}


def _units(spec: LayerSpec, mask: Tensor) -> Tensor:
    """int64 [active units] of a mask, bool, of the weight's shape."""
    if mask.dtype != torch.bool or tuple(mask.shape) != spec.shape:
        raise UserError(
            f"masks: {spec.name} is {mask.dtype} of shape {tuple(mask.shape)}; it must be bool of shape {spec.shape}"
        )
    units = mask.reshape(spec.units, spec.unit_size)
    if not bool((units.all(1) == units.any(1)).all()):
        raise UserError(f"masks: {spec.name} cuts through units of {spec.unit_size} weights; see granularity")
    if not bool(units.any()):
        raise UserError(f"masks: {spec.name} has no active weight; each layer keeps at least one unit")
    return torch.nonzero(units[:, 0]).squeeze(1)


def _require_no_trained_zeros(model: nn.Module, specs: Sequence[LayerSpec], active: Mapping[str, int | Tensor]) -> None:
    """Refuse to begin with a network that is sparse already: new masks would cut trained weights, or none be kept.

    A layer is if a twentieth of its weights are 0, or half as many as are to be; one of zeros alone is not trained.
    """
    weights = named_parameters(model)
    for spec in specs:
        count = active[spec.name]
        free = (spec.units - count) * spec.unit_size if isinstance(count, int) else 0
        zeros = int((weights[spec.name].detach() == 0).sum())
        if min(free / 2 or math.inf, _MANY_ZEROS * spec.weights) < zeros < spec.weights:
            raise UserError(
                f"{spec.name} is sparse already, {zeros:,} of its {spec.weights:,} weights are 0, and new masks would "
                f"be others: give state=, what its SparseTraining saved, or masks=; or masks='random' to have them anew"
            )


def _left_dense(model: nn.Module, specs: Sequence[LayerSpec], asked: Asked) -> list[str]:
    """Weights of two or more dimensions that no rule speaks of, if they are many."""
    if asked.include is not None:
        return []
    spoken_of = {spec.name for spec in specs} | matching(model, asked.exclude, "exclude")
    others = {
        name: one.parameter
        for name, one in candidates(model).items()
        if name not in spoken_of and one.parameter is not None and not one.by_default
    }
    total = sum(one.numel() for one in model.parameters() if not nn.parameter.is_lazy(one))
    return list(others) if sum(one.numel() for one in others.values()) > _MANY * total else []


def _dead_filters(masks: MaskSet) -> list[tuple[str, int, int]]:
    """Convolutions of which many filters have no active weight: name, such filters, all filters."""
    found = []
    for layer in masks:
        filters, spec = layer.spec.shape[0], layer.spec
        if spec.kind != "conv" or not spec.outputs_first or layer.is_full or spec.mask_dims == 1:
            continue
        alive = torch.unique_consecutive(layer.active // (spec.units // filters)).numel()
        if filters - alive > _DEAD * filters:
            found.append((spec.name, filters - alive, filters))
    return found
