"""The method, the layers and the first masks of a model, decided before the model is touched."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dynsparse.errors import UserError
from dynsparse.first_masks.settings import NAMES, Beside
from dynsparse.keeping.asked import KINDS, Asked, settings_of
from dynsparse.keeping.first import Given, by_score
from dynsparse.keeping.steps import watcher_of
from dynsparse.keeping.structures import require_structures, structured_units
from dynsparse.keeping.ways import way_of
from dynsparse.masks import LayerSpec, MaskSet, sparse_layers
from dynsparse.masks.allocation import allocated
from dynsparse.masks.granularity import Kind
from dynsparse.masks.magnitude import largest_units
from dynsparse.masks.naming import named_parameters
from dynsparse.masks.obstacles import listed
from dynsparse.masks.structure import require_structure
from dynsparse.methods import Aim, Method, MethodSettings
from dynsparse.methods.base import require_method
from dynsparse.shrinking.channels import channel_groups

_MANY_ZEROS = 0.05
"""Fraction of a layer's weights that may be 0 in a network that is not sparse yet."""
_WORDS: dict[Kind, str] = {"conv": "convolution", "fc": "linear, recurrent or attention layer"}


@dataclass(frozen=True)
class Setup:
    """Everything that a `SparseTraining` begins with."""

    model: nn.Module
    method: Method
    method_name: str
    specs: Sequence[LayerSpec]
    active: Mapping[str, int | Tensor]
    """Active units of each layer: how many, or which (int64, rising)."""
    built: MaskSet | None = None
    """Masks that the model has already."""
    draws: bool = False
    """Whether the active units are drawn at random."""

    @classmethod
    def of(
        cls,
        model: nn.Module,
        method: str | Mapping[str, Any] | MethodSettings | Method,
        asked: Asked,
        masks: MaskSet | Mapping[str, Tensor] | str | None,
        state: Mapping[str, Any] | None,
        given: Given,
    ) -> Setup:
        """Decide, and change nothing. UserError for what cannot work."""
        settings = method if isinstance(method, Method) else settings_of(method)
        scores = by_score(masks)
        way_of(masks, scores).require_used(asked, given)
        if scores is not None:
            masks = scores.name
            if state is None:
                given.require_for(scores)
        if isinstance(masks, MaskSet):
            return cls._with_masks(model, settings, masks, asked)
        sparsity = _sparsity(asked, masks, state)
        starts = "sparse" if isinstance(settings, Method) else settings.starts
        _require_start(starts, asked, masks)
        if not isinstance(settings, Method):
            asked = asked.model_copy(update={"structure": settings.pattern(asked.structure)})
        if not isinstance(settings, Method) and sparsity is not None:
            settings = settings.aiming_at(sparsity).knowing(Aim(sparsity, asked.allocation))
        specs = _layers(model, asked, masks, sparsity if starts == "sparse" else None)
        weights = named_parameters(model)
        first = sparsity if isinstance(settings, Method) or sparsity is None else settings.first_sparsity(sparsity)
        active = _active(specs, first if starts == "sparse" else None, asked, masks, weights)
        _require_unwatched([weights[spec.parameter] for spec in specs])
        if scores is not None and state is None:
            beside = Beside(asked.allocation, asked.structure, first or {}, _changes_density(settings))
            active = given.units(scores, model, specs, _counts(active), beside)
        if masks is None and state is None:
            _require_no_trained_zeros(weights, specs, active)
        built = _built(settings, model, specs, active, asked)
        if isinstance(masks, Mapping):
            _require_given(built, settings, specs, active)
        return cls(
            model,
            built,
            _name(settings),
            specs,
            {spec.name: spec.units for spec in specs} if state is not None else active,
            draws=masks is None and state is None and starts == "sparse",
        )

    @classmethod
    def _with_masks(cls, model: nn.Module, settings: MethodSettings | Method, masks: MaskSet, asked: Asked) -> Setup:
        mine = named_parameters(model)
        if strange := [layer.name for layer in masks if mine.get(layer.spec.parameter) is not layer.parameter]:
            raise UserError(f"masks= is of another model: {listed(strange)} is no weight of this one")
        _require_unwatched([layer.parameter for layer in masks])
        specs = [layer.spec for layer in masks]
        active = {layer.name: layer.active_units for layer in masks}
        built = _built(settings, model, specs, active, asked)
        _require_given(built, settings, specs, structured_units(masks))
        return cls(model, built, _name(settings), specs, active, built=masks)

    @property
    def weights(self) -> dict[str, nn.Parameter]:
        """The parameters to make sparse, or parts of them, by name."""
        mine = named_parameters(self.model)
        return {spec.parameter: mine[spec.parameter] for spec in self.specs}

    def build_masks(self, seed: int) -> MaskSet:
        """Make the masks. Weights outside them stay as they are."""
        return self.built or MaskSet(self.model, self.specs, self.active, seed=seed, apply=False)


