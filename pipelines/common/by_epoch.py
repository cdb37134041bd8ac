"""Settings that are one whole number for the whole run, or a table of them by epoch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, core_schema

from pipelines.common.settings import MOST


@dataclass(frozen=True)
class NumberOrTable:
    """Annotation of a field whose type is `int | Table`. A number keeps the messages that it has without a table."""

    parse: Callable[[Any], Any]
    """Reads a table, from a mapping or a list. Raises ValueError."""
    dump: Callable[[Any], Any]
    """Returns what `parse` reads."""
    most: int = MOST

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_wrap_validator_function(
            lambda value, number: number(value) if _is_plain(value) else self.parse(value),
            core_schema.int_schema(ge=1, le=self.most, strict=True),
            serialization=core_schema.plain_serializer_function_ser_schema(
                lambda value: value if _is_plain(value) else self.dump(value)
            ),
        )

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        number = {"type": "integer", "minimum": 1, "maximum": self.most}
        table = {"type": "object", "patternProperties": {"^[0-9]+$": number}, "minProperties": 1}
        return {"anyOf": [number, table, {"type": "array", "items": table, "minItems": 1}]}


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, (int, float, str, bool))
