"""The plain arguments of the front door, validated before anything is touched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, ValidationError, field_validator, model_validator

from dynsparse.errors import UserError
from dynsparse.explain import explain_all
from dynsparse.masks.granularity import Granularity, Kind
from dynsparse.masks.splitting import MOST_PARTS
from dynsparse.masks.structure import Structure
from dynsparse.methods import AnyMethod, MethodSettings
from dynsparse.methods.clock import Schedule
from dynsparse.reallocation import OnDesync
from pipelines.common.by_epoch import NumberOrTable
from pipelines.common.epochs import EpochTable
from pipelines.common.settings import Settings

SOURCE = "SparseTraining"
KINDS: Sequence[Kind] = ("conv", "fc")
Sparsity = Annotated[float, Field(ge=0, lt=1)]


class Asked(Settings):
    """The arguments of the front door that are plain data."""

    sparsity: dict[Kind, Sparsity] | None
    total_steps: Annotated[int, Field(ge=1)]
    steps_per_epoch: Annotated[int | EpochTable, NumberOrTable(EpochTable.of, EpochTable.as_given)] | None
    allocation: Literal["erk", "uniform"]
    granularity: Granularity
    structure: Structure
    include: Annotated[list[str], Field(min_length=1)] | None
    exclude: list[str]
    split: dict[str, Annotated[int, Field(ge=1, le=MOST_PARTS)]]
    input_shape: Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=1)] | None
    steps: Annotated[int, Field(ge=0)]
    seed: Annotated[int, Field(ge=0, lt=2**63)]
    on_desync: OnDesync

    @field_validator("sparsity", mode="before")
    @classmethod
    def _by_kind(cls, value: Any) -> Any:
        """Take one number for both kinds. A kind that is not given stays dense."""
        if isinstance(value, Mapping):
            if unknown := [kind for kind in value if kind not in KINDS]:
                raise ValueError(f"has the kind {unknown[0]!r}; there are conv and fc")
            return {"conv": 0.0, "fc": 0.0, **value}
        if isinstance(value, (int, float)) and not 0 <= value < 1:
            raise ValueError(f"is {value}; it must be at least 0 and below 1")
        return value if value is None else {"conv": value, "fc": value}

    @field_validator("total_steps", "steps_per_epoch", "steps", "seed", mode="before")
    @classmethod
    def _as_int(cls, value: Any) -> Any:
        """Take NumPy's integers for integers."""
        if isinstance(value, Mapping):
            return {cls._as_int(key): cls._as_int(one) for key, one in value.items()}
        return int(value) if isinstance(value, np.integer) else value

    @model_validator(mode="after")
    def _begins_before_its_end(self) -> Asked:
        if self.steps >= self.total_steps:
            raise ValueError(f"steps is {self.steps}, and the run ends with total_steps, {self.total_steps}")
        return self

    @field_validator("include", "exclude", "input_shape", mode="before")
    @classmethod
    def _as_list(cls, value: Any) -> Any:
        return list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value

    @field_validator("split", mode="before")
    @classmethod
    def _as_dict(cls, value: Any) -> Any:
        return dict(value) if isinstance(value, Mapping) else value

    @classmethod
    def of(cls, **arguments: Any) -> Asked:
        """Validate the arguments. UserError lists all that is wrong."""
        try:
            return cls(**arguments)
        except ValidationError as error:
            raise UserError(*explain_all(error, cls, SOURCE)) from None

    @property
    def schedule(self) -> Schedule:
        """Lengths of the run, which make the clock of each step."""
        return Schedule(self.total_steps, self.steps_per_epoch)


class _AnyMethod(Settings):
    method: AnyMethod


def settings_of(method: str | Mapping[str, Any] | MethodSettings) -> MethodSettings:
    """Validate a method's name, or its settings as in a config. UserError lists all that is wrong."""
    if isinstance(method, MethodSettings):
        return method
    if not isinstance(method, (str, Mapping)):
        raise UserError(f"method is {method!r}; give a name, settings as in a config, or a Method")
    try:
        raw = {"name": method} if isinstance(method, str) else dict(method)
        return _AnyMethod.model_validate({"method": raw}).method
    except ValidationError as error:
        raise UserError(*explain_all(error, _AnyMethod, SOURCE)) from None
