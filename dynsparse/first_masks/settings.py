"""Kinds of first masks: their settings, and where they contradict other settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, core_schema

from pipelines.common.settings import Settings


class RandomMasks(Settings):
    """Masks that are drawn."""

    name: Literal["random"]


class MagnitudeMasks(Settings):
    """The largest of the weights to begin with, in each layer."""

    name: Literal["magnitude"]


class ScoredMasks(Settings):
    """Base of masks by a score of each weight in the dense network; a unit's score is the mean of its weights'."""

    name: str
    scope: Literal["global", "layer"] = "global"
    """global: one ranking over all layers, as in the paper, at least one unit in each. layer: as many in each layer as
    `sparsity.allocation` says."""


Batches = Annotated[int, Field(ge=1, le=1000)]


class SnipMasks(ScoredMasks):
    """SNIP (Lee, Ajanthan & Torr 2019): the weights that the loss is most sensitive to, |gradient x weight|."""

    name: Literal["snip"]
    batches: Batches = 1
    """Global batches to take the gradient of: the first ones of training."""


class GraspMasks(ScoredMasks):
    """GraSP (Wang, Zhang & Grosse 2020): the weights without which the gradient would lose most of its norm."""

    name: Literal["grasp"]
    batches: Batches = 1
    """Global batches to take the gradient and its product with the Hessian of: the first ones of training."""
    temperature: Annotated[float, Field(gt=0, le=1e6)] = 200.0
    """Number that divides the logits; 200 as in the authors' code."""


class SynflowMasks(ScoredMasks):
    """SynFlow (Tanaka et al. 2020): the weights that carry most of what flows through the network; without data."""

    name: Literal["synflow"]
    iterations: Annotated[int, Field(ge=1, le=10_000)] = 100
    """Rounds of scoring and pruning; the density falls exponentially."""


AnyFirstMasks = RandomMasks | MagnitudeMasks | SnipMasks | GraspMasks | SynflowMasks
NAMES = ("random", "magnitude", "snip", "grasp", "synflow")


@dataclass(frozen=True)
class NameOrSettings:
    """Annotation of a field that may be a name alone. It is written as a name where it has nothing else to say."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_wrap_validator_function(
            lambda value, settings: settings(_named(value)),
            handler(source),
            serialization=core_schema.plain_serializer_function_ser_schema(_written),
        )

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"anyOf": [{"enum": list(NAMES)}, handler(schema)]}


def _named(value: Any) -> Any:
    if isinstance(value, str):
        return {"name": value}
    if not isinstance(value, (Mapping, Settings)):
        raise ValueError(f"is {value!r}; give a name, one of {', '.join(NAMES)}, or a section with one")
    return value


def _written(first: AnyFirstMasks) -> Any:
    values = first.model_dump()
    return first.name if len(values) == 1 else values


FirstMasks = Annotated[AnyFirstMasks, Field(discriminator="name"), NameOrSettings()]
"""First masks in a config: a name, or settings with one."""


@dataclass(frozen=True)
class Beside:
    """Settings that first masks by score may contradict."""

    allocation: str
    structure: str
    first_sparsity: Mapping[Any, float]
    density_changes: bool


@dataclass(frozen=True)
class Words:
    """Names of settings in messages."""

    key: str
    """Name of the masks."""
    section: str
    """Beginning of the names of the settings beside them."""
    by_layer: str
    """Remedy: the way to set the scope to layers."""


IN_CONFIG = Words("sparsity.initial", "sparsity.", "set sparsity.initial='{name: %s, scope: layer}'")
IN_A_CALL = Words("masks", "", "set masks={'name': '%s', 'scope': 'layer'}")


def contradiction(first: MagnitudeMasks | ScoredMasks, beside: Beside, words: Words) -> str | None:
    """Return in one line what contradicts masks that are chosen; None if nothing does."""
    said, by_layer = f"{words.key} is {first.name}", words.by_layer % first.name
    if not any(beside.first_sparsity.values()):
        return f"{said}, and the method begins with all weights, so that none are chosen: leave it out"
    if isinstance(first, MagnitudeMasks) or first.scope == "layer":
        return None
    said = f"{said} with the scope global"
    if beside.allocation != "uniform":
        return (
            f"{said}, which shares out by one ranking, and {words.section}allocation is {beside.allocation}: leave "
            f"that out, or {by_layer}"
        )
    if beside.structure != "free":
        return (
            f"{said}, and {words.section}structure {beside.structure} leaves no layer another number of weights: "
            f"{by_layer}"
        )
    if beside.density_changes:
        return (
            f"{said}, and method.density shares out by {words.section}allocation: {by_layer}, or leave method.density "
            f"out"
        )
    return None
