"""Static sparsity: a mask that never moves, the baseline of every dynamic method."""

from __future__ import annotations

from typing import Literal

from dynsparse.methods.base import Method, MethodSettings


class StaticSettings(MethodSettings):
    """A mask fixed from the first step to the last: random, or another run's (`start.masks_from`)."""

    name: Literal["static"]

    def build(self) -> Method:
        return Method()
