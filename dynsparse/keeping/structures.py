"""Masks that were given, against the structure that their layers are to have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from dynsparse.errors import UserError
from dynsparse.masks import LayerSpec, MaskSet
from dynsparse.masks.structure import FREE, misfit
from dynsparse.methods import Method


def require_structures(
    method: Method, specs: Sequence[LayerSpec], active: Mapping[str, Tensor], said: str, remedy: str, *, exact: bool
) -> None:
    """Raise UserError for a layer whose active units (int64) are not as its structure says.

    Only a method that takes outputs out may find some that are out already. `exact`: groups of N:M have N, and not any
    number that is the same in all of them. `said`: words for who gave the masks.
    """
    may_empty = method.may_empty(specs)
    for spec in specs:
        if spec.structure != FREE and (
            reason := misfit(spec, active[spec.name], exact=exact, may_empty=spec.name in may_empty)
        ):
            raise UserError(f"{said}: {spec.name} {reason}: {remedy}")


def structured_units(masks: MaskSet) -> dict[str, Tensor]:
    """Active units of each layer that has a structure: int64."""
    return {layer.name: layer.active for layer in masks if layer.spec.structure != FREE}
