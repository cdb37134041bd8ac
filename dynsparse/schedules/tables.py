"""Tables of values by epoch, as a config has them."""

from __future__ import annotations

import itertools
import math
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import AfterValidator, GetCoreSchemaHandler, GetJsonSchemaHandler, PlainSerializer
from pydantic_core import CoreSchema, core_schema

from pipelines.common.settings import MOST
from pipelines.common.text import cut


@dataclass(frozen=True)
class StepTable:
    """A value for each range of epochs: the last entry at or before the epoch holds.

    Written in YAML as one number, as a mapping, or as the paper's list:

        table: 0.1
        table: {0: 0.1, 30: 0.01}
        table: [{0: 0.1}, {30: 0.01}]
    """

    points: tuple[tuple[int, float], ...]

    def __post_init__(self) -> None:
        epochs = [epoch for epoch, _ in self.points]
        if not epochs:
            raise ValueError("a step table is empty; give at least the value for epoch 0")
        if epochs[0] != 0:
            raise ValueError(f"a step table starts at epoch {epochs[0]}; its first entry must be for epoch 0")
        if any(a >= b for a, b in itertools.pairwise(epochs)):
            raise ValueError(f"a step table's epochs are {_shown(epochs)}; they must rise from entry to entry")
        if epochs[-1] > MOST:
            raise ValueError(f"a step table has the epoch {epochs[-1]}; {MOST:,} is the last that there can be")
        for epoch, value in self.points:
            if not math.isfinite(value):
                raise ValueError(f"a step table gives {value} for epoch {epoch}; values must be finite")
            if abs(value) > 2**53:
                raise ValueError(f"a step table gives {value:g} for epoch {epoch}; 2^53 is the largest value")

    @classmethod
    def parse(cls, raw: Any) -> StepTable:
        """Read what a YAML file can hold. Raises ValueError, which shows what a table looks like."""
        if isinstance(raw, StepTable):
            return raw
        if _is_number(raw):
            return cls(((0, raw),))
        pairs: list[tuple[Any, Any]] = []
        if isinstance(raw, Mapping):
            pairs = list(raw.items())
        elif isinstance(raw, Sequence) and not isinstance(raw, str) and all(isinstance(item, Mapping) for item in raw):
            pairs = [pair for item in raw for pair in item.items()]
        else:
            raise ValueError(
                f"{_shown(raw)} is no step table; write one number, or epoch: number pairs such as {{0: 100, 30: 200}}"
            )
        for epoch, value in pairs:
            if not isinstance(epoch, int) or not _is_number(epoch) or not _is_number(value):
                raise ValueError(f"a step table has the entry {_shown(epoch)}: {_shown(value)}; write epoch: number")
        return cls(tuple(pairs))

    def at(self, epoch: int) -> float:
        """Return the value that holds in `epoch` (counted from 0)."""
        return next(value for start, value in reversed(self.points) if start <= epoch)

    def as_yaml(self) -> float | dict[int, float]:
        """Return one number, or a mapping from epochs to numbers, as `parse` reads it."""
        return self.points[0][1] if len(self.points) == 1 else dict(self.points)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            cls.parse, serialization=core_schema.plain_serializer_function_ser_schema(cls.as_yaml)
        )

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        table = {"type": "object", "patternProperties": {"^[0-9]+$": {"type": "number"}}, "minProperties": 1}
        return {"anyOf": [{"type": "number"}, table, {"type": "array", "items": table, "minItems": 1}]}


def _is_number(value: Any) -> bool:
    if isinstance(value, int):
        return not isinstance(value, bool) and value.bit_length() < 64
    return isinstance(value, float)


def _shown(value: Any) -> str:
    """Return a value, or its beginning, for a message."""
    try:
        return cut(reprlib.repr(value))
    except ValueError:  # Python writes no more than 4,300 digits.
        return "a huge number"


def _whole_and_positive(table: StepTable) -> StepTable:
    for epoch, value in table.points:
        if value != int(value) or value < 1:
            raise ValueError(f"{value} at epoch {epoch} is no number of steps; it must be whole and at least 1")
    return StepTable(tuple((epoch, int(value)) for epoch, value in table.points))


def _not_negative(table: StepTable) -> StepTable:
    for epoch, value in table.points:
        if value < 0:
            raise ValueError(f"{value} at epoch {epoch} is negative; it must be at least 0")
    return table


Period = Annotated[StepTable, AfterValidator(_whole_and_positive)]
"""Steps between two events, by epoch."""

NotNegative = Annotated[StepTable, AfterValidator(_not_negative), PlainSerializer(StepTable.as_yaml)]
"""A learning rate or a temperature, by epoch."""
