"""Static sparsity: a random mask that never moves. The baseline of every dynamic method."""

from __future__ import annotations

from typing import Literal

from dynsparse.methods.base import Method, MethodSettings


class StaticSettings(MethodSettings):
    """A random mask, fixed from the first step to the last."""

    name: Literal["static"]

    def build(self) -> Method:
        return Method()