def _changes_density(settings: MethodSettings | Method) -> bool:
    return getattr(_own(settings), "density", None) is not None


def _keeps_density(settings: MethodSettings | Method) -> bool:
    """Whether the layers have as many active weights at the start as in the end."""
    if isinstance(settings, Method) and _own(settings) is None:
        return type(settings).budgets is Method.budgets
    return getattr(_own(settings), "starts", "sparse") == "sparse" and not _changes_density(settings)


def _own(settings: MethodSettings | Method) -> Any:
    """The settings of a method; None for an object that has none."""
    return settings if isinstance(settings, MethodSettings) else getattr(settings, "settings", None)


def _require_given(
    method: Method, settings: MethodSettings | Method, specs: Sequence[LayerSpec], active: Mapping[str, Any]
) -> None:
    """Raise UserError for masks that were given and have not the structure of their layers."""
    remedy = "give masks of that structure"
    require_structures(method, specs, active, "masks", remedy, exact=_keeps_density(settings))


def _counts(active: Mapping[str, int | Tensor]) -> dict[str, int]:
    return {name: one if isinstance(one, int) else one.numel() for name, one in active.items()}


def _name(settings: MethodSettings | Method) -> str:
    return type(settings).__name__ if isinstance(settings, Method) else settings.name


def _built(
    settings: MethodSettings | Method,
    model: nn.Module,
    specs: Sequence[LayerSpec],
    active: Mapping[str, int | Tensor],
    asked: Asked,
) -> Method:
    """The method, once it has accepted the layers and the length of the run."""
    method = settings if isinstance(settings, Method) else settings.build()
    counts = _counts(active)
    require_method(method, _name(settings), specs, counts)
    if method.counts_epochs and asked.steps_per_epoch is None:
        raise UserError(
            f"method {_name(settings)} has settings in epochs: give the length of an epoch with steps_per_epoch= "
            f"(optimizer steps)"
        )
    _couple(method, f"method {_name(settings)}", model, specs, asked)
    method.plan(specs, counts, asked.schedule, asked.steps)
    method.check_length(asked.schedule.clock(asked.total_steps))  # With the period that was chosen.
    return method


def _couple(method: Method, name: str, model: nn.Module, specs: Sequence[LayerSpec], asked: Asked) -> None:
    """Tell a method that wants it which channels go together."""
    if not method.wants_channels:
        if asked.input_shape is not None:
            raise UserError(f"input_shape= is for methods that take channels out, and {name} does not: leave it out")
        return
    if asked.input_shape is None:
        raise UserError(
            f"{name} takes channels out: give input_shape=, the shape of one input without the batch, such as "
            f"(3, 224, 224), with which the model is traced"
        )
    method.couple(channel_groups(model, asked.input_shape, name), specs)


def _sparsity(
    asked: Asked, masks: Mapping[str, Tensor] | str | None, state: Mapping[str, Any] | None
) -> Mapping[Kind, float] | None:
    """The sparsity given, or that of the state. None where masks are given instead."""
    share = asked.sparsity or ((state or {}).get("sparsity") if masks is None else None)
    if share is None and not isinstance(masks, Mapping):
        raise UserError("give sparsity=, the fraction of zeros in each layer, or masks=, one for each layer")
    return share


def _require_start(starts: str, asked: Asked, masks: object) -> None:
    if starts == "tied":
        raise UserError("method tied replaces parameters: call dynsparse.masks.tying.tie before making the optimizer")
    if starts == "dense" and isinstance(masks, str) and masks != "random":
        raise UserError(f"masks is '{masks}', and this method starts without masks: leave masks= out")
    if starts == "dense" and asked.allocation != "uniform":
        raise UserError(
            f"allocation is '{asked.allocation}', and this method starts from a dense network and shares out by a "
            f"rule of its own: leave it at 'uniform'"
        )


def _layers(
    model: nn.Module,
    asked: Asked,
    masks: Mapping[str, Tensor] | str | None,
    sparsity: Mapping[Kind, float] | None,
) -> Sequence[LayerSpec]:
    """Choose the layers: those that masks name, or those of the kinds that are to be sparse."""
    kinds = [kind for kind, value in sparsity.items() if value > 0] if sparsity else KINDS
    specs = sparse_layers(
        model,
        include=[_literally(name) for name in masks] if isinstance(masks, Mapping) else asked.include,
        exclude=asked.exclude,
        granularity=asked.granularity,
        kinds=kinds,
        split=asked.split,
        structure=asked.structure,
    )
    require_structure(specs, dict(sparsity or {}), asked.allocation)
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
    return specs


def _literally(name: str) -> str:
    """Shell pattern that matches this name alone."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)


def _active(
    specs: Sequence[LayerSpec],
    sparsity: Mapping[Kind, float] | None,
    asked: Asked,
    masks: Mapping[str, Tensor] | str | None,
    weights: Mapping[str, Tensor],
) -> Mapping[str, int | Tensor]:
    """Active units of each layer at the start: as masks say, or as many as the allocation gives it."""
    if isinstance(masks, Mapping):
        return {spec.name: _units(spec, _mask_of(spec, masks)) for spec in specs}
    if masks is not None and masks not in NAMES:
        raise UserError(f"masks is {masks!r}; give a bool tensor for each layer, or one of {', '.join(NAMES)}")
    counts = allocated(asked.allocation, specs, sparsity or {"conv": 0.0, "fc": 0.0})
    return largest_units(specs, counts, weights) if masks == "magnitude" and sparsity else dict(counts)


def _mask_of(spec: LayerSpec, masks: Mapping[str, Tensor]) -> Tensor:
    """The mask given for a layer, or its rows of the one given for its whole parameter."""
    if spec.name in masks or spec.block is None:
        return masks[spec.name]
    if tuple(masks[spec.parameter].shape) != spec.parameter_shape:
        raise UserError(
            f"masks: {spec.parameter} is of shape {tuple(masks[spec.parameter].shape)}; it must be bool of shape "
            f"{spec.parameter_shape}"
        )
    return masks[spec.parameter][spec.rows]


def _units(spec: LayerSpec, mask: Tensor) -> Tensor:
    """Index of a mask, bool of the weight's shape: int64 [active units]. UserError if it does not fit the layer."""
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


def _require_unwatched(weights: Sequence[nn.Parameter]) -> None:
    if any(watcher_of(weight) is not None for weight in weights):
        raise UserError(
            "the model has a SparseTraining already; one object keeps it sparse: make a new model, or release() it"
        )


def _require_no_trained_zeros(
    weights: Mapping[str, nn.Parameter], specs: Sequence[LayerSpec], active: Mapping[str, int | Tensor]
) -> None:
    """Refuse a network that is sparse already: new masks would cut off trained weights.

    A layer counts as sparse if a twentieth of its weights are 0, or half as many as are to be inactive. A layer of
    zeros alone is not trained yet.
    """
    for spec in specs:
        count = active[spec.name]
        free = (spec.units - count) * spec.unit_size if isinstance(count, int) else 0
        zeros = int((weights[spec.parameter].detach()[spec.rows] == 0).sum())
        if min(free / 2 or math.inf, _MANY_ZEROS * spec.weights) < zeros < spec.weights:
            raise UserError(
                f"{spec.name} is sparse already, {zeros:,} of its {spec.weights:,} weights are 0, and new masks would "
                f"be others: give state=, what its SparseTraining saved, or masks=; or masks='magnitude' to keep the "
                f"largest weights, or 'random' to draw masks anew"
            )
